"""The package as a guest sees it: its names, the cost of importing it, its lint, types, layers and sizes."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import agent_memory
from agent_memory import errors
from tests.parts import beside, signatures

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "agent_memory"
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 50
#: Files that may be longer: they list every public method, each one line into its room; or are all of one seam, as
#: the adapter of mlx-lm's batching.
LONG_FILES = {
    "__init__.py": 500,
    "memory.py": 650,
    "store/store.py": 490,
    "runner/batch.py": 430,
    "requests/versions.py": 440,
    "requests/publishing.py": 420,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def after_import(expression: str, imports: str = "import agent_memory") -> object:
    """``expression`` as a fresh process sees it after ``imports``."""
    done = run("-c", f"import json, sys\n{imports}\nprint(json.dumps({expression}))")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_public_names_are_sorted_and_complete() -> None:
    public = set(agent_memory._HOMES) | {"__version__"}
    assert agent_memory.__all__ == sorted(public)
    assert dir(agent_memory) == agent_memory.__all__


def test_every_public_name_loads_from_the_module_that_defines_it() -> None:
    aliases = set()
    for name, home in agent_memory._HOMES.items():
        value = getattr(agent_memory, name)
        assert value is getattr(import_module(f"agent_memory.{home}"), name)
        if isinstance(value, type) or inspect.isfunction(value):
            assert (value.__name__, value.__module__) == (name, f"agent_memory.{home}")
        else:
            aliases.add(name)
    assert aliases == {
        "Codec", "Event", "Exactness", "Finish", "LogitsProcessor", "MissCause", "OnDiverge", "Prompt", "Role", "State",
        "Tier", "ToolChoice", "ToolLike",
    }  # fmt: skip


def test_the_type_checker_sees_the_same_names_as_the_interpreter() -> None:
    [block] = [
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    seen = {
        alias.name: (node.module or "").removeprefix("agent_memory.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == agent_memory._HOMES


def test_public_signatures_are_as_recorded() -> None:
    """Changes show in review: record them with ``python -m tests.parts.signatures``, and say them in the changelog."""
    recorded = signatures.RECORD.read_text(encoding="utf-8").splitlines()
    assert signatures.signatures().splitlines() == recorded, "run: python -m tests.parts.signatures"


def test_every_error_is_public_and_under_the_root() -> None:
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    tree = {name for name, value in classes.items() if value.__module__ == errors.__name__}
    assert tree == {name for name, home in agent_memory._HOMES.items() if home == "errors"}
    assert all(issubclass(getattr(errors, name), errors.AgentMemoryError) for name in tree)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Memry'"):
        agent_memory.Memry  # noqa: B018


def test_the_version_is_that_of_the_project_file() -> None:
    assert f'\nversion = "{agent_memory.__version__}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_importing_the_package_loads_no_heavy_module_and_none_of_its_own() -> None:
    loaded = after_import("sorted(sys.modules)")
    assert isinstance(loaded, list)
    roots = {name.split(".")[0] for name in loaded}
    assert not roots & {"mlx", "mlx_lm", "numpy", "transformers", "safetensors", "sqlite3", "asyncio", "attrs"}
    assert [name for name in loaded if name.startswith("agent_memory.")] == []


def test_the_values_and_the_memory_class_load_no_mlx() -> None:
    names = ", ".join(sorted(agent_memory._HOMES))
    loaded = after_import("sorted(sys.modules)", f"from agent_memory import {names}")
    assert isinstance(loaded, list)
    assert not {name.split(".")[0] for name in loaded} & {"mlx", "mlx_lm", "transformers"}


def test_importing_starts_no_thread_opens_no_file_and_reads_no_environment() -> None:
    watched = (
        "import os, threading\n"
        "events = []\n"
        "sys.addaudithook(lambda event, args: events.append(event) if event.split('.')[0] == 'socket' else None)\n"
        "class Watched(dict):\n"
        "    def __getitem__(self, key): events.append(f'env {key}'); return dict.__getitem__(self, key)\n"
        "    def get(self, key, default=None): events.append(f'env {key}'); return dict.get(self, key, default)\n"
        "before, os.environ = dict(os.environ), Watched(os.environ)\n"
        "import agent_memory, agent_memory.errors\n"
    )
    assert after_import("[events, threading.active_count(), dict(os.environ) == before]", watched) == [[], 1, True]


def methods(name: str) -> dict[str, inspect.Parameter]:
    owner, method = name.split(".")
    parameters = dict(inspect.signature(getattr(getattr(agent_memory, owner), method)).parameters)
    return dict(list(parameters.items())[2:])  # less self and what is asked


def test_the_ways_to_ask_a_memory_take_the_same_arguments() -> None:
    assert methods("Memory.stream") == methods("Memory.generate")
    batch, generate = methods("Memory.batch"), methods("Memory.generate")
    assert batch.keys() - generate.keys() == {"return_errors"}
    assert {name for name in generate if batch[name] != generate[name]} == {"agent"}  # or one for each prompt


@pytest.mark.parametrize("name", ["Agent.say", "Agent.stream", "Agent.give"])
def test_the_ways_to_ask_an_agent_take_those_arguments_but_agent(name: str) -> None:
    same = {key: value for key, value in methods("Memory.generate").items() if key != "agent"}
    assert methods(name) == same


@pytest.mark.parametrize("name", ["Memory.generate", "Agent.say"])
def test_everything_after_the_first_argument_is_keyword_only(name: str) -> None:
    assert {parameter.kind for parameter in methods(name).values()} == {inspect.Parameter.KEYWORD_ONLY}


#: Config.make turns an unknown keyword into a ConfigError that lists the known ones; resolve's bar is a kind of tqdm;
#: the two APIs' requests are dicts, whose keys are taken one by one and refused by name.
TUNNELS = {
    "config.py make",
    "models/resolve.py __init__",
    *(f"dialects/{name}" for name in ("anthropic.py create", "anthropic.py stream", "anthropic.py count_tokens")),
    "dialects/openai.py create",
}


def test_the_core_has_no_keyword_tunnels_but_typed_options() -> None:
    found = {
        f"{path.relative_to(PACKAGE)} {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg
        if ast.unparse(node.args.kwarg.annotation or ast.Constant("")) != "Unpack[Options]"
        if path.parent.name != "integrations"  # whose methods have the signatures that their frameworks call
    }
    assert found <= TUNNELS


@pytest.mark.parametrize("path", sorted((PACKAGE / "integrations").glob("*.py")), ids=lambda path: path.stem)
def test_an_integration_is_short_and_knows_public_names_alone(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    inside = {(node.module or "") for node in imported if (node.module or "").startswith("agent_memory")}
    shapes = {"agent_memory.integrations.shapes", "agent_memory.integrations.openai_items"}  # these know no Memory
    assert inside <= {"agent_memory", *shapes}
    assert source.count("\n") <= 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= LONG_FILES.get(path.relative_to(PACKAGE).as_posix(), MAX_FILE_LINES)
    long = {
        f"{node.name} (line {node.lineno})": (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in long.items() if lines > MAX_FUNCTION_LINES} == {}


def test_no_file_is_a_drawer_for_everything() -> None:
    assert [path.name for path in FILES if path.stem in {"util", "utils", "helpers", "common", "misc", "manager"}] == []


@pytest.mark.parametrize("check", beside.CHECKS)
def test_lint_types_and_layers_are_in_order(check: str) -> None:
    assert beside.complaints(check) == ""

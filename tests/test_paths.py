"""Paths are made absolute where they come in: nothing that a program does to its working directory moves a file."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import agent_memory
from agent_memory import (
    Config,
    ConfigError,
    EchoRunner,
    Memory,
    MLXRunner,
    SentenceModel,
    StaticModel,
    StoreView,
    open_store,
    rekey,
)
from agent_memory.config import as_path
from agent_memory.recall.context import ContextMemory
from agent_memory.recall.episodes import EpisodicMemory
from tests.parts.tinydirectory import adapter, directory
from tests.recall.test_sentence_model import write
from tests.recall.test_static_model import write as write_table

SMALL = Config(chunk_tokens=16, prefill_tokens=32, blas=None)
BIG = "a word and another one " * 8


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that ``~`` means; the working directory is given back after the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("agents", "{cwd}/agents"), ("./a/b", "{cwd}/a/b"), ("~", "{home}"), ("~/x y", "{home}/x y"),
     ("../sib/agents", "{up}/sib/agents"), ("..", "{up}"), ("link/../agents", "{real}/agents"), ("/a/b", "/a/b"),
     ("a/~odd", "{cwd}/a/~odd"), (".", "{cwd}")],
)  # fmt: skip
def test_a_path_is_absolute_with_its_home_expanded(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "work" / "link").symlink_to(tmp_path / "real" / "deep")
    monkeypatch.chdir(tmp_path / "work")
    wanted = expected.format(cwd=tmp_path / "work", home=home, up=tmp_path, real=tmp_path / "real")
    for value in (given, Path(given)):
        found = as_path(value, "path")
        assert str(found) == wanted
        assert isinstance(found, Path)


def test_a_path_that_needs_what_is_not_there_is_a_config_error(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"path: no home folder is known for '~nobody-of-that-name/x'.*absolute path"):
        as_path("~nobody-of-that-name/x", "path")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="path is relative.*working directory.*absolute path"):
        as_path("agents", "path")
    assert as_path("~/x", "path") == home / "x"


def test_a_memory_needs_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with Memory(EchoRunner(), ":memory:", config=SMALL) as memory:
        assert memory.generate("hi").text == "hi"
    with Memory(EchoRunner(), tmp_path / "store", config=SMALL) as memory:
        assert memory.agent("a").say("hi").text == "hi"
    with pytest.raises(ConfigError, match="absolute path"):
        Memory(EchoRunner(), "store", config=SMALL)


# Every public function that takes a path


def _takes_path(name: str, parameter: inspect.Parameter) -> bool:
    kind = str(parameter.annotation)
    if re.match(r"IO\b|TextIO|BinaryIO|Iterable", kind):  # a file that the caller has opened
        return False
    return bool(re.search(r"\bPath\b|PathLike|StrPath", kind)) or name in ("path", "file", "folder", "directory")


def _public_paths() -> set[str]:
    """``Owner.method(parameter)`` of everything public whose annotation or name says that it takes a path."""
    found = set()
    public = {name: getattr(agent_memory, name) for name in agent_memory.__all__}
    for owner, value in {**public, "ContextMemory": ContextMemory, "EpisodicMemory": EpisodicMemory}.items():
        members = {n: m for n, m in inspect.getmembers(value) if n == "__init__" or not n.startswith("_")}
        for name, member in ({owner: value} if inspect.isfunction(value) else members).items():
            if not (inspect.isfunction(member) or inspect.ismethod(member)):
                continue
            for parameter in inspect.signature(member).parameters.values():
                if _takes_path(parameter.name, parameter):
                    found.add(f"{owner}.{name}({parameter.name})")
    return found


def _store(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    with Memory(EchoRunner(), given, config=SMALL) as memory:
        away()
        memory.agent("a").say(BIG)
        memory.evict()
    with Memory(EchoRunner(), folder, config=SMALL) as memory:
        assert memory.verify().ok
        assert memory.agent("a").say("again").usage.tier == "cold"


def _opened(runner: MLXRunner, away: Callable[[], None], tmp_path: Path) -> tuple[int, ...]:
    away()
    with Memory(runner, tmp_path / "store", config=SMALL) as memory:
        return memory.generate("The same words.", max_tokens=8).token_ids


def _store_beside_a_loop(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    async def main() -> None:
        opening = Memory.aopen(EchoRunner(), given, config=SMALL)
        away()
        async with opening as memory:
            await memory.agent("a").stream(BIG)

    asyncio.run(main())
    with Memory(EchoRunner(), folder, config=SMALL) as memory:
        assert memory.agent("a").say("again").usage.tier == "cold"


def _model_beside_a_loop(**given: Any) -> Callable[[], tuple[int, ...]]:
    """An opening of a Memory, and its reply."""
    opening = Memory.aopen(path=":memory:", config=SMALL, **given)

    async def main() -> tuple[int, ...]:
        async with opening as memory:
            return (await memory.stream("The same words.", max_tokens=8)).token_ids

    return lambda: asyncio.run(main())


def _amodel(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    directory(folder)
    ask = _model_beside_a_loop(model=given)
    away()
    assert ask() == _opened(MLXRunner.named(folder, config=SMALL), away, tmp_path)


def _aadapter(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    adapter(folder, 1)
    base = directory(tmp_path / "base")
    ask = _model_beside_a_loop(model=base, adapter=given)
    away()
    assert ask() == _opened(MLXRunner.named(base, config=SMALL, adapter=folder), away, tmp_path)


def _view(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    with Memory(EchoRunner(), folder, config=SMALL) as memory:
        memory.agent("a").say(BIG)
    with open_store(given) as view:
        away()
        assert [info.name for info in view.agents()] == ["a"]
        assert view.verify().ok


def _rekeyed(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    Memory(EchoRunner(), folder, config=SMALL).close()
    rekey(given, None, bytes(32))
    away()
    open_store(folder, key=bytes(32)).close()


def _bare_view(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    Memory(EchoRunner(), folder, config=SMALL).close()
    view = StoreView(Path(given), "")
    away()
    assert view.path == folder.resolve()
    view.close()


def _model(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    directory(folder)
    found = _opened(MLXRunner.named(given, config=SMALL), away, tmp_path)
    assert found == _opened(MLXRunner.named(folder, config=SMALL), away, tmp_path)


def _adapter(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    adapter(folder, 1)
    base = directory(tmp_path / "base")
    found = _opened(MLXRunner.named(base, config=SMALL, adapter=given), away, tmp_path)
    assert found == _opened(MLXRunner.named(base, config=SMALL, adapter=folder), away, tmp_path)
    assert found != _opened(MLXRunner.named(base, config=SMALL), away, tmp_path)


def _episodes(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    with EpisodicMemory(given) as memory:
        away()
        memory.start("open the harbour").complete(True)
    with EpisodicMemory(folder) as memory:
        assert memory.recall("open the harbour")


def _episodes_out(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    with EpisodicMemory() as memory:
        memory.start("open the harbour").complete(True)
        assert memory.export_jsonl(given) == 1
        away()
    assert folder.is_file()


def _episodes_in(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    _episodes_out(folder, lambda: None, folder, tmp_path)
    with EpisodicMemory() as memory:
        assert memory.import_jsonl(given) == 1
        away()
        assert memory.recall("open the harbour")


def _sentences(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    write(folder)
    model = SentenceModel(given)
    away()
    assert model.embed(["the harbour"]).shape == (1, model.dim)


def _context(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    with ContextMemory(given) as memory:
        away()
        memory.remember("The harbour opens at six.")
    with ContextMemory(folder) as memory:
        assert memory.recall("harbour")


def _static(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    write_table(folder)
    model = StaticModel(given)
    away()
    assert model.embed(["the harbour"]).shape == (1, model.dim)


def _export(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    with Memory(EchoRunner(), tmp_path / "store", config=SMALL) as memory:
        memory.agent("a").say(BIG)
        memory.agent("a").export(given)
        away()
    assert folder.is_file()


def _view_export(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    with Memory(EchoRunner(), tmp_path / "store", config=SMALL) as memory:
        memory.agent("a").say(BIG)
    with open_store(tmp_path / "store") as view:
        view.export("a", given)
        away()
    assert folder.is_file()


def _import(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    _export(folder, lambda: None, folder, tmp_path)
    with Memory(EchoRunner(), tmp_path / "other", config=SMALL) as memory:
        agent = memory.import_agent(given)
        away()
        assert agent.messages[0].content == BIG


def _trace(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(exist_ok=True)
    with Memory(EchoRunner(), ":memory:", config=SMALL) as memory:
        memory.generate(BIG)
        memory.trace().save(given)
        away()
    assert folder.is_file()


def _swapped(away: Callable[[], None], base: Path, **given: Any) -> tuple[int, ...]:
    with Memory(MLXRunner.named(base, config=SMALL), ":memory:", config=SMALL) as memory:
        memory.swap_model(**given)
        away()
        return memory.generate("The same words.", max_tokens=8).token_ids


def _swap(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    directory(folder)
    found = _swapped(away, directory(tmp_path / "base"), model=given)
    assert found == _opened(MLXRunner.named(folder, config=SMALL), away, tmp_path)


def _swap_adapter(given: Any, away: Callable[[], None], folder: Path, tmp_path: Path) -> None:
    adapter(folder, 1)
    base = directory(tmp_path / "base")
    found = _swapped(away, base, model=base, adapter=given)
    assert found == _opened(MLXRunner.named(base, config=SMALL, adapter=folder), away, tmp_path)


Case = Callable[[Any, Callable[[], None], Path, Path], None]
#: Each parameter that takes a path, and a use of it in which the working directory changes meanwhile: what was given,
#: the change, the folder that was meant, and room for more.
CASES: Mapping[str, Case] = {
    "Memory.__init__(path)": _store,
    "Memory.__init__(model)": _model,
    "Memory.__init__(adapter)": _adapter,
    "Memory.aopen(path)": _store_beside_a_loop,
    "Memory.aopen(model)": _amodel,
    "Memory.aopen(adapter)": _aadapter,
    "open_store.open_store(path)": _view,
    "StoreView.__init__(path)": _bare_view,
    "rekey.rekey(path)": _rekeyed,
    "ContextMemory.__init__(path)": _context,
    "EpisodicMemory.__init__(path)": _episodes,
    "EpisodicMemory.export_jsonl(file)": _episodes_out,
    "EpisodicMemory.import_jsonl(file)": _episodes_in,
    "SentenceModel.__init__(folder)": _sentences,
    "StaticModel.__init__(folder)": _static,
    "Agent.export(file)": _export,
    "StoreView.export(file)": _view_export,
    "Memory.import_agent(file)": _import,
    "Memory.swap_model(model)": _swap,
    "Memory.swap_model(adapter)": _swap_adapter,
    "Trace.save(path)": _trace,
    "MLXRunner.named(model)": _model,
    "MLXRunner.named(adapter)": _adapter,
}


def test_every_public_function_that_takes_a_path_is_tried_here() -> None:
    assert _public_paths() == set(CASES)


@pytest.mark.mlx
@pytest.mark.parametrize("spelling", ["name", "dots", "home"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_path_given_to_any_function_stays_what_it_meant(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, spelling: str
) -> None:
    for folder in ("here", "elsewhere", "sib"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given, meant = {
        "name": ("own/thing", tmp_path / "here" / "own" / "thing"),
        "dots": (Path("../sib/thing"), tmp_path / "sib" / "thing"),
        "home": ("~/thing", home / "thing"),
    }[spelling]

    def away() -> None:
        os.chdir(tmp_path / "elsewhere")
        monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))

    CASES[name](given, away, meant, tmp_path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# A store stays where it is, whatever the working directory becomes

HOLDER = """
import sys
from agent_memory import Config, EchoRunner, Memory
with Memory(EchoRunner(), sys.argv[1], config=Config(chunk_tokens=16, prefill_tokens=32)) as memory:
    memory.agent("held").say("the words of another process " * 9)
    memory.flush()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a store "agents" that another process has open, and keeps open."""
    folder = tmp_path_factory.mktemp("held")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", HOLDER, str(folder / "agents")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdin
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    yield folder
    child.stdin.close()
    assert child.wait(30) == 0


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _scene(root: Path, held: Path) -> dict[str, Path]:
    """Folders to go to: one's own, another with a closed store, one with an open store, links, one that is removed."""
    places = {name: root / name for name in ("own", "closed", "empty", "link", "linked")}
    for name in ("own", "closed", "empty"):
        places[name].mkdir()
    with Memory(EchoRunner(), places["closed"] / "agents", config=SMALL) as memory:
        memory.agent("other").say(BIG)
    places["link"].symlink_to(places["own"])
    places["linked"].symlink_to(places["closed"])
    return {**places, "held": held, "gone": root / "gone"}


def _go(places: Mapping[str, Path], name: str) -> None:
    if name != "gone":
        os.chdir(places[name])
        return
    places["gone"].mkdir()
    os.chdir(places["gone"])
    places["gone"].rmdir()


def _wander(places: Mapping[str, Path], draw: random.Random) -> None:
    """Open one's own store by some relative name, and use it while going from folder to folder."""
    start, given = draw.choice(
        [("own", "agents"), ("link", "agents"), ("own", "./agents"), ("closed", "../own/agents"),
         ("linked", "../own/agents"), ("empty", "../link/agents"), ("own", "~/agents")]
    )  # fmt: skip
    _go(places, start)
    n_said = 0
    with Memory(EchoRunner(), draw.choice([str, Path])(given), config=SMALL) as memory:
        for _ in range(draw.randint(3, 8)):
            act = draw.choice(["go", "go", "say", "say", "evict", "flush", "verify"])
            if act == "go":
                _go(places, draw.choice(sorted(places)))
            elif act == "say":
                n_said += 1
                memory.agent("mine").say(f"{n_said} {BIG}")
            elif act == "evict":
                memory.evict()
            elif act == "flush":
                memory.flush()
            else:
                assert memory.verify().ok
        memory.agent("mine").say(f"last {BIG}")
        _go(places, draw.choice(sorted(places)))
    with Memory(EchoRunner(), places["own"] / "agents", config=SMALL) as memory:
        assert memory.verify().ok
        assert len(memory.agent("mine").messages) == 2 * (n_said + 1)
        assert memory.agent("mine").say("and again").usage.tier == "cold"


def _wander_with(seeds: range, root: Path, held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in seeds:
        (root / str(seed)).mkdir()
        places = _scene(root / str(seed), held)
        monkeypatch.setenv("HOME", str(places["own"]))
        others = {name: _bytes(places[name]) for name in ("closed", "held", "empty")}
        _wander(places, random.Random(seed))
        for name, before in others.items():
            assert _bytes(places[name]) == before, (seed, name)
        monkeypatch.chdir(root)


def test_line_6_a_store_stays_where_it_was_opened_wherever_the_process_goes(
    tmp_path: Path, held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _wander_with(range(8), tmp_path, held, monkeypatch)


@pytest.mark.slow
def test_line_6_in_200_random_ways(tmp_path: Path, held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _wander_with(range(100, 300), tmp_path, held, monkeypatch)

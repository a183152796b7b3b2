"""Writes the generated pages: ``docs/reference/``, the commands of ``docs/cli.md``, and ``llms.txt``.

    python docs/generate.py

Run it after a change of a public name, a docstring, a command or a page's first lines; a test compares.
"""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

import agent_memory
from agent_memory.observe.explain import ADVICE
from agent_memory.requests.options import Options, Settings

DOCS = Path(__file__).parent
BEGIN, END = "<!-- generated: python docs/generate.py -->", "<!-- end of what is generated -->"
#: The reference's pages: title, and what stands before the names.
PAGES: Mapping[str, tuple[str, str]] = {
    "memory": ("Memory and agents", "The facade, its agents, a reply on its way, and a store that is only looked at."),
    "messages": ("Messages, tools, replies", "The values that go into a request and come out of one."),
    "options": ("Options of a request", "What `generate`, `say` and the other request methods take as keywords."),
    "config": (
        "Config",
        "Every setting, with its default and unit. `Config.from_env` reads them from the environment.",
    ),
    "usage": ("Usage and causes of a miss", "What a reply cost, where its KV came from, and why not more was reused."),
    "observe": (
        "Stats, health, reports",
        "What a `Memory` says of itself. [Operations](../operations.md) has the use.",
    ),
    "recall": ("Context memory", "What was told, kept and recalled. [Recall](../recall.md) has the use."),
    "episodes": ("Episodes", "What agents did, and what it teaches. [Episodes](../episodes.md) has the use."),
    "groups": ("Groups", "Conversations of several agents. [Groups](../groups.md) has the use."),
    "runners": ("Runners", "Where a `Memory` gets its tokens from."),
    "errors": (
        "Errors",
        "All derive from `AgentMemoryError`. [Errors](../errors.md) says when each comes, and what to do.",
    ),
}
#: Classes that a caller makes; handles come from methods.
_OPENED = {
    "Memory", "ContextMemory", "EpisodicMemory", "EchoRunner", "MLXRunner", "RuleRedactor", "SentenceModel",
    "StaticModel",
}  # fmt: skip
_EPISODES = {"PRF", "Score", "Outcome", "Pattern", "Insight", "Recommendation"}
_PAGE_OF = {
    "Options": "options", "Sampling": "options", "OnDiverge": "options", "ToolChoice": "options", "Recall": "options",
    "EchoRunner": "runners", "MLXRunner": "runners", "LogitsProcessor": "runners", "VerifyReport": "observe",
    "AgentInfo": "memory", "Version": "memory", "Generation": "memory", "Pause": "messages",
}  # fmt: skip
_ROOMS = {
    "types": "messages", "tools": "messages", "config": "config", "usage": "usage", "figures": "observe",
    "observe": "observe", "groups": "groups", "errors": "errors", "recall": "recall",
}  # fmt: skip


def page_of(name: str) -> str:
    """The reference page on which a public name stands."""
    home = agent_memory._HOMES.get(name, "memory")
    if name in _PAGE_OF:
        return _PAGE_OF[name]
    if home.startswith("recall.episode") or name in _EPISODES:
        return "episodes"
    return _ROOMS.get(home.partition(".")[0], "memory")


def names() -> list[str]:
    """Every public name that the reference has."""
    return [name for name in agent_memory.__all__ if name != "__version__"]


# one name


def _entry(name: str) -> str:
    value, home = getattr(agent_memory, name), agent_memory._HOMES[name]
    if name == "MissCause":
        rows = [f"| `{cause}` | {_cell(ADVICE[cause])} |" for cause in typing.get_args(value)]
        return _section(name, "Why a request reused less than had been computed before it.", "| cause | what to do |\n| --- | --- |\n" + "\n".join(rows))  # fmt: skip  # noqa: E501
    if name == "Options":
        return _section(name, _doc(value), _options())
    if not isinstance(value, type) and not inspect.isfunction(value):
        said = _comment_above(home, name)
        return _section(name, said, f"```text\n{name} = {_spelled(home, name)}\n```")
    if inspect.isfunction(value):
        return _section(name, f"```text\n{name}{_signature(value)}\n```", _doc(value))
    return _section(name, *_class(value))


def _section(name: str, *parts: str) -> str:
    return "\n\n".join([f"## `{name}`", *(part for part in parts if part)])


def _class(kind: type) -> Iterator[str]:
    if issubclass(kind, BaseException):
        yield f"A {' and a '.join(f'`{base.__name__}`' for base in kind.__bases__)}."
    elif kind.__name__ in _OPENED:
        yield f"```text\n{kind.__name__}{_signature(kind)}\n```"
    yield _doc(kind)
    if attrs.has(kind):
        yield _fields(kind)
    members = members_of(kind)
    properties = [(name, value) for name, value in members if isinstance(value, property) and value.__doc__]
    if properties:
        rows = [f"| `{name}` | `{_cell(_returns(value))}` | {_cell(_doc(value))} |" for name, value in properties]
        yield "| property | type | what it is |\n| --- | --- | --- |\n" + "\n".join(rows)
    for name, value in members:
        method = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(method):
            yield f"### `{kind.__name__}.{name}`"
            yield f"```text\n{name}{_signature(method)}\n```"
            yield _doc(method)


def members_of(kind: type) -> list[tuple[str, Any]]:
    """The public methods and properties of a class with its bases of this package, in the order of their sources."""
    found: dict[str, Any] = {}
    for owner in kind.__mro__:
        if owner.__module__.startswith("agent_memory"):
            for name, value in vars(owner).items():
                is_member = isinstance(value, property | classmethod | staticmethod) or inspect.isfunction(value)
                if is_member and not name.startswith("_"):
                    found.setdefault(name, value)
    return list(found.items())


def _fields(kind: type) -> str:
    comments = _comments(kind)
    rows = []
    for one in attrs.fields(kind):
        if one.name.startswith("_"):
            continue
        default = "" if one.default is attrs.NOTHING else f"`{_cell(_default(one.default))}`"
        rows.append(f"| `{one.name}` | `{_cell(str(one.type))}` | {default} | {_cell(comments.get(one.name, ''))} |")
    return "| field | type | default | what it is |\n| --- | --- | --- | --- |\n" + "\n".join(rows) if rows else ""


def _options() -> str:
    rows = [
        f"| `{one.name}` | `{_cell(str(Options.__annotations__[one.name].__forward_arg__))}` | "
        f"`{_cell(_default(one.default))}` | {_cell(one.metadata['sentence'])} |"
        for one in attrs.fields(Settings)
    ]
    return "| option | type | default | what it is |\n| --- | --- | --- | --- |\n" + "\n".join(rows)


def _default(value: Any) -> str:
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        return f"{value.factory.__name__}()"
    return re.sub(r" at 0x[0-9a-f]+", "", value.__name__ if inspect.isfunction(value) else repr(value))


def _signature(value: Any) -> str:
    """Its parameters; options are written as ``**options``, and their page lists them."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    options = set(Options.__annotations__)
    takes = options - {"tools"} <= set(found.parameters)
    kept = [one for one in found.parameters.values() if not (takes and one.name in options)]
    if kept and kept[0].name in ("self", "cls"):
        kept = kept[1:]
    text = re.sub(r" at 0x[0-9a-f]+", "", str(found.replace(parameters=kept)).replace("'", ""))
    if takes:
        inside, arrow, back = text.rpartition(" -> ") if " -> " in text else (text, "", "")
        text = f"{inside[:-1]}{', ' if kept else ''}**options){arrow}{back}"
    return text


def _returns(value: property) -> str:
    return str(inspect.signature(value.fget).return_annotation) if value.fget else ""


def _doc(value: Any) -> str:
    """A docstring as Markdown: its list of options is left out, drawings keep their lines."""
    text = inspect.cleandoc(value.__doc__ or "").partition("\n\nOptions:\n")[0]
    blocks = []
    for block in text.split("\n\n"):
        drawn = block.startswith("    ") and not block.lstrip().startswith("- ")
        blocks.append(f"```text\n{inspect.cleandoc(block)}\n```" if drawn else block)
    return "\n\n".join(blocks)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _comments(kind: type) -> dict[str, str]:
    """What stands behind ``#:`` at a class's fields, at the end of their lines or above them."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        try:
            lines, _ = inspect.getsourcelines(owner)
        except (OSError, TypeError):
            continue
        above: list[str] = []
        name = ""
        for line in lines:
            code, sign, said = line.partition("#:")
            if match := re.match(r"    (\w+): ", code):
                name = match[1]
                found[name] = " ".join([*above, said.strip()] if sign else above) or found.get(name, "")
            elif sign and code.strip() and name and not found.get(name):
                found[name] = said.strip()
            above = [*above, said.strip()] if sign and not code.strip() else []
    return found


def _lines_of(home: str) -> list[str]:
    return Path(inspect.getfile(import_module(f"agent_memory.{home}"))).read_text(encoding="utf-8").splitlines()


def _comment_above(home: str, name: str) -> str:
    lines = _lines_of(home)
    at = next(i for i, line in enumerate(lines) if re.match(rf"{name}\b.*=", line))
    said = lines[at].partition("#:")[2].strip()
    above = []
    while at > 0 and lines[at - 1].startswith("#:"):
        at -= 1
        above.insert(0, lines[at].removeprefix("#:").strip())
    return " ".join([*above, said]).strip()


def _spelled(home: str, name: str) -> str:
    for node in ast.parse("\n".join(_lines_of(home))).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name and getattr(node, "value", None) is not None:
            return ast.unparse(node.value)  # type: ignore[attr-defined]
    return "..."


# pages


def reference() -> dict[str, str]:
    """The reference's pages by file name."""
    pages = {}
    for page, (title, intro) in PAGES.items():
        mine = [name for name in names() if page_of(name) == page]
        body = "\n\n".join(_entry(name) for name in mine)
        pages[f"{page}.md"] = f"# {title}\n\n{BEGIN}\n\n{intro}\n\n{body}\n"
    rows = [
        f"| [{title}]({page}.md) | {', '.join(_link(name, page) for name in names() if page_of(name) == page)} |"
        for page, (title, _) in PAGES.items()
    ]
    head = "# Reference\n\n" + BEGIN + "\n\nEvery public name of `agent_memory`, with its units and errors.\n\n"
    tree = "```{toctree}\n:hidden:\n\n" + "\n".join(PAGES) + "\n```\n"
    pages["index.md"] = head + "| page | names |\n| --- | --- |\n" + "\n".join(rows) + "\n\n" + tree
    return pages


def _link(name: str, page: str) -> str:
    return f"[`{name}`]({page}.md#{name.lower()})"


def commands() -> list[tuple[str, Any]]:
    """Every command of the command line with its words, groups before what is in them."""
    import typer

    from agent_memory.cli import app

    def walk(group: Any, words: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            yield f"{words}{name}", command
            if hasattr(command, "commands"):
                yield from walk(command, f"{words}{name} ")

    return list(walk(typer.main.get_command(app), ""))


def command_texts() -> str:
    """The help of every command, as it stands in docs/cli.md."""
    return "\n\n".join(_command(words, command) for words, command in commands())


def _command(words: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = [f"{one.name.upper()}" if one.required else f"[{one.name.upper()}]" for one in arguments]
    rows = [f"| `{one.name.upper()}` | {_cell(one.help or '')} |" for one in arguments]
    for one in options:
        default = "" if one.default in (None, False, "", ()) or callable(one.default) else f" Default: {one.default}."
        rows.append(f"| `{', '.join(one.opts)}` | {_cell(one.help or '')}{default} |")
    text = _cell(inspect.cleandoc(command.help or ""))
    return f"### `{' '.join(['agent-memory', words, *usage])}`\n\n{text}\n\n| | |\n| --- | --- |\n" + "\n".join(rows)


def with_commands(page: str) -> str:
    """A page with what stands between its two marks replaced by the help of every command."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{command_texts()}\n\n{END}{rest.partition(END)[2]}"


def llms() -> str:
    """llms.txt: every page with the first sentence under its title, for programs that read documentation."""
    lines = ["# agent_memory", "", _first(DOCS.parent / "README.md"), "", "## Pages", ""]
    for path in sorted(DOCS.rglob("*.md")):
        name = path.relative_to(DOCS).as_posix()
        if not name.startswith("_build"):
            title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
            lines.append(f"- [{title}]({name}): {_first(path)}")
    return "\n".join(lines) + "\n"


def _first(path: Path) -> str:
    """The first sentence of a page's first paragraph, links as their text."""
    body = path.read_text(encoding="utf-8").partition("\n")[2]
    blocks = (block.strip() for block in body.split("\n\n"))
    text = next((b for b in blocks if b and b[0] not in "<#|`:-("), "")
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(text.split())).replace("**", "")
    return re.split(r"(?<=[.:]) ", plain)[0].rstrip(":")


def pages() -> dict[Path, str]:
    """Every generated file with its text."""
    found = {DOCS / "reference" / name: text for name, text in reference().items()}
    cli = DOCS / "cli.md"
    found[cli] = with_commands(cli.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Write what has changed; llms.txt last, of the pages as they are then."""
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    (DOCS / "llms.txt").write_text(llms(), encoding="utf-8")


if __name__ == "__main__":
    main()

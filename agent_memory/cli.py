"""The command line: ``agent-memory``, or ``python -m agent_memory``. Needs the extra ``cli``.

Over public names alone. ``ls``, ``show``, ``du``, ``verify`` and ``export`` open the store for reading: no model is loaded, and
another process may hold it. Every command takes ``--json``. Exit codes: 0 done, 1 an error of the library (one line on
stderr), 2 a wrong command line, 3 damage found.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from agent_memory.errors import INSTALL, AgentMemoryError

try:
    import rich.console
    import rich.table
    import typer
except ImportError as error:
    raise SystemExit(f"the command line needs typer and rich: {INSTALL['cli']} ({error})") from error

if TYPE_CHECKING:
    from agent_memory.agent import Agent
    from agent_memory.memory import Memory
    from agent_memory.store.view import StoreView
    from agent_memory.types import Reply

DAMAGE = 3

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Agents on a local model that resume where they stopped.",
)

Store = Annotated[str | None, typer.Option("--store", "-s", help="The store's folder; else the user's data folder.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Hub id, folder or .gguf file, or echo.")]
Salt = Annotated[str, typer.Option(help="The tenant whose agents are meant.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Name = Annotated[str, typer.Argument(help="The agent's name.")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens of a reply.")]


def main() -> None:
    """Run the command line; an error of the library is one line on stderr and exit code 1."""
    try:
        app()
    except AgentMemoryError as error:
        rich.console.Console(stderr=True).print(
            f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise SystemExit(1) from None


@app.command()
def ls(store: Store = None, salt: Salt = "", as_json: AsJSON = False) -> None:
    """List the agents of a store, newest use first."""
    with _view(store, salt) as view:
        agents = view.agents()
    rows = [
        (a.name, a.n_turns, a.n_messages, a.n_tokens, "pinned" if a.is_pinned else "", _ago(a.used_s)) for a in agents
    ]
    if as_json:
        _print_json([_plain(agent) for agent in agents])
    else:
        _print_table(("agent", "turns", "messages", "tokens", "", "last used"), rows, empty="no agents")


@app.command()
def show(name: Name, store: Store = None, salt: Salt = "", as_json: AsJSON = False) -> None:
    """Show an agent's conversation."""
    with _view(store, salt) as view:
        found = view.show(name)
    if as_json:
        _print_json({**_plain(found.info), "messages": [_plain(message) for message in found.messages]})
        return
    info = found.info
    _say(f"{info.name}: {info.n_turns} turns, {info.n_tokens:,} tokens, last used {_ago(info.used_s)}")
    for message in found.messages:
        _say(f"\n[{message.role}] {message.content}")
        for call in message.tool_calls:
            _say(f"  calls {call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})")
    if found.damage:
        _say(f"\n{found.damage} is damaged: the conversation is shown up to there")


@app.command()
def du(store: Store = None, salt: Salt = "", as_json: AsJSON = False) -> None:
    """Show what each agent's KV takes on disk, largest first."""
    with _view(store, salt) as view:
        uses = view.du()
    if as_json:
        _print_json({**_plain(uses), "agents": [_plain(use) for use in uses.agents]})
        return
    rows = [(use.name, _size(use.own_bytes), _size(use.shared_bytes), use.n_files) for use in uses.agents]
    _print_table(("agent", "its own", "shared with others", "files"), rows, empty="no agents")
    _say(
        f"KV {_size(uses.kv_bytes)}, of it {_size(uses.anonymous_bytes)} of prompts without an agent; "
        f"logs {_size(uses.log_bytes)}"
    )


@app.command()
def verify(store: Store = None, salt: Salt = "", as_json: AsJSON = False) -> None:
    """Read and check every stored byte; exit code 3 where something is damaged."""
    with _view(store, salt) as view:
        report = view.verify()
    if as_json:
        _print_json({**_plain(report), "ok": report.ok})
    else:
        _say(f"{report.segments} segments, {report.turns} turns, {_size(report.bytes_read)} read")
        for line in report.damaged:
            _say(f"damaged: {line}")
    if not report.ok:
        raise typer.Exit(DAMAGE)


@app.command()
def export(
    name: Name,
    file: Annotated[str, typer.Argument(help="The file to write.")],
    log_only: Annotated[bool, typer.Option("--log-only", help="Leave the KV out.")] = False,
    store: Store = None,
    salt: Salt = "",
    as_json: AsJSON = False,
) -> None:
    """Write an agent, as it is stored, to one file: its words, its versions and its KV."""
    with _view(store, salt) as view:
        view.export(name, file, log_only=log_only)
    n_bytes = Path(file).expanduser().stat().st_size
    if as_json:
        _print_json({"agent": name, "file": file, "bytes": n_bytes})
    else:
        _say(f"{name} is in {file}, {_size(n_bytes)}")


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="A file that export wrote.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name for the agent.")] = None,
    model: Model = None,
    store: Store = None,
    salt: Salt = "",
    as_json: AsJSON = False,
) -> None:
    """Take in an agent from a file; under another model its words alone, and its KV is computed anew."""
    with _memory(model, store, salt) as memory:
        info = memory.import_agent(file, name).info
    if as_json:
        _print_json(_plain(info))
    else:
        _say(f"{info.name}: {info.n_turns} turns, {info.n_tokens:,} tokens")


@app.command()
def ask(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Continue this agent's conversation.")] = None,
    model: Model = None,
    store: Store = None,
    salt: Salt = "",
    max_tokens: MaxTokens = 512,
    as_json: AsJSON = False,
) -> None:
    """Ask once, print the reply as it comes, and say what was reused."""
    text = sys.stdin.read() if prompt == "-" else prompt
    with _memory(model, store, salt) as memory:
        handle = memory.stream(text, agent=agent, max_tokens=max_tokens)
        reply = handle.result() if as_json else _told(handle)
    if as_json:
        _print_json({"text": reply.text, "finish": reply.finish, "usage": _plain(reply.usage)})


@app.command()
def chat(
    name: Name,
    model: Model = None,
    store: Store = None,
    salt: Salt = "",
    system: Annotated[str | None, typer.Option(help="System prompt of a new agent.")] = None,
    max_tokens: MaxTokens = 512,
) -> None:
    """Talk to an agent; it resumes where it stopped. Commands: /rewind, /info, /quit."""
    with _memory(model, store, salt) as memory:
        agent = memory.agent(name, system=system)
        info = agent.info
        _say(f"{name}: {info.n_turns} turns, {info.n_tokens:,} tokens. /rewind takes a turn back, /info, /quit.")
        for line in _lines("> "):
            if line in ("/quit", "/exit"):
                break
            _answer(agent, line, max_tokens)


def _answer(agent: Agent, line: str, max_tokens: int) -> None:
    try:
        if line == "/rewind":
            agent.rewind()
            _say(f"taken back; {agent.info.n_turns} turns are left")
        elif line == "/info":
            info = agent.info
            _say(f"{info.n_turns} turns, {info.n_messages} messages, {info.n_tokens:,} tokens")
        elif line.startswith("/"):
            _say(f"no such command: {line}. Known: /rewind, /info, /quit")
        elif line.strip():
            _told(agent.stream(line, max_tokens=max_tokens))
    except KeyboardInterrupt:
        _say("\ncancelled; the conversation is as before")
    except AgentMemoryError as error:
        _say(f"{type(error).__name__}: {error}")


@app.command()
def rm(name: Name, store: Store = None, model: Model = None, salt: Salt = "", as_json: AsJSON = False) -> None:
    """Delete an agent: its log and its KV. Exit code 1 where there is none of that name."""
    with _memory(model, store, salt) as memory:
        is_gone = memory.delete(name)
    if as_json:
        _print_json({"deleted": is_gone})
    else:
        _say(f"{name} is deleted" if is_gone else f"no agent is named {name!r}")
    if not is_gone:
        raise typer.Exit(1)


@app.command()
def stats(model: Model = None, store: Store = None, salt: Salt = "", as_json: AsJSON = False) -> None:
    """Open the model and the store, and print every figure of both."""
    with _memory(model, store, salt) as memory:
        found = memory.stats()
    if as_json:
        _print_json(_plain(found))
    else:
        _print_table(("figure", "value"), [(name, str(value)) for name, value in found.rows()])


@app.command()
def doctor(
    model: Model = None,
    store: Store = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of each choice why, and what would change it.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """Say what was found on this machine, what was chosen and where from, and what would make it faster."""
    with _memory(model, store, "") as memory:
        found = memory.doctor(explain=explain)
    if as_json:
        _print_json(found.to_dict())
    else:
        _say(str(found))


@app.command()
def config(as_json: AsJSON = False) -> None:
    """Print every setting with its default."""
    import attrs

    from agent_memory.config import Config

    defaults = {one.name: getattr(Config(), one.name) for one in attrs.fields(Config)}
    if as_json:
        _print_json(defaults)
    else:
        _print_table(("setting", "default"), [(name, repr(value)) for name, value in defaults.items()])


@app.command()
def version(as_json: AsJSON = False) -> None:
    """Print the versions of the library, of MLX and of mlx-lm."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    import agent_memory

    found = {"agent_memory": agent_memory.__version__}
    for package in ("mlx", "mlx-lm"):
        try:
            found[package] = version_of(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if as_json:
        _print_json(found)
    else:
        _print_table(("package", "version"), list(found.items()))


# opening


def _view(store: str | None, salt: str) -> StoreView:
    from agent_memory.requests.opening import open_store

    return open_store(store, salt=salt)


@contextmanager
def _memory(model: str | None, store: str | None, salt: str) -> Iterator[Memory]:
    from agent_memory import Config, EchoRunner, Memory

    with Memory(EchoRunner() if model == "echo" else model, store, config=Config(salt=salt)) as memory:
        yield memory


# printing


def _told(handle: Any) -> Reply:
    """Print a reply as it comes, and one line on what it reused."""
    for piece in handle.text():
        sys.stdout.write(piece)
        sys.stdout.flush()
    _say("")
    reply: Reply = handle.result()
    usage = reply.usage
    where = f" from {usage.tier}" if usage.cached_tokens else ""
    said = f"{usage.cached_tokens:,} tokens reused{where}, {usage.computed_tokens:,} computed, {usage.ttft_s:.2f} s"
    rich.console.Console(stderr=True).print(f"{said}{'' if usage.miss is None else f', {usage.miss}'}", style="dim")
    return reply


def _lines(prompt: str) -> Iterator[str]:
    """What a person types, until the end of input."""
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return
        except KeyboardInterrupt:
            _say("")


def _say(text: str) -> None:
    rich.console.Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str = "nothing") -> None:
    """A table for people: numbers to the right."""
    if not rows:
        _say(empty)
        return
    table = rich.table.Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        is_number = all(isinstance(row[number], int) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    rich.console.Console().print(table)


def _cell(value: Any) -> Any:
    from rich.text import Text

    return Text(f"{value:,}" if isinstance(value, int) else str(value))  # no markup: an agent's name is anybody's text


def _plain(value: Any) -> dict[str, Any]:
    import attrs

    return attrs.asdict(value)


def _print_json(value: Any) -> None:
    default: Callable[[Any], Any] = lambda other: dict(other) if hasattr(other, "keys") else str(other)  # noqa: E731
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=default, indent=2) + "\n")


def _size(n_bytes: int) -> str:
    """Bytes in words: 12.3 MiB."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{n_bytes} B" if unit == "B" else f"{size:.1f} {unit}"


def _ago(unix_s: float) -> str:
    """A time in words: 3 hours ago."""
    since = max(0.0, time.time() - unix_s)
    for unit, seconds in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if since >= seconds:
            n = int(since // seconds)
            return f"{n} {unit}{'' if n == 1 else 's'} ago"
    return "just now"

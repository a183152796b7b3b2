"""The command line: ``agent-memory``, or ``python -m agent_memory``. Needs the extra ``cli``.

Commands that read a store open it for reading: no model is loaded, and another process may hold it. Every command takes
``--json`` but ``chat``. ``app.py`` has the exit codes.
"""

from __future__ import annotations

from collections.abc import Callable

from agent_memory.errors import INSTALL, AgentMemoryError

try:
    import typer
except ImportError as error:
    raise SystemExit(f"the command line needs typer and rich: {INSTALL['cli']} ({error})") from error

from agent_memory.cli.changing import explain, fork, gc, rekey, rm
from agent_memory.cli.machine import check_model, config, doctor, list_models, stats, tune, version
from agent_memory.cli.moving import export, import_agent
from agent_memory.cli.printing import tell
from agent_memory.cli.reading import du, ls, show, verify
from agent_memory.cli.recalling import episodes, recall
from agent_memory.cli.talking import ask, chat

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Agents on a local model that resume where they stopped.",
)
_FIRST: tuple[Callable[..., None], ...] = (ls, show, du, verify, ask, chat, explain, fork, rm, gc, rekey, export)
_LAST: tuple[Callable[..., None], ...] = (recall, episodes, stats, doctor, tune)

for command in _FIRST:
    app.command()(command)
app.command("import")(import_agent)
for command in _LAST:
    app.command()(command)
models = typer.Typer(invoke_without_command=True, callback=list_models)
models.command("check")(check_model)
app.add_typer(models, name="models")
app.command()(config)
app.command()(version)


def main() -> None:
    """Run the command line; an error of the library is one line on stderr and exit code 1."""
    try:
        app()
    except AgentMemoryError as error:
        tell(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None

"""What every command shares: its options, its way to a store, a model or recall, and the exit codes.

Exit codes: 0 done; 1 an error of the library (one line on stderr), or nothing of that name; 2 a wrong command line; 3
damage found, or a model that cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent_memory.errors import AgentMemoryError

if TYPE_CHECKING:
    from agent_memory.agent import Agent
    from agent_memory.memory import Memory
    from agent_memory.reader.view import StoreView

NOTHING, DAMAGE = 1, 3


def complete_agents(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the store's agents that begin with what was typed, for a shell's completion."""
    try:
        with view(context.params.get("store"), context.params.get("salt") or "") as found:
            return [agent.name for agent in found.agents() if agent.name.startswith(incomplete)]
    except AgentMemoryError:
        return []


Store = Annotated[str | None, typer.Option("--store", "-s", help="The store's folder; else the user's data folder.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Hub id, folder, .gguf file, or echo; else the starter model.")
]
Salt = Annotated[str, typer.Option(help="The tenant whose agents are meant.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Name = Annotated[str, typer.Argument(help="The agent's name.", autocompletion=complete_agents)]
MaxTokens = Annotated[int, typer.Option(help="Most tokens of a reply.")]
Workspace = Annotated[str, typer.Option(help="The workspace that is searched.")]


def view(store: str | None, salt: str) -> StoreView:
    """Open a store for reading: no model, no lock."""
    from agent_memory.requests.opening import open_store

    return open_store(store, salt=salt)


@contextmanager
def memory_of(model: str | None, store: str | None, salt: str, *, read_only: bool = False) -> Iterator[Memory]:
    """Open a Memory on a model and a store; ``echo`` is the stand-in without a model."""
    from agent_memory import Config, EchoRunner, Memory

    runner = EchoRunner() if model == "echo" else model
    with Memory(runner, store, config=Config(salt=salt), read_only=read_only) as memory:
        yield memory


def agent_of(memory: Memory, name: str) -> Agent:
    """Return an agent that exists. Raises UnknownAgentError."""
    from agent_memory.errors import UnknownAgentError

    if all(info.name != name for info in memory.agents()):
        raise UnknownAgentError(name)
    return memory.agent(name)


@contextmanager
def recall_file(store: str | None, salt: str, open_as: Any, workspace: str) -> Iterator[Any]:
    """Open the context memory or the episodes of a store: no model, and another process may have them open.

    Raises StoreError where the store has none.
    """
    from agent_memory.errors import StoreError
    from agent_memory.log.blobs import salt_digest
    from agent_memory.log.files import RECALL
    from agent_memory.requests.opening import store_path

    folder = store_path(store)
    file = Path(":memory:") if folder is None else folder / RECALL
    if not file.is_file():
        raise StoreError(f"nothing was remembered here: there is no file {file}. Agents remember with recall=True")
    with open_as(file, salt=salt_digest(salt).hex(), workspace=workspace) as opened:
        yield opened

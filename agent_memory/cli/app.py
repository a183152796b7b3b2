"""What every command shares: its options, its way to a store, a model or recall, and the exit codes.

Exit codes: 0 done; 1 an error of the library (one line on stderr), or nothing of that name; 2 a wrong command line; 3
damage found, or a model that cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent_memory.errors import AgentMemoryError

if TYPE_CHECKING:
    from agent_memory.agent import Agent
    from agent_memory.memory import Memory
    from agent_memory.reader.view import StoreView
    from agent_memory.sealing.keys import Keys

NOTHING, DAMAGE = 1, 3


def complete_agents(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the store's agents that begin with what was typed, for a shell's completion."""
    try:
        given = context.params
        with view(given.get("store"), given.get("salt") or "", given.get("key_file")) as found:
            return [agent.name for agent in found.agents() if agent.name.startswith(incomplete)]
    except AgentMemoryError:
        return []


Store = Annotated[str | None, typer.Option("--store", "-s", help="The store's folder; else the user's data folder.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Hub id, folder, .gguf file, or echo; else the starter model.")
]
Salt = Annotated[str, typer.Option(help="The tenant whose agents are meant.")]
KeyFile = Annotated[
    Path | None, typer.Option(help="A file whose bytes, all of them, are the key of an encrypted store.")
]
SealFile = Annotated[
    Path | None,
    typer.Option("--seal", help="A file whose bytes, all of them, are the key that the agent's file is sealed under."),
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Name = Annotated[str, typer.Argument(help="The agent's name.", autocompletion=complete_agents)]
MaxTokens = Annotated[int, typer.Option(help="Most tokens of a reply.")]
Workspace = Annotated[str, typer.Option(help="The workspace that is searched.")]


def read_key(file: Path | None) -> bytes | None:
    """Return the key in a file; None without one. Raises ConfigError where it cannot be read."""
    from agent_memory.errors import ConfigError

    try:
        return None if file is None else file.expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"the key file {file} cannot be read: {error.strerror}") from error


def host_keys(file: Path | None) -> Keys | None:
    """Return what is derived from the key in a file; None without one. Raises ConfigError."""
    from agent_memory.sealing.keys import keys_of

    key = read_key(file)
    return None if key is None else keys_of(key, "--key-file")


def view(store: str | None, salt: str, key_file: Path | None = None) -> StoreView:
    """Open a store for reading: no model, no lock."""
    from agent_memory.requests.opening import open_store

    return open_store(store, salt=salt, key=read_key(key_file))


@contextmanager
def memory_of(
    model: str | None, store: str | None, salt: str, key_file: Path | None = None, *, read_only: bool = False
) -> Iterator[Memory]:
    """Open a Memory on a model and a store; ``echo`` is the stand-in without a model."""
    from agent_memory import Config, EchoRunner, Memory

    runner = EchoRunner() if model == "echo" else model
    config = Config(salt=salt, key=read_key(key_file))
    with Memory(runner, store, config=config, read_only=read_only) as memory:
        yield memory


def agent_of(memory: Memory, name: str) -> Agent:
    """Return an agent that exists. Raises UnknownAgentError."""
    from agent_memory.errors import UnknownAgentError

    if all(info.name != name for info in memory.agents()):
        raise UnknownAgentError(name)
    return memory.agent(name)


@contextmanager
def recall_file(store: str | None, salt: str, key_file: Path | None, open_as: Any, workspace: str) -> Iterator[Any]:
    """Open the context memory or the episodes of a store: no model, and another process may have them open.

    Raises StoreError where the store has none.
    """
    from agent_memory.errors import StoreError
    from agent_memory.log.blobs import salt_digest
    from agent_memory.log.files import RECALL
    from agent_memory.log.keyfile import read_keys
    from agent_memory.recall.database import Database
    from agent_memory.requests.opening import store_path
    from agent_memory.sealing.sqlite import FileKey

    folder = store_path(store)
    file = Path(":memory:") if folder is None else folder / RECALL
    if not file.is_file():
        raise StoreError(f"nothing was remembered here: there is no file {file}. Agents remember with recall=True")
    database = Database(file, key=FileKey.of(read_keys(file.parent, host_keys(key_file)), "recall"))
    with closing(database), open_as(database, salt=salt_digest(salt).hex(), workspace=workspace) as opened:
        yield opened

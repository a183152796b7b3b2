"""Commands that move an agent: to a file, and from one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent_memory.cli.app import AsJSON, KeyFile, Model, Name, Salt, SealFile, Store, memory_of, read_key, view
from agent_memory.cli.printing import plain, print_json, say, tell
from agent_memory.views.units import count, size


def export(
    name: Name,
    file: Annotated[str, typer.Argument(help="The file to write.")],
    log_only: Annotated[bool, typer.Option("--log-only", help="Leave the KV out.")] = False,
    store: Store = None,
    salt: Salt = "",
    key_file: KeyFile = None,
    seal: SealFile = None,
    as_json: AsJSON = False,
) -> None:
    """Write an agent, as it is stored, to one file: its words, its versions and its KV."""
    with view(store, salt, key_file) as opened:
        opened.export(name, file, log_only=log_only, key=read_key(seal))
    n_bytes = Path(file).expanduser().stat().st_size
    if as_json:
        print_json({"agent": name, "file": file, "bytes": n_bytes, "sealed": seal is not None})
    else:
        say(f"{name} is in {file}, {size(n_bytes)}{', sealed' if seal is not None else ''}")
    if key_file is not None and seal is None:
        tell(f"{file} is not encrypted, and the store is: --seal FILE seals it under the key in FILE")


def import_agent(
    file: Annotated[str, typer.Argument(help="A file that export wrote.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name for the agent.")] = None,
    model: Model = None,
    store: Store = None,
    salt: Salt = "",
    key_file: KeyFile = None,
    seal: SealFile = None,
    as_json: AsJSON = False,
) -> None:
    """Take in an agent from a file; under another model its words alone, and its KV is computed anew."""
    with memory_of(model, store, salt, key_file) as memory:
        info = memory.import_agent(file, name, key=read_key(seal)).info
    if as_json:
        print_json(plain(info))
    else:
        say(f"{info.name}: {count(info.n_turns, 'turn')}, {count(info.n_tokens, 'token')}")

"""Commands on one agent that need its model, and two on the store: explain, fork, rm; gc, rekey."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent_memory.cli.app import (
    NOTHING,
    AsJSON,
    KeyFile,
    Model,
    Name,
    Salt,
    Store,
    agent_of,
    host_keys,
    memory_of,
    read_key,
)
from agent_memory.cli.printing import as_bytes, plain, print_json, print_table, say
from agent_memory.views.units import size


def explain(
    name: Name,
    message: Annotated[str | None, typer.Argument(help="The next message; else the conversation as it stands.")] = None,
    model: Model = None,
    store: Store = None,
    salt: Salt = "",
    key_file: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """Explain what an agent's next turn would reuse, from where, and why no more."""
    with memory_of(model, store, salt, key_file, read_only=True) as memory:
        report = agent_of(memory, name).explain(message)
    if as_json:
        print_json(report.to_dict())
    else:
        say(str(report))


def fork(
    name: Name,
    new: Annotated[str, typer.Argument(help="The new agent's name.")],
    at: Annotated[str | None, typer.Option(help="A number of turns, or a checkpoint's label; else all turns.")] = None,
    model: Model = None,
    store: Store = None,
    salt: Salt = "",
    key_file: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """Make another agent that goes on from where this one stands. No KV is copied."""
    with memory_of(model, store, salt, key_file) as memory:
        made = agent_of(memory, name).fork(new, at=int(at) if at is not None and at.isdecimal() else at)
        info = made.info
    if as_json:
        print_json(plain(info))
    else:
        say(f"{new} goes on from turn {info.n_turns} of {name}")


def rm(
    name: Name,
    store: Store = None,
    model: Model = None,
    salt: Salt = "",
    key_file: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """Delete an agent: its log and its KV. Exit code 1 where there is none of that name."""
    with memory_of(model, store, salt, key_file) as memory:
        is_gone = memory.delete(name)
    if as_json:
        print_json({"deleted": is_gone})
    else:
        say(f"{name} is deleted" if is_gone else f"no agent is named {name!r}")
    if not is_gone:
        raise typer.Exit(NOTHING)


def gc(
    to: Annotated[str | None, typer.Option(help="Evict KV until the store takes so much: 50GB, 512MiB.")] = None,
    free: Annotated[str | None, typer.Option(help="Evict KV until so much is freed.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")] = False,
    store: Store = None,
    salt: Salt = "",
    key_file: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """Free disk: remove files that nothing names and, down to a size, KV of lowest worth. Logs and pinned KV stay.

    Covers the KV of all tenants, and names the agents of one. Needs no model; the store must not be in use, but for
    --dry-run.
    """
    from agent_memory.requests.opening import store_path
    from agent_memory.store.collecting import collect

    if to is not None and free is not None:
        raise typer.BadParameter("give --to or --free, not both")
    found = collect(
        store_path(store),
        salt=salt,
        to_bytes=None if to is None else as_bytes(to),
        free_bytes=None if free is None else as_bytes(free),
        is_dry_run=dry_run,
        key=host_keys(key_file),
    )
    if as_json:
        print_json(plain(found))
        return
    rows = [(name, size(n)) for name, n in found.agents.items()]
    print_table(("agent", "KV that would go" if dry_run else "KV that went"), rows, empty="no agent loses KV")
    say(f"{size(found.before_bytes)} before, {size(found.after_bytes)} after{' (estimated)' if dry_run else ''}")


def rekey(
    to: Annotated[Path | None, typer.Option(help="A file with the new key; without it the store is decrypted.")] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Write all of it anew, under another inner key.")] = False,
    store: Store = None,
    key_file: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """Put a store under another key; without --key-file it is encrypted for the first time.

    The store must not be in use. To or from no key, or with --anew, all of it is written anew, which takes its size
    again on the disk.
    """
    from agent_memory.requests.rekeying import rekey as change

    if to is None and key_file is None:
        raise typer.BadParameter("give --to, --key-file, or both")
    change(store, read_key(key_file), read_key(to), anew=anew)
    if as_json:
        print_json({"encrypted": to is not None})
    else:
        say("the store is encrypted under the new key" if to is not None else "the store is not encrypted any more")

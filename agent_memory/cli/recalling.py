"""Commands that search what was remembered, without a model: recall and episodes."""

from __future__ import annotations

from typing import Annotated

import typer

from agent_memory.cli.app import AsJSON, KeyFile, Salt, Store, Workspace, recall_file
from agent_memory.cli.printing import day, plain, print_json, print_table

Most = Annotated[int, typer.Option("-k", help="Most rows.")]


def recall(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Most = 10,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only this kind: chat, note, decision ...; repeatable.")
    ] = None,
    workspace: Workspace = "default",
    store: Store = None,
    salt: Salt = "",
    key_file: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """Search context memory by words, best first."""
    from agent_memory.recall.context import ContextMemory

    with recall_file(store, salt, key_file, ContextMemory, workspace) as context:
        hits = context.recall(query, k=k, kinds=kind or ())
    if as_json:
        print_json([plain(hit) for hit in hits])
        return
    rows = [(hit.item.id, f"{hit.score:.2f}", hit.item.kind, day(hit.item.at), hit.item.text) for hit in hits]
    print_table(("id", "score", "kind", "told", "text"), rows, empty="nothing was found")


def episodes(
    task: Annotated[str | None, typer.Argument(help="A task: episodes like it, best first; else the newest.")] = None,
    k: Most = 10,
    workspace: Workspace = "default",
    store: Store = None,
    salt: Salt = "",
    key_file: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """List episodes: the newest, or those most like a task."""
    from agent_memory.recall.episodes import EpisodicMemory

    with recall_file(store, salt, key_file, EpisodicMemory, workspace) as opened:
        found = opened.newest(k) if task is None else [hit.episode for hit in opened.recall(task, k=k)]
    if as_json:
        print_json([plain(record) for record in found])
        return
    rows = [(one.id, day(one.started_s), one.state, _ended(one.outcome), len(one.steps), one.task) for one in found]
    print_table(("id", "started", "state", "outcome", "steps", "task"), rows, empty="no episodes")


def _ended(outcome: object) -> str:
    success = getattr(outcome, "success", None)
    return "" if success is None else "success" if success else "failure"

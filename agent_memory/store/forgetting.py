"""Forgetting: replace turns of agents' logs, and delete the KV that was computed on them.

Deleted are pieces that only these agents' lineages use, and pieces that no agent's lineage uses.
"""

from __future__ import annotations

from collections.abc import Collection

from agent_memory.log.logs import Rewritten, replace_turns
from agent_memory.store.catalog import Catalog
from agent_memory.store.deletion import NOBODY, delete_agent
from agent_memory.store.manifest import Manifest
from agent_memory.store.rows import unpack


def rewrite(manifest: Manifest, logs: Rewritten, kv_of: Collection[int]) -> None:
    """Commit the replaced turns, and give the KV of agents ``kv_of``, and KV of no agent, to ``NOBODY``. I/O thread."""
    with manifest.database.transaction() as db:
        replace_turns(db, logs)
        for agent_id in kv_of:
            db.execute("UPDATE OR REPLACE lineages SET agent = ? WHERE agent = ?", (NOBODY, agent_id))
        ends = [
            (NOBODY, identity, unpack(pieces)[-1][0])
            for identity, pieces in db.execute("SELECT identity, pieces FROM segments").fetchall()
        ]
        db.executemany("INSERT OR IGNORE INTO lineages VALUES (?, ?, ?)", ends)


def delete_unowned(manifest: Manifest, catalog: Catalog | None) -> None:
    """Delete the KV of ``NOBODY``; afterwards no file contains bytes of it, or of replaced turns. I/O thread.

    Also deletes KV that an earlier process gave to ``NOBODY`` and did not delete.
    """
    if catalog is not None:
        delete_agent(catalog, NOBODY)
    manifest.database.fold()

"""What is forgotten in agents' logs: turns written anew, and the KV that was computed on them deleted.

KV goes by lineage: what these agents' lineages used and no other agent's does, and whatever no agent's lineage uses.
"""

from __future__ import annotations

from collections.abc import Collection

from agent_memory.log.logs import Rewritten, replace_turns
from agent_memory.store.catalog import Catalog
from agent_memory.store.deletion import delete_agent
from agent_memory.store.manifest import Manifest
from agent_memory.store.rows import unpack

#: The number of an agent that never is: lineages are given to it, and end with it.
_NOBODY = 2**40


def rewrite(manifest: Manifest, logs: Rewritten, kv_of: Collection[int]) -> None:
    """Commit other turns of some logs, and that the KV of some agents, and of no agent, is nobody's. I/O thread."""
    with manifest.database.transaction() as db:
        replace_turns(db, logs)
        for agent_id in kv_of:
            db.execute("UPDATE OR REPLACE lineages SET agent = ? WHERE agent = ?", (_NOBODY, agent_id))
        ends = [
            (_NOBODY, identity, unpack(pieces)[-1][0])
            for identity, pieces in db.execute("SELECT identity, pieces FROM segments").fetchall()
        ]
        db.executemany("INSERT OR IGNORE INTO lineages VALUES (?, ?, ?)", ends)


def delete_unowned(manifest: Manifest, catalog: Catalog | None) -> None:
    """Delete the KV that is nobody's; no file holds bytes of it, or of replaced turns, afterwards. I/O thread.

    What an earlier process did not get to is deleted too.
    """
    if catalog is not None:
        delete_agent(catalog, _NOBODY)
    manifest.database.fold()

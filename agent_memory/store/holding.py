"""What forks and versions hold of stored KV: the piece that their ids end with, found once it is stored. I/O thread.

A holder is an agent by its number, or a version by the number that it was given. It holds KV as every agent does: a
lineage under its number ends with the last piece that is all of its ids.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent_memory.log.logs import Logs
from agent_memory.prefix.index import Ids
from agent_memory.store.catalog import Catalog
from agent_memory.store.deletion import NOBODY, delete_agent
from agent_memory.store.edit import Edit, HeadMove, apply

_TRIES = 8  #: saves after which a holder's KV is not looked for any more: it was not written


def hold(catalog: Catalog, held: Sequence[tuple[int, Ids]]) -> None:
    """Let holders keep the stored KV of their ids, and no other; that of saves under way is found when they commit."""
    for number, ids in held:
        catalog.awaited[number] = (ids, _TRIES)
    settle_held(catalog)


def settle_held(catalog: Catalog) -> None:
    """Look for the KV of holders that is not all found yet; each save that commits may have stored it."""
    for number, (ids, tries) in list(catalog.awaited.items()):
        head, n_tokens = _end_of(catalog, ids)
        former = [one for one in catalog.manifest.heads_of(number, catalog.identity) if one != head]
        if (head is not None or former) and Logs(catalog.manifest.database).has_holder(number):
            apply(catalog, Edit(lineage=HeadMove(number, catalog.identity, head, former)))
        catalog.awaited[number] = (ids, tries - 1)
        if n_tokens == len(ids) or tries <= 1:
            del catalog.awaited[number]


def release(catalog: Catalog, agent_id: int, ids: Ids) -> None:
    """Delete KV that an agent's log no longer leads to, as far as nobody else holds it. ``ids``: of its log."""
    head, _ = _end_of(catalog, ids)
    former = [one for one in catalog.manifest.heads_of(agent_id, catalog.identity) if one != head]
    for one in former:
        apply(catalog, Edit(lineage=HeadMove(NOBODY, catalog.identity, one)))
    apply(catalog, Edit(lineage=HeadMove(agent_id, catalog.identity, head, former)))
    delete_agent(catalog, NOBODY)


def _end_of(catalog: Catalog, ids: Ids) -> tuple[bytes | None, int]:
    """The last stored piece that is all of these ids, and how many they are with those before it."""
    head, n_tokens = None, 0
    with catalog.lock:
        for piece, take in catalog.index.plan(ids) if catalog.index is not None else ():
            if take < piece.n_tokens:
                break
            head, n_tokens = piece.id, n_tokens + take
    return head, n_tokens

"""How rows end, with a reply or without one, and who owns their KV from then on."""

from __future__ import annotations

from agent_memory.scheduler.eviction import Evictor
from agent_memory.scheduler.faults import stripped
from agent_memory.scheduler.replying import Replies
from agent_memory.scheduler.row import Row
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.saving import Saver
from agent_memory.store.tiers import HotTier, Lineage


class Leaving:
    """Takes rows out of the batch and gives their KV to the hot tier, then to the saver. Engine thread only.

    - The reply first: nobody waits for KV to be put away.
    - Where nothing was computed, nothing is kept. A lineage that another one of its agent replaces is settled first.
    - Kinds of KV that cannot be stored stay hot alone.
    """

    # Whose the KV of the tokens of a row is, once it has ended. ``n`` is ``kv.n_tokens``.
    #
    #   the row                     tokens              before     after                          written
    #   finished                    [0, n)              batch      hot tier                       [stored, n), promised
    #   finished, max_tokens 0      [0, n_prompt)       row        hot tier                       [stored, n), promised
    #   cancelled, timed out,       [0, fed)            row        hot tier                       [stored, fed), where
    #     closed, prefill raised                                                                  that is worth a write
    #   the same while it decodes   [0, n)              batch      hot tier                       the same
    #   failed while it decodes     [0, n_sound)        batch      hot tier, cut to a place       the same
    #                                                              where the KV can be cut
    #                               [n_sound, n)        batch      nobody's
    #   its group's step raised     [0, n)              batch      nobody's                       nothing
    #
    # ``n_sound == n_prompt + len(output) - 1``. An anonymous row is written where that is worth it, however it ends.

    def __init__(
        self,
        running: Running,
        replies: Replies,
        hot: HotTier,
        saver: Saver,
        evictor: Evictor,
        *,
        is_storable: bool,
    ) -> None:
        self._running, self._replies, self._evictor = running, replies, evictor
        self._hot, self._saver, self._is_storable = hot, saver, is_storable

    def finish(self, rows: list[Row]) -> None:
        """End rows with their replies."""
        for row, kv in zip(rows, self._running.take_kv(rows), strict=True):
            try:
                self._replies.add(row.request, row.outcome(kv))
            except Exception as error:  # noqa: BLE001 - text that cannot be read: the caller's to see
                row.request.feed.fail(stripped(error))
            self._keep(row.lineage(kv))
            self._running.remove(row)
        self._evictor.free()

    def retire(self, rows: list[Row], *, have_failed: bool = False) -> None:
        """End rows that have no reply; their requests have ended. ``have_failed``: in a decode step."""
        for row, kv in zip(rows, self._running.take_kv(rows), strict=True):
            if not have_failed or row.cut_to_sound(kv):
                self._keep(row.lineage(kv, is_turn=False))
            self._running.remove(row)
        self._evictor.free()

    def _keep(self, lineage: Lineage) -> None:
        if not len(lineage.ids):
            return
        for replaced in self._hot.put(lineage):
            self._saver.settle(replaced)
        if self._is_storable:
            self._saver.begin(lineage)

"""How rows end, with a reply or without one, and who owns their KV from then on."""

from __future__ import annotations

from agent_memory.scheduler.eviction import Evictor
from agent_memory.scheduler.faults import stripped
from agent_memory.scheduler.replying import Replies
from agent_memory.scheduler.row import Row
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.saving import Saver
from agent_memory.tiers.hot import HotTier, Lineage


class Leaving:
    """Takes rows out of the batch and gives their KV to the hot tier, then to the saver. Engine thread only.

    - The reply first: nobody waits for KV to be put away.
    - A row without KV leaves nothing. A lineage that a newer one of its agent replaces is settled first.
    - Kinds of KV that cannot be stored stay hot alone.
    """

    # Who owns the KV of a row's tokens before and after its end, and what of it is written. ``n`` is ``kv.n_tokens``.
    #
    #   the row ended                              tokens           before  after     written
    #   with a reply                               [0, n)           batch   hot tier  an agent's always
    #   with a reply, max_tokens 0                 [0, n_prompt)    row     hot tier  always: asked for ahead of need
    #   cancelled, timed out or closed in prefill  [0, fed)         row     hot tier  where worth it
    #   its prefill step raised                    [0, fed)         row     hot tier  where worth it
    #     and the device may have changed it       [0, fed)         row     nobody    never
    #   cancelled, timed out or closed in decode   [0, n)           batch   hot tier  where worth it
    #   its processor, constraint or text raised   [0, n_sound)     batch   hot tier  where worth it
    #                                              [n_sound, n)     batch   nobody    never
    #   its group's decode step raised             [0, n)           batch   nobody    never
    #
    # ``n_sound``: the last place at or before ``n_prompt + len(output) - 1`` to which the KV can be truncated.
    # "Where worth it": where computing it again is dearer than a write (``store/writing.py``); so anonymous replies.

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

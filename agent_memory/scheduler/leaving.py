"""How rows end, with a reply or without one, and who owns their KV from then on."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from agent_memory.errors import AgentMemoryError
from agent_memory.scheduler.ahead import Ahead
from agent_memory.scheduler.eviction import Evictor
from agent_memory.scheduler.faults import stripped
from agent_memory.scheduler.replying import Replies
from agent_memory.scheduler.request import Request
from agent_memory.scheduler.row import Row
from agent_memory.scheduler.running import Running
from agent_memory.scheduler.saving import Saver
from agent_memory.scheduler.unkept import Unkept
from agent_memory.tiers.hot import Heir, HotTier, Lineage
from agent_memory.types import ToolCall


class Leaving:
    """Takes rows out of the batch and gives their KV to the hot tier, then to the saver. Engine thread only.

    - The reply first: no caller waits for KV to be saved.
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
        unkept: Unkept,
        ahead: Ahead,
        *,
        is_storable: bool,
    ) -> None:
        self._running, self._replies, self._evictor, self._unkept = running, replies, evictor, unkept
        self._hot, self._saver, self._ahead, self._is_storable = hot, saver, ahead, is_storable

    def finish(self, rows: list[Row]) -> None:
        """End rows with their replies."""
        for row, kv in zip(rows, self._running.take_kv(rows), strict=True):
            calls: Sequence[ToolCall] = ()
            try:
                outcome = row.outcome(kv)
                calls = outcome.parsed.tool_calls
                self._replies.add(row.request, outcome)
            except Exception as error:  # noqa: BLE001 - text that cannot be read: the caller's to see
                row.request.feed.fail(stripped(error))
            self._ahead.ended(row.request.owner, kv.nbytes, calls)
            self._keep(row.lineage(kv))
            self._running.remove(row)
        self._evictor.free()

    def retire(self, rows: list[Row], *, have_failed: bool = False) -> None:
        """End rows that have no reply; their requests have ended. ``have_failed``: in a decode step."""
        for row in rows:
            if not row.is_ready:
                self._unkept.note(row.request.owner, row.ids, "cancelled")
        for row, kv in zip(rows, self._running.take_kv(rows), strict=True):
            if not have_failed or row.cut_to_sound(kv):
                self._ahead.ended(row.request.owner, kv.nbytes)
                self._keep(row.lineage(kv, is_turn=False))
            self._running.remove(row)
        self._evictor.free()

    def note_unstarted(self, request: Request) -> None:
        """Record that a request ended in the line, before any of its prompt was computed."""
        with contextlib.suppress(AgentMemoryError):  # a prompt that cannot be planned explains nothing
            self._unkept.note(request.owner, request.ids(request.asker.prompt()), "cancelled")

    def adopt(self, owner: str, heir: Heir) -> None:
        """Give the idle KV of one agent to another, and save it as the other's, unless that one is temporary."""
        lineage = self._hot.of(owner)
        if lineage is not None:
            self._saver.settle(lineage)
            self._hot.take(lineage)
            lineage.owner, lineage.agent_id, lineage.is_temporary = heir.owner, heir.agent_id, heir.is_temporary
            self._keep(lineage)

    def _keep(self, lineage: Lineage) -> None:
        if not len(lineage.ids):
            return
        for replaced in self._hot.put(lineage):
            self._saver.settle(replaced)
            self._ahead.replaced(replaced)
        if self._is_storable and not lineage.is_temporary:
            self._saver.begin(lineage)

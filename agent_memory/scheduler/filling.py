"""Filling: one restore ahead of need on its way into the hot tier, a tensor at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from agent_memory.kvfile.sources import MeteredSource
from agent_memory.protocols import KV, Batch
from agent_memory.scheduler.absent import Absent
from agent_memory.tiers.hot import Lineage
from agent_memory.tiers.lookup import Match
from agent_memory.tiers.tiers import Tiers
from agent_memory.types import weakest

log = logging.getLogger("agent_memory.ahead")


class Filling:
    """The KV of at most one absent agent, half restored. Engine thread only.

    - ``nbytes`` are allocated for it, or will be, until ``step`` has returned its lineage or it is abandoned.
    - It may be abandoned at any time: nothing depends on it. What fails or is damaged is abandoned, and the agent's
      next turn restores it, or computes it, as it would have.
    """

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self.nbytes = 0
        self._absent: Absent | None = None
        self._match: Match | None = None
        self._source: MeteredSource | None = None
        self._steps: Iterator[KV | None] = iter(())

    @property
    def owner(self) -> str | None:
        """The agent whose KV is being restored; None: nobody's."""
        return None if self._absent is None else self._absent.owner

    def begin(self, batch: Batch, absent: Absent, match: Match, nbytes: int) -> None:
        """Start to restore a match. The batch has ``restoring``."""
        assert self._absent is None, "one restore ahead at a time"
        source = self._tiers.source(match, match.n_tokens)
        self._absent, self._match, self._source, self.nbytes = absent, match, source, nbytes
        self._steps = batch.restoring(source)  # type: ignore[attr-defined]  # asked for by ``Ahead``

    def step(self, *, is_awaited: bool = False) -> Lineage | None:
        """Restore one tensor; return the lineage after the last one. Ended without one, ``owner`` is None.

        ``is_awaited``: a request waits for it.
        """
        source, match, absent = self._source, self._match, self._absent
        assert source is not None
        assert match is not None
        assert absent is not None
        before = source.n_read
        try:
            kv = next(self._steps)
            is_sound = kv is None or source.check()
        except Exception as error:  # noqa: BLE001 - whatever a restore raised: the agent's next turn goes without it
            log.warning("KV of %d tokens was not restored ahead of need: %s", match.n_tokens, error)
            kv, is_sound = None, False
        self._tiers.count(source.n_read - before, is_ahead=not is_awaited)
        if kv is None and is_sound:
            return None
        if kv is None or not is_sound:
            self.abandon()
            return None
        self._end()
        self._tiers.touch(match)
        return Lineage(
            absent.owner,
            match.ids.copy(),
            match.made,
            kv,
            weakest(match.exactness, source.exactness),
            absent.agent_id,
            is_saved=True,
            is_temporary=absent.is_temporary,
            is_ahead=True,
        )

    def abandon(self) -> None:
        """Drop what was restored so far, which was of no use; idempotent."""
        if self._absent is not None:
            self._tiers.foresight.restored(is_useful=False)
        self._end()

    def _end(self) -> None:
        if self._source is not None:
            self._source.close()
        self._steps, self._absent, self._match, self._source, self.nbytes = iter(()), None, None, None, 0

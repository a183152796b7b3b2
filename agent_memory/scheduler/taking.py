"""Taking: rows take the tokens that a step has sampled for them."""

from __future__ import annotations

from collections.abc import Iterable

from agent_memory.scheduler.faults import stripped
from agent_memory.scheduler.leaving import Leaving
from agent_memory.scheduler.row import Row
from agent_memory.scheduler.running import Running


class Taking:
    """Hands decoding rows their tokens, and ends those that are done. Engine thread only.

    A row whose logits processor, constraint or text raises ends alone; what came before that step is kept.
    """

    def __init__(self, running: Running, leaving: Leaving) -> None:
        self._running, self._leaving = running, leaving

    def take(self, tokens: Iterable[tuple[int, int]]) -> None:
        """Give each row its tokens, as (row, token) in order."""
        failed: list[Row] = []
        finished: list[Row] = []
        for number, token in tokens:
            row = self._running.decoding[number]
            if row.finish is not None or row in failed:
                continue  # a verified draft goes on behind the end of the text
            try:
                if raised := self._running.batch.error(number):
                    raise raised
                row.accept(token)
                finished += [row] if row.finish is not None else []
            except Exception as error:  # noqa: BLE001 - a user's callable, or text that cannot be parsed: one row ends
                row.request.feed.fail(stripped(error))
                failed.append(row)
        if failed:
            self._leaving.retire(failed, have_failed=True)
        if finished:
            self._leaving.finish(finished)

"""Fetch: one question to the bucket, and the KV that came of it. Requests wait for it, each for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from attrs import frozen

from agent_memory.config import Codec
from agent_memory.exchange.chunks import Fetched
from agent_memory.kvcache.layout import Layout
from agent_memory.prefix.pieces import Ids
from agent_memory.prefix.resume import Needs

_TOKEN_S = 1e-3  #: to compute a token, as long as that is not measured
#: The longest that a request waits for a bucket that does not answer: with the engine's own sleep below 0.25 s.
PATIENCE_S = 0.23


@frozen(kw_only=True)
class Terms:
    """The model whose KV is exchanged."""

    identity: str
    layout: Layout
    codec: Codec
    needs: Needs | None  #: None: every layer is full attention
    chunk_tokens: int


class Fetch:
    """KV of some ids on its way from the bucket. Any thread.

    - ``is_coming`` ends with the answer, or when it is late: ``PATIENCE_S`` after the question, or half as long again
      as the transfer should take. The leading chunks that have come by then, and the one that is awaited, are stored.
    - One fetch may be shared by all requests that begin alike.
    """

    is_elsewhere = True  #: no step of the engine brings it nearer

    def __init__(
        self,
        ids: Ids,
        start: int,
        n_have: int,
        token_s: float | None,
        clock: Callable[[], float],
        *,
        patience_s: float = PATIENCE_S,
        most_bytes: int = 0,
    ) -> None:
        self.ids, self.start, self.n_have, self.token_s = ids, start, n_have, token_s
        self.most_bytes = most_bytes  #: what may be held in memory for it
        self.began = time.perf_counter()
        self.is_answered = False  #: True once the bucket has said what is there
        self.is_missing = False  #: True if the bucket has nothing of use
        self.lacks_first = False  #: True if not even the first chunk is there: then no text that begins so has any
        self._clock, self._lock = clock, threading.Lock()
        self._limit = clock() + patience_s
        self._found: Fetched | None = None
        self._is_over = False

    @property
    def is_coming(self) -> bool:
        """True while waiting pays."""
        return not self._is_over and not self.is_late

    @property
    def is_late(self) -> bool:
        """True once no request waits for it any more."""
        return self._clock() >= self._limit

    @property
    def is_hanging(self) -> bool:
        """True while a bucket lets requests wait in vain: nothing else should be asked of it."""
        return self.is_late and not (self.is_answered or self._is_over)

    def expect(self, seconds: float | None) -> None:
        """Grant a transfer half as long again as it should take; None: not measured, so as long as computing would."""
        compute_s = (self.token_s or _TOKEN_S) * (len(self.ids) - self.n_have)
        more_s = compute_s if seconds is None else 1.5 * seconds
        with self._lock:
            self._limit += more_s

    def end(self, found: Fetched | None) -> None:
        """Record what came."""
        self._found = found
        self._is_over = True

    def found(self, ids: Ids, n_live: int, n_stored: int) -> Fetched | None:
        """Return the KV that a request takes up: longer than what is live, and no shorter than what is stored.

        What was adopted meanwhile is as long on disk as here, and faster from here.
        """
        found = None if self._found is None else self._found.up_to(ids)
        is_best = found is not None and found.stop > n_live and found.start <= n_stored <= found.stop
        return found if is_best else None

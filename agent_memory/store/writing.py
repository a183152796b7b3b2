"""Write admission: which KV is worth a write. Pure.

- KV of an agent's turns, and of prefixes from ``Memory.prefill``, is always written: it is promised.
- An anonymous lineage is written at once if computing it again would take longer than writing it, else at its second
  use. Most one-off prompts never come back; their bytes would wear the disk and evict others.
- Once a day's bytes are spent no KV is written, promised or not: that costs a recomputation. Logs do not count.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from attrs import define, frozen

log = logging.getLogger("agent_memory.store")

_REMEMBERED = 8192  #: anonymous lineages that were seen once and not written
_DAY_S = 86_400
_WEIGHT = 0.2  #: weight of a new measurement in a running mean


@define
class _Mean:
    """A running mean; None until the first measurement."""

    value: float | None = None

    def note(self, value: float) -> None:
        self.value = value if self.value is None else (1 - _WEIGHT) * self.value + _WEIGHT * value


@frozen
class Written:
    """KV bytes written on one day."""

    day: int = 0  #: days since 1970, UTC
    n_bytes: int = 0

    @classmethod
    def parse(cls, text: str | None) -> Written:
        """Parse the output of ``str``; zero bytes if it cannot be parsed."""
        try:
            day, n_bytes = (int(part) for part in (text or "").split())
        except ValueError:
            return cls()
        return cls(day, n_bytes)

    def __str__(self) -> str:
        return f"{self.day} {self.n_bytes}"


class Unwritten:
    """KV whose save failed, by lineage. Any thread."""

    def __init__(self) -> None:
        self._n_tokens: dict[int | bytes, int] = {}  # by agent, or by the last piece of an anonymous lineage
        self._is_told = False

    def note(self, agent_id: int | None, head: bytes | None, n_tokens: int) -> None:
        """Record that ``n_tokens`` of a lineage were not written."""
        key = agent_id if agent_id is not None else head
        if key is not None and n_tokens:
            self._n_tokens[key] = n_tokens
            while len(self._n_tokens) > _REMEMBERED:
                del self._n_tokens[next(iter(self._n_tokens))]

    def written(self, agent_id: int | None, head: bytes | None) -> None:
        """Record that all of a lineage is on disk, or that its agent was deleted."""
        for key in (agent_id, head):
            if key is not None:
                self._n_tokens.pop(key, None)

    @property
    def n_tokens(self) -> int:
        """Tokens that were not written."""
        return sum(dict(self._n_tokens).values())

    def tell(self) -> None:
        """Log one warning, and no other until all KV is written."""
        n_lineages = len(self._n_tokens)
        if n_lineages and not self._is_told:
            log.warning(
                "store: the logs are on disk, KV of %d tokens of %d conversations is not: it stays in memory, and is "
                "written with their next turn that the disk takes, or computed again after a restart",
                self.n_tokens,
                n_lineages,
            )
        self._is_told = bool(n_lineages)


class WriteAdmission:
    """Decides which KV is written, by measured rates, earlier uses and the bytes of the day.

    Any thread: each figure has one writer.
    """

    def __init__(
        self,
        bytes_per_day: int | None,
        written: Written,
        compute_s: Callable[[int], float | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bytes_per_day, self._written, self._clock = bytes_per_day, written, clock
        self._compute_s = compute_s  # seconds to compute a number of tokens; None: not measured
        self._seen: dict[bytes, None] = {}  # oldest first
        self._byte_s, self._commit_s = _Mean(), _Mean()

    @property
    def written(self) -> Written:
        """The bytes written today."""
        today = int(self._clock() // _DAY_S)
        return self._written if self._written.day == today else Written(today)

    def note_write(self, n_bytes: int, seconds: float) -> None:
        """Record a write of ``n_bytes`` that took ``seconds``. I/O thread."""
        self._byte_s.note(seconds / max(1, n_bytes))

    def note_commit(self, seconds: float) -> None:
        """Record a commit that took ``seconds``. I/O thread."""
        self._commit_s.note(seconds)

    def spend(self, n_bytes: int) -> None:
        """Count ``n_bytes`` of finished KV files against the day. I/O thread."""
        self._written = Written(self.written.day, self.written.n_bytes + n_bytes)

    def refusal(self, first: bytes, n_tokens: int, n_bytes: int, *, is_promised: bool) -> str | None:
        """Return why KV is not written, None if it is. ``first``: the id of its first piece. Engine thread."""
        if self._bytes_per_day is not None and self.written.n_bytes + n_bytes > self._bytes_per_day:
            return "bytes of the day"
        if is_promised or self._is_worth_it(n_tokens, n_bytes) or first in self._seen:
            self._seen.pop(first, None)
            return None
        self._seen[first] = None
        while len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return "used once"

    def _is_worth_it(self, n_tokens: int, n_bytes: int) -> bool:
        compute_s, byte_s, commit_s = self._compute_s(n_tokens), self._byte_s.value, self._commit_s.value
        if compute_s is None or byte_s is None or commit_s is None:
            return True  # not measured yet: write
        return compute_s > commit_s + n_bytes * byte_s

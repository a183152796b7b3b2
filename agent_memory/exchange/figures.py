"""What an exchange has counted, for ``stats()``."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

#: Every figure, in the order in which it is shown.
FIGURES = (
    "fetched_requests",
    "computed_requests",
    "fetched_chunks",
    "fetched_tokens",
    "fetched_bytes",
    "published_chunks",
    "published_bytes",
    "present_chunks",
    "asked",
    "not_there",
    "late",
    "damaged",
    "failed",
    "skipped",
    "outages",
)


class Figures:
    """Counts since the Memory was opened. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, name: str, n: int = 1) -> None:
        """Add to a count, one of ``FIGURES``."""
        with self._lock:
            self._counts[name] += n

    def counts(self) -> Mapping[str, int]:
        """Return all counts, those that are 0 too."""
        with self._lock:
            return {name: self._counts[name] for name in FIGURES}

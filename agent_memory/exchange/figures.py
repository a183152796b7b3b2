"""What an exchange has counted, for ``stats()``."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from agent_memory.figures import REMOTE_EVENTS

#: Bytes of objects, in ``Stats.remote_bytes``.
BYTES = ("fetched", "published")


class Figures:
    """Counts since the Memory was opened. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, name: str, n: int = 1) -> None:
        """Add to a count: one of ``REMOTE_EVENTS``, or bytes as ``bytes fetched``."""
        with self._lock:
            self._counts[name] += n

    def counts(self) -> Mapping[str, int]:
        """Return all counts of events, those that are 0 too."""
        with self._lock:
            return {name: self._counts[name] for name in REMOTE_EVENTS}

    def bytes(self) -> Mapping[str, int]:
        """Return the bytes of objects that came and went."""
        with self._lock:
            return {name: self._counts[f"bytes {name}"] for name in BYTES}

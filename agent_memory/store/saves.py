"""One save: the pieces of a lineage that are not stored yet, handed over tensor by tensor and committed as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from agent_memory.store.io import ITEM_BYTES
from agent_memory.store.planner import Segment
from agent_memory.store.segments import SegmentWriter

if TYPE_CHECKING:
    from agent_memory.store.catalog import Catalog


@frozen
class Part:
    """Tokens ``[start, stop)`` of the lineage, to be written as one segment."""

    start: int
    stop: int


class Save:
    """Made by ``Store.begin_save``; engine thread. Ends with ``finish`` or ``abandon``.

    A write that fails abandons the save quietly: it is counted, logged, and never reaches the caller.
    """

    def __init__(
        self,
        catalog: Catalog | None,
        segments: tuple[Segment, ...] = (),
        *,
        head: bytes | None = None,
        agent_id: int | None = None,
    ) -> None:
        self._catalog, self.segments, self.head, self.agent_id = catalog, segments, head, agent_id
        self.parts = tuple(Part(s.start, s.start + s.n_tokens) for s in segments)
        self.writers: list[SegmentWriter] = []  # I/O thread, as everything below
        self.is_over = False

    @property
    def ready(self) -> bool:
        """Whether the disk keeps up; while not, put() only costs memory."""
        return self._catalog is None or self._catalog.io.is_ready

    def put(self, part: int, tensor: int, array: np.ndarray[Any, Any]) -> None:
        """Queue one layout tensor of one part: (heads, n_tokens, row_bytes) uint8, C-contiguous; not copied."""
        catalog = self._catalog
        if catalog is None:
            return
        data = memoryview(np.ascontiguousarray(array)).cast("B")  # type: ignore[arg-type]
        for at in range(0, len(data), ITEM_BYTES):
            piece = data[at : at + ITEM_BYTES]
            catalog.io.submit(lambda piece=piece: catalog.write(self, part, tensor, piece), len(piece))  # type: ignore[misc]

    def finish(self) -> None:
        """Queue fsync, rename and commit, and the head of the agent's lineage."""
        catalog = self._catalog
        if catalog is not None and (self.segments or self.agent_id is not None):
            catalog.io.submit(lambda: catalog.commit(self))

    def abandon(self) -> None:
        """Drop what was put so far."""
        catalog = self._catalog
        if catalog is not None and self.segments:
            catalog.io.submit(lambda: catalog.abandon(self))

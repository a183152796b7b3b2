"""Running: the rows that have started and not ended, the batch that they decode in, and the bytes reserved for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from agent_memory.protocols import KV, Batch
from agent_memory.scheduler.admission import Admission, Place
from agent_memory.scheduler.counters import Counters
from agent_memory.scheduler.row import Row


class Running:
    """Rows from their start to their end, shared by starting, prefill, decode and leaving. Engine thread only.

    - A row is in ``prefilling`` (the oldest first) or in ``decoding`` (by number), never in both.
    - It has reserved bytes exactly as long as it is in one of them.
    - A prefilling row owns its KV; the KV of a decoding row is the batch's, and ``row.kv`` is None.
    - Of each row: ``0 <= base.n_tokens <= fed <= n_prefill <= n_prompt`` until its last prompt id was fed; from then
      on ``fed == n_prompt``.
    """

    def __init__(self, open_batch: Callable[[], Batch], admission: Admission, counters: Counters) -> None:
        self.prefilling: list[Row] = []
        self.decoding: dict[int, Row] = {}
        self._admission, self._counters, self._open_batch = admission, counters, open_batch
        self._batch: Batch | None = open_batch()

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def __iter__(self) -> Iterator[Row]:
        return iter([*self.decoding.values(), *self.prefilling])

    @property
    def batch(self) -> Batch:
        """The batch; a new one after ``drop``."""
        if self._batch is None:
            self._batch = self._open_batch()
        return self._batch

    @property
    def nbytes(self) -> int:
        """Bytes allocated for KV of all rows, padding and spare capacity included."""
        own = sum(row.kv.nbytes for row in self.prefilling if row.kv)
        return own + (self._batch.nbytes if self._batch else 0)

    def tidy(self, fits: Callable[[int], bool]) -> None:
        """Free the bytes that the batch keeps for rows that may come, unless so many fit."""
        spare_bytes = self._batch.spare_nbytes if self._batch else 0
        if spare_bytes and not fits(spare_bytes):
            self.batch.tidy()

    def add(self, row: Row, place: Place) -> None:
        """Add a row that starts to prefill, and reserve its bytes."""
        self._admission.add(row.number, place)
        self.prefilling.append(row)

    def count_fed(self, row: Row, stop: int) -> None:
        """Record that the prompt ids ``[row.fed, stop)`` were fed to the model."""
        self._counters.computed_ids += stop - row.fed
        row.advance(stop)
        row.request.feed.move("prefill", (row.fed, row.n_prompt))

    def join(self, row: Row) -> int | None:
        """Hand a row and its KV to the batch; if that raises, both stay where they were.

        Where more than the last id of its prompt is left, it is fed now, and the first token is returned.
        """
        request = row.request
        assert row.kv is not None
        token = self.batch.insert(
            row.number,
            row.kv,
            row.prompt.ids,
            group=row.group,
            sampling=request.sampling,
            logits_processors=request.logits_processors,
            constraint=request.constraint,
        )
        self.decoding[row.number] = row  # first: a row in both lists would still end, one in neither would not
        self.prefilling.remove(row)
        row.kv = None
        if token is not None:
            self.count_fed(row, row.n_prompt)
        return token

    def take_kv(self, rows: list[Row]) -> list[KV]:
        """Take the KV of rows that end, out of the batch if they decode. The caller removes the rows at once."""
        decoding = [row for row in rows if row.kv is None]
        if decoding:
            for row, kv in zip(decoding, self.batch.remove([row.number for row in decoding]), strict=True):
                row.kv = kv
        found = [row.kv for row in rows if row.kv is not None]
        separate = getattr(self._batch, "separate", None)
        if separate is not None:
            for kv in found:
                separate(kv)  # idle KV is evicted by its bytes: none of them may be another row's
        return found

    def remove(self, row: Row) -> None:
        """Remove a row from all lists, free its bytes, and clear its KV."""
        row.kv = None
        self.decoding.pop(row.number, None)
        if row in self.prefilling:
            self.prefilling.remove(row)
        self._admission.remove(row.number)

    def drop(self) -> None:
        """Drop all rows with their KV, whatever state the batch is in. Raises what ``Batch.close`` raises."""
        for row in self:
            row.kv = None
            self._admission.remove(row.number)
        self.decoding.clear()
        self.prefilling.clear()
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.close()

    def check(self) -> None:
        """Assert the invariants above; between two ticks."""
        waiting = {row.number for row in self.prefilling}
        assert len(waiting) == len(self.prefilling), "a row prefills twice"
        assert not waiting & self.decoding.keys(), "a row prefills and decodes"
        assert self._admission.rows == waiting | self.decoding.keys(), "reserved bytes without a row, or the reverse"
        assert all(row.kv is not None for row in self.prefilling), "a prefilling row without KV"
        assert all(row.kv is None for row in self.decoding.values()), "the KV of a decoding row has two owners"
        for row in self:
            row.check()

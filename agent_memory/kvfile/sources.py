"""Restores from disk: stored segments read into a KV, each in its own codec, every byte checked."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from attrs import frozen

from agent_memory.kvcache.coding import Coding, Encoded, coding
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.segments import OpenSegment, Rows
from agent_memory.log.damage import READ_ERRORS, DamageError, reason_of
from agent_memory.prefix.pieces import Ids, Segment
from agent_memory.protocols import Source
from agent_memory.sealing.keys import Keys
from agent_memory.types import Exactness, weakest


@frozen
class Span:
    """``take`` tokens of one segment whose rows are in its file, at position ``at`` of the KV that is filled."""

    segment: Segment
    path: Path
    at: int
    take: int

    @property
    def stop(self) -> int:
        """Position after its last token in the KV."""
        return self.at + self.take

    @property
    def first_row(self) -> int:
        """Row of the file that has its first token."""
        return self.at - self.segment.shared_stop


@frozen
class ResumeSpans:
    """The resume segments that a restore reads, and their first token with window rows.

    As many window rows as a restore at the newest chunk boundary needs, as far as they are stored.
    """

    spans: tuple[Span, ...] = ()
    held_from: int = 0
    is_whole: bool = True  #: False if one was removed since it was found


class MeteredSource(Source, Protocol):
    """A source that counts."""

    @property
    def n_read(self) -> int:
        """Bytes of rows and states read so far, from memory and disk, as they are stored."""

    @property
    def exactness(self) -> Exactness:
        """What may be said of window rows and states, beside the promise of the match."""


class SegmentSource:
    """The first ``n_tokens`` of a match, each segment in its own codec: a ``protocols.Source``.

    - ``on_damage(segment, reason, text)`` is called at most once, on the thread that found damage; nothing raises.
    - Several threads may read tensors at once; they end before ``close``.
    - ``is_whole`` False: some of its rows are in no file any more; it gives nothing.
    """

    def __init__(
        self,
        layout: Layout,
        spans: Sequence[Span],
        ids: Ids,
        on_damage: Callable[[Segment, str, str], None],
        *,
        keys: Keys | None,
        is_whole: bool = True,
    ) -> None:
        self._layout, self._spans, self._on_damage = layout, spans, on_damage
        self._n_tokens = len(ids)
        self._lock = threading.Lock()  # guards ``damage``
        self._open: list[OpenSegment] = []
        self._n_read = 0
        self.damage: str | None = None if is_whole else "rows that it shares were removed meanwhile"
        self._cut: int = self._n_tokens  # tokens from here on are zeros
        for span in spans:
            try:
                found = OpenSegment(span.path, span.segment, keys)
                self._open.append(found)
                start = span.segment.start
                stored = found.ids()[: span.stop - start]
                if span.first_row < 0 or not np.array_equal(stored, ids[start : span.stop]):
                    raise DamageError("damaged", f"{span.path.name}: it holds other ids than the index says")
            except READ_ERRORS as error:
                self._note(span, error)
                break

    @property
    def n_tokens(self) -> int:
        """How many tokens it holds."""
        return self._n_tokens

    @property
    def n_read(self) -> int:
        """Bytes of rows read from its files so far."""
        return self._n_read

    @property
    def exactness(self) -> Exactness:
        """``exact``: there are none."""
        return "exact"

    @property
    def held_from(self) -> int:
        """0: no layer has a window."""
        return 0

    def encoded(self, tensor: int) -> list[Encoded]:
        """Return the spans whose rows are stored encoded, checked."""
        spec = self._layout.tensors[tensor]
        found: list[Encoded] = []
        for i, span in enumerate(self._spans):
            if self.damage is not None:
                break
            form = coding(spec, self._open[i].codec)
            if form is None:
                continue
            try:
                raw = self._open[i].tensor(spec.name)
                self._count(len(raw))
            except READ_ERRORS as error:
                self._note(span, error)
                break
            rows = np.frombuffer(raw, np.uint8).reshape(spec.heads, -1, form.row_bytes)
            found.append(Encoded(span.at, span.stop, form, rows[:, span.first_row : span.first_row + span.take]))
        return found

    def read_state(self) -> None:
        """None: no layer has a state."""

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        """Fill one tensor: one ``preadv`` per segment, scattered over the heads of ``out``, and checked."""
        spec = self._layout.tensors[tensor]
        flat = out.cast("B") if out.format != "B" or out.ndim != 1 else out
        for i, span in enumerate(self._spans):
            if self.damage is None:
                if coding(spec, self._open[i].codec) is not None:
                    continue  # ``encoded`` returns them
                try:
                    self._read(i, span, tensor, flat, capacity)
                    continue
                except READ_ERRORS as error:
                    self._note(span, error)
            self._zero(tensor, flat, capacity, span.at)
            break

    def _read(self, i: int, span: Span, tensor: int, out: memoryview, capacity: int) -> None:
        spec = self._layout.tensors[tensor]
        row = spec.row_bytes
        runs = [
            out[(h * capacity + span.at) * row : (h * capacity + span.at + span.take) * row] for h in range(spec.heads)
        ]
        try:
            self._open[i].fill(spec.name, runs, span.first_row * row)
        except READ_ERRORS as error:
            raise DamageError(reason_of(error), f"{span.path.name}: {error}") from error
        self._count(spec.token_bytes * span.segment.n_own)

    def _count(self, n_bytes: int) -> None:
        with self._lock:  # two threads may read
            self._n_read += n_bytes

    def _zero(self, tensor: int, out: memoryview, capacity: int, at: int) -> None:
        spec = self._layout.tensors[tensor]
        for h in range(spec.heads):
            run = out[(h * capacity + at) * spec.row_bytes : (h * capacity + self._n_tokens) * spec.row_bytes]
            run[:] = bytes(len(run))

    def _note(self, span: Span, error: BaseException) -> None:
        with self._lock:
            is_first, self.damage = self.damage is None, self.damage or str(error)
        if is_first:
            self._on_damage(span.segment, reason_of(error), str(error))

    def check(self) -> bool:
        """True if everything read so far is what was written."""
        return self.damage is None

    def close(self) -> None:
        """Close the files; idempotent."""
        for found in self._open:
            found.close()


class StoredSource:
    """A match of a model that needs resume segments too: a ``protocols.Source``.

    ``on_damage(segment, reason, text)`` is called on the thread that found damage; nothing raises.
    """

    def __init__(
        self,
        layout: Layout,
        segments: SegmentSource,
        resume: ResumeSpans,
        on_damage: Callable[[Segment, str, str], None],
        keys: Keys | None,
    ) -> None:
        self._layout, self._segments, self._on_damage = layout, segments, on_damage
        self._held_from = resume.held_from
        self._lock = threading.Lock()  # an fd must not be closed, and its number reused, while another thread reads it
        self._spans: list[tuple[Span, OpenSegment]] = []
        self._is_sound, self._n_read = resume.is_whole, 0
        for span in resume.spans if resume.is_whole else ():
            try:
                self._spans.append((span, OpenSegment(span.path, span.segment, keys)))
            except DamageError as error:
                self._note(span, error)

    @property
    def n_tokens(self) -> int:
        """How many tokens it holds."""
        return self._segments.n_tokens

    @property
    def n_read(self) -> int:
        """Bytes of rows and states read from its files so far."""
        return self._segments.n_read + self._n_read

    @property
    def exactness(self) -> Exactness:
        """The weakest promise of its resume files."""
        return weakest("exact", *(source.exactness for _, source in self._spans))

    @property
    def held_from(self) -> int:
        """The first token whose window rows it holds."""
        return self._held_from

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        """Fill one tensor; of a window, its rows from ``held_from`` on."""
        number = tensor - len(self._layout.tensors)
        if number < 0:
            self._segments.read_into(tensor, out, capacity)
            return
        spec = self._layout.windows[number]
        into = np.frombuffer(out, np.uint8).reshape(spec.heads, capacity, spec.row_bytes)
        for start, stop, _, rows in self._rows(number, is_encoded=False):
            into[:, start:stop] = rows

    def encoded(self, tensor: int) -> list[Encoded]:
        """Return the spans whose rows are stored encoded, checked."""
        number = tensor - len(self._layout.tensors)
        if number < 0:
            return self._segments.encoded(tensor)
        rows = self._rows(number, is_encoded=True)
        return [Encoded(start, stop, form, found) for start, stop, form, found in rows if form is not None]

    def _rows(self, number: int, *, is_encoded: bool) -> Iterator[tuple[int, int, Coding | None, Rows]]:
        """Yield (start, stop, coding, rows) of one tensor's encoded spans, or of the others; from ``held_from`` on."""
        spec = self._layout.windows[number]
        with self._lock:
            for span, source in self._spans:
                if not span.take or not self._is_sound:
                    continue
                try:
                    form = coding(spec, source.codec)
                    if (form is not None) is not is_encoded:
                        continue
                    raw = np.frombuffer(source.tensor(spec.name), np.uint8)
                    self._n_read += raw.size
                    rows = raw.reshape(spec.heads, span.take, -1) if raw.size else raw.reshape(spec.heads, 0, 0)
                except READ_ERRORS as error:
                    self._note(span, error)
                    continue
                start, stop = max(span.at, self._held_from), min(span.stop, self.n_tokens)
                yield start - self._held_from, stop - self._held_from, form, rows[:, start - span.at : stop - span.at]

    def read_state(self) -> Rows | None:
        """Return the state at the end, verified; None if it is damaged."""
        with self._lock:
            if not self._is_sound:
                return None
            span, source = self._spans[-1]
            try:
                raw = source.tensor("state")
                self._n_read += len(raw)
            except READ_ERRORS as error:
                self._note(span, error)
                return None
            return np.frombuffer(raw, np.uint8)

    def _note(self, span: Span, error: BaseException) -> None:
        self._is_sound = False
        self._on_damage(span.segment, reason_of(error), f"{span.path.name}: {error}")

    def check(self) -> bool:
        """True if everything read so far is what had been written."""
        with self._lock:
            return self._is_sound and self._segments.check()

    def close(self) -> None:
        """Close the files; idempotent."""
        self._segments.close()
        with self._lock:
            for _, source in self._spans:
                source.close()


def checking(path: Path, segment: Segment, keys: Keys | None) -> Iterator[None]:
    """Read and check every byte of a segment's file, in steps of at most 8 MB. Raises DamageError."""
    with contextlib.closing(OpenSegment(path, segment, keys)) as source:
        yield from source.checking()

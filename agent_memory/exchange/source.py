"""KV that was fetched on its way into a live KV: a ``MeteredSource``."""

from __future__ import annotations

import numpy as np

from agent_memory.exchange.chunks import Bytes, Fetched
from agent_memory.kvcache.coding import Encoded, coding
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.sources import MeteredSource
from agent_memory.types import Exactness


class FetchedSource:
    """Tokens ``[0, fetched.stop)``: the store's own out of ``before``, the others out of memory, verified already."""

    # What is read, and from where:
    #
    #   tokens                          full-attention rows    window rows, state
    #   [0, fetched.start)              ``before``             none
    #   [fetched.start, fetched.stop)   memory                 memory: ``fetched.resume``

    def __init__(self, layout: Layout, fetched: Fetched, before: MeteredSource | None) -> None:
        assert (before is None) == (fetched.start == 0), "the store's own rows come first"
        self._layout, self._fetched, self._before = layout, fetched, before

    @property
    def n_tokens(self) -> int:
        """How many tokens it holds."""
        return self._fetched.stop

    @property
    def held_from(self) -> int:
        """The first token whose window rows it holds."""
        resume = self._fetched.resume
        return resume.start if resume is not None and self._layout.windows else 0

    @property
    def n_read(self) -> int:
        """Bytes read so far for the store's own tokens; what was fetched is in memory already."""
        return 0 if self._before is None else self._before.n_read

    @property
    def exactness(self) -> Exactness:
        """``exact``: the promise of ``fetched`` is of its resume object too."""
        return "exact"

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        """Fill one tensor. Encoded rows are left out."""
        n_full = len(self._layout.tensors)
        spec = (*self._layout.tensors, *self._layout.windows)[tensor]
        into = np.frombuffer(out, np.uint8).reshape(spec.heads, capacity, spec.row_bytes)
        if tensor >= n_full:
            resume = self._fetched.resume
            if resume is not None and coding(spec, resume.codec) is None:
                into[:, : resume.stop - resume.start] = resume.windows[tensor - n_full]
            return
        if self._before is not None:
            self._before.read_into(tensor, out, capacity)
        for one in self._fetched.chunks:
            if coding(spec, one.codec) is None:
                into[:, one.start : one.stop] = one.tensors[tensor]

    def encoded(self, tensor: int) -> list[Encoded]:
        """Return the encoded rows of one tensor."""
        n_full = len(self._layout.tensors)
        spec = (*self._layout.tensors, *self._layout.windows)[tensor]
        if tensor >= n_full:
            resume = self._fetched.resume
            form = None if resume is None else coding(spec, resume.codec)
            if resume is None or form is None:
                return []
            return [Encoded(0, resume.stop - resume.start, form, resume.windows[tensor - n_full])]
        found = [] if self._before is None else list(self._before.encoded(tensor))
        for one in self._fetched.chunks:
            if (form := coding(spec, one.codec)) is not None:
                found.append(Encoded(one.start, one.stop, form, one.tensors[tensor]))
        return found

    def read_state(self) -> Bytes | None:
        """Return the state at the end."""
        return None if self._fetched.resume is None else self._fetched.resume.state

    def check(self) -> bool:
        """True if what was read from the store's own files is what was written."""
        return self._before is None or self._before.check()

    def close(self) -> None:
        """Close the store's files; idempotent."""
        if self._before is not None:
            self._before.close()

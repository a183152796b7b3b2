"""Memory to read and decrypt into. A first touch of each 4 KiB costs more than what is written there: large pages."""

from __future__ import annotations

import contextlib
import mmap

PAGE_BYTES = 2 << 20  #: a large page, where the system has them


def pages(n_bytes: int) -> memoryview:
    """Return zeroed, writable memory; from half a large page on in whole ones, up to 2 MiB more than was asked for.

    It goes back to the system with its last view. Raises MemoryError.
    """
    if n_bytes < PAGE_BYTES // 2:
        return memoryview(bytearray(n_bytes))
    try:
        room = mmap.mmap(-1, -(-n_bytes // PAGE_BYTES) * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {n_bytes:,} bytes of memory") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them: small pages do
            room.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(room)[:n_bytes]

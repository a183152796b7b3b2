"""What the benchmarks share: real text, the machine's description, medians, and results as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def real_text() -> str:
    """English technical prose that every CPython ships: the language reference, as pydoc's help topics."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def text_of(tokenizer: Any, n_tokens: int, seed: int) -> str:
    """Real text of ``n_tokens`` that no other seed shares a first token run with."""
    body = real_text()
    start = (seed * 7919 * 13) % (len(body) - 12 * n_tokens - 100)
    ids = tokenizer.encode(f"Part {seed}. " + body[start : start + 12 * n_tokens])
    for n in range(n_tokens, n_tokens + 20):
        text = str(tokenizer.decode(ids[:n]))
        if len(tokenizer.encode(text)) == n_tokens:
            return text
    raise AssertionError(f"no text of exactly {n_tokens} tokens")


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def drop_page_cache(folder: Path) -> bool:
    """Ask the system to forget the pages of every file below ``folder``; False where it cannot."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
    return True


def write_json(path: str | None, **results: Any) -> None:
    """Write results with machine, versions and commit."""
    if not path:
        return
    from importlib.metadata import version

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    about = {
        "machine": f"{platform.system()} {platform.machine()} {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm", "numpy")},
        "commit": commit,
    }
    Path(path).write_text(json.dumps({**about, **results}, indent=1), encoding="utf-8")

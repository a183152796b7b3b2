"""Bytes, seconds, times and counts as people read them."""

from __future__ import annotations

import time


def size(n_bytes: int) -> str:
    """Return bytes in words: 12.3 MiB."""
    n = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024:
            return f"{n_bytes} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def seconds(s: float) -> str:
    """Return a duration in words: 12 ms, 3.4 s, 5 min."""
    if s < 1:
        return f"{s * 1e3:.0f} ms"
    return f"{s:.1f} s" if s < 120 else f"{s / 60:,.0f} min"


def ago(unix_s: float) -> str:
    """Return a time in words: 3 hours ago."""
    since = max(0.0, time.time() - unix_s)
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if since >= length:
            n = int(since // length)
            return f"{n:,} {unit}{'' if n == 1 else 's'} ago"
    return "just now"


def count(n: int, noun: str) -> str:
    """Return a number with its noun: 1 turn, 2 turns."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def short(text: str, most: int = 200) -> str:
    """Return a text, cut after ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"

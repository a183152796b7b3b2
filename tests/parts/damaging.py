"""Damage done to a store that no process holds, and whether it hit a byte that any reader depends on."""

from __future__ import annotations

import json
import random
from pathlib import Path


def segment_files(store: Path) -> list[Path]:
    """Every segment of a store, in a fixed order."""
    return sorted(store.glob("kv/*/*.safetensors"))


def flip(store: Path, draw: random.Random) -> tuple[Path, bool]:
    """Flip one random bit of one random segment: the file, and whether the byte is anything but padding."""
    file = draw.choice(segment_files(store))
    raw = bytearray(file.read_bytes())
    n_header = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(bytes(raw[8:n_header]))
    at = draw.randrange(len(raw))
    raw[at] ^= 1 << draw.randrange(8)
    file.write_bytes(raw)
    padding = [e["data_offsets"] for name, e in table.items() if name.startswith("pad.")]
    return file, not any(start <= at - n_header < stop for start, stop in padding)


def cut(store: Path, draw: random.Random, share: float) -> Path:
    """Keep the first ``share`` of one random segment."""
    file = draw.choice(segment_files(store))
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * share)])
    return file


def harm_anything(store: Path, draw: random.Random) -> Path:
    """Flip one bit, or in one of six rounds cut, any file, the manifest and its WAL in half of all rounds; which."""
    files = [f for f in sorted(store.rglob("*")) if f.is_file() and f.stat().st_size]
    is_top = draw.random() < 0.5
    file = draw.choice([f for f in files if (f.parent == store) == is_top])
    raw = bytearray(file.read_bytes())
    if draw.random() < 5 / 6:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    else:
        del raw[draw.randrange(len(raw)) :]
    file.write_bytes(raw)
    return file

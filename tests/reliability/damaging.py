"""Damage done to a closed store's segment files, and whether it hit a byte that any reader depends on."""

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

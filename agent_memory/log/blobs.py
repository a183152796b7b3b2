"""What is stored of texts and salts, and the checksum of an agent's own record. Pure."""

from __future__ import annotations

import json
from typing import Any

import xxhash


def text_blob(text: str) -> bytes:
    """UTF-8; a name may be any str, lone surrogates and NUL included."""
    return text.encode("utf-8", "surrogatepass")


def blob_text(blob: bytes) -> str:
    """The str that ``text_blob`` was given; of a damaged one, what can be read of it."""
    try:
        return bytes(blob).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return bytes(blob).decode("utf-8", "replace")


def salt_digest(salt: str) -> bytes:
    """What the manifest keeps of a salt: it is a secret."""
    return xxhash.xxh3_128_digest(text_blob("agent_memory.salt/1\0" + salt))


def agent_sum(
    name: str, system: str | None, tools: str, created_s: float, facts: str | None = None, branch: int | None = None
) -> bytes:
    """The checksum of an agent's own record."""
    kept: list[Any] = [name, system, tools, created_s]
    if facts is not None:  # records of older versions have none, and keep their checksum
        kept.append(facts)
    if branch is not None:  # likewise
        kept.append({"branch": branch})
    return xxhash.xxh3_64_digest(json.dumps(kept).encode())

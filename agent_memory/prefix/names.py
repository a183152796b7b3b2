"""Names of KV files, below the ``kv`` folder."""

from __future__ import annotations

import re
import uuid

SUFFIX = ".safetensors"
TEMP_SUFFIX = ".tmp"

_KV_NAME = re.compile(r"[0-9a-f]{16}/[0-9a-f]{32}(\.safetensors|\.tmp)")


def is_kv_name(name: str, *, finished: bool = False) -> bool:
    """True if this library makes files of this name; ``finished``: whole ones."""
    found = _KV_NAME.fullmatch(name)
    return found is not None and (not finished or found[1] == SUFFIX)


def new_file(identity: str) -> str:
    """Return a new, unused name."""
    return f"{identity[:16]}/{uuid.uuid4().hex}{SUFFIX}"

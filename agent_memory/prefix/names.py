"""Names of KV files, below the ``kv`` folder."""

from __future__ import annotations

import re
import uuid

SUFFIX = ".safetensors"
TEMP_SUFFIX = ".tmp"

_KV_FOLDER = re.compile(r"[0-9a-f]{16}")
_KV_NAME = re.compile(r"[0-9a-f]{16}/[0-9a-f]{32}(\.safetensors|\.tmp)")


def is_kv_name(name: str, *, finished: bool = False) -> bool:
    """True if this library makes files of this name; ``finished``: whole ones."""
    found = _KV_NAME.fullmatch(name)
    return found is not None and (not finished or found[1] == SUFFIX)


def is_kv_folder(name: str) -> bool:
    """True if this library makes folders of this name: one for each identity."""
    return _KV_FOLDER.fullmatch(name) is not None


def new_file(identity: str) -> str:
    """Return a new, unused name."""
    return f"{identity[:16]}/{uuid.uuid4().hex}{SUFFIX}"

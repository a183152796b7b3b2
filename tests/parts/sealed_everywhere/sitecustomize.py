"""Every store that a process with this folder in its PYTHONPATH opens is encrypted, under a key of its own.

Tests that know nothing of keys run so against encrypted stores, processes that they start included. Stores that were
written in the clear (fixtures) stay so.
"""

from __future__ import annotations

from pathlib import Path

from agent_memory.log import keyfile
from agent_memory.sealing.keys import Keys

HOST = Keys(b"a key for each store that a test opens")
_read, _open = keyfile.read_keys, keyfile.open_keys


def _host(root: Path, host: Keys | None) -> Keys | None:
    is_plain = keyfile.is_used(root) and not (root / keyfile.KEY_FILE).exists()
    return HOST if host is None and not is_plain else host


keyfile.read_keys = lambda root, host: _read(root, _host(root, host))
keyfile.open_keys = lambda root, host, files: _open(root, _host(root, host), files)

"""Names of objects, which tell nothing: HMAC-SHA256 of what an object is, under a key of one tenant.

- Who lists the bucket sees names, sizes and times. Without the key nobody finds out whether a given prompt is there.
- ``remote_key=b""`` gives names that everybody can compute: who lists the bucket can test guesses of a prompt, and
  whoever can write there can store KV that is taken for genuine. It is for a folder of one's own.
- Another key or another salt gives other names: tenants never meet.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from attrs import field, frozen

from agent_memory.sealing.keys import Keys, keys_of

VERSION = "v1"
PUBLIC = b"agent_memory: no key"  #: the secret of those who have none; it is as public as this file


@frozen
class RemoteKeys:
    """The keys of one tenant on a remote: for names and for bodies. Any thread.

    ``is_public``: there is no secret; bodies are readable, and checked against damage only.
    """

    name_key: bytes = field(repr=False)
    data_key: bytes = field(repr=False)
    is_public: bool


def remote_keys(secret: bytes | Callable[[], bytes], salt: str = "") -> RemoteKeys:
    """Derive a tenant's keys from the host's ``remote_key`` and its salt.

    ``b""`` itself, and never a function that returned nothing, means: no secret. Raises ConfigError, and what a
    function raises.
    """
    is_public = isinstance(secret, bytes) and not secret
    keys = Keys(PUBLIC) if is_public else keys_of(secret, "remote_key")
    tenant = salt.encode()
    return RemoteKeys(keys.key("remote names", tenant), keys.key("remote bodies", tenant), is_public)


@frozen
class ObjectNames:
    """Names of objects under one tenant's keys. Any thread; a name takes some microseconds."""

    _keys: RemoteKeys

    def chunk(self, chunk_id: bytes, kind: str, codec: str, rank: int = 0, world: int = 1) -> str:
        """Return the name of one chunk's object of that kind, codec and shard (``rank`` of ``world`` machines)."""
        return f"{VERSION}/kv/{self._digest('chunk', chunk_id, kind, codec, f'{rank}/{world}')}"

    def log(self, agent: str, number: int) -> str:
        """Return the name of part ``number`` of an agent's published log."""
        return f"{VERSION}/log/{self._digest('log', agent)[:40]}/{number:08d}"

    def versions(self, agent: str, id: str) -> str:
        """Return the name of an object that holds an agent's versions; ``id``: random, as the log's part has it."""
        return f"{VERSION}/log/{self._digest('log', agent)[:40]}/versions-{id}"

    def _digest(self, *parts: str | bytes) -> str:
        mac = hmac.new(self._keys.name_key, digestmod="sha256")
        for part in parts:  # each with its length: no two lists of parts are spelled alike
            text = part.encode() if isinstance(part, str) else part
            mac.update(len(text).to_bytes(4, "little") + text)
        return mac.hexdigest()

"""From ``Config`` to an open remote, as one value. Opens no socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from agent_memory.config import Config

if TYPE_CHECKING:
    from agent_memory.remote.breaker import Breaker
    from agent_memory.remote.bucket import Bucket
    from agent_memory.remote.names import ObjectNames, RemoteKeys
    from agent_memory.remote.rates import Rates


@frozen(kw_only=True)
class Remote:
    """One bucket under one tenant's keys, with what is known of its health and speed. Any thread."""

    bucket: Bucket
    keys: RemoteKeys = field(repr=False)
    names: ObjectNames
    breaker: Breaker
    rates: Rates
    is_writing: bool  #: False: nothing is published
    codec: str  #: the setting: of the KV that is looked for and published


def open_remote(config: Config) -> Remote | None:
    """Return the remote that a Config names; None: it names none, and nothing is imported for one.

    Raises ConfigError, MissingExtraError, and what a function ``remote_key`` raises.
    """
    if config.remote is None or config.remote_key is None:
        return None
    from agent_memory.remote.breaker import Breaker
    from agent_memory.remote.bucket import Bucket
    from agent_memory.remote.names import ObjectNames, remote_keys
    from agent_memory.remote.rates import Rates
    from agent_memory.sealing.keys import aead

    keys = remote_keys(config.remote_key, config.salt)
    if not keys.is_public:
        aead()  # a missing package is said now, not behind the first reply
    bucket = Bucket(config.remote)
    return Remote(
        bucket=bucket,
        keys=keys,
        names=ObjectNames(keys),
        breaker=Breaker(bucket.place),
        rates=Rates(),
        is_writing=config.remote_write,
        codec=config.cold_codec,
    )

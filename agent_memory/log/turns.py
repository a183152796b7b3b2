"""Turns as values, and their checksums. Pure."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xxhash
from attrs import field, frozen

from agent_memory.types import Finish, Message

Array = np.ndarray[Any, np.dtype[Any]]


@frozen
class Turn:
    """One turn of an agent's log: afterwards its ids are ``(ids before)[:keep] + ids``, its messages likewise."""

    messages: tuple[Message, ...]
    keep: int
    ids: Array = field(eq=False, repr=lambda a: f"<{len(a)} ids>")  #: u32
    tokenizer: str  #: digest
    finish: Finish | None
    created_s: float
    n_messages_kept: int  #: how many earlier messages stay
    n_kv: int = 0  #: how many of the agent's ids have had their KV computed
    n_reply: int | None = None  #: how many of the ids, the last ones, the model wrote; None: not known


def turn_sum(agent_id: int, number: int, turn: Turn, messages: str) -> bytes:
    """The checksum of one turn of a log."""
    facts = [agent_id, number, turn.keep, turn.n_messages_kept, turn.tokenizer, turn.finish, turn.created_s, turn.n_kv]
    if turn.n_reply is not None:  # turns of older versions have none, and keep their checksum
        facts.append(turn.n_reply)
    return xxhash.xxh3_64_digest(json.dumps(facts).encode() + messages.encode() + turn.ids.astype("<u4").tobytes())

"""Turns as values, the checksums of logs, and what is stored of texts. Pure."""

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


def turn_sum(agent_id: int, number: int, turn: Turn, messages: str) -> bytes:
    """The checksum of one turn of a log."""
    facts = [agent_id, number, turn.keep, turn.n_messages_kept, turn.tokenizer, turn.finish, turn.created_s, turn.n_kv]
    if turn.n_reply is not None:  # turns of older versions have none, and keep their checksum
        facts.append(turn.n_reply)
    return xxhash.xxh3_64_digest(json.dumps(facts).encode() + messages.encode() + turn.ids.astype("<u4").tobytes())


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

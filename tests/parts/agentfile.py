"""An agent's file taken apart and put together again, with right digests: what a stranger could have written."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from typing import Any

from attrs import define

HEAD = 16  #: bytes before the first part


@define
class Piece:
    """One part of a file."""

    facts: dict[str, Any]
    body: bytes

    @property
    def kind(self) -> str:
        return str(self.facts["part"])


def parts(raw: bytes) -> list[Piece]:
    """The parts of a file, without the last one."""
    at, found = HEAD, []
    while True:
        n_head, n_body = struct.unpack_from("<IQ", raw, at)
        head = at + 12
        facts = json.loads(raw[head : head + n_head])
        if facts["part"] == "end":
            return found
        found.append(Piece(facts, raw[head + n_head : head + n_head + n_body]))
        at = head + n_head + n_body + 32


def sealed(pieces: list[Piece], *, version: int = 1, end: dict[str, Any] | None = None) -> bytes:
    """A file of some parts whose digests are right."""
    out, digests = [b"agent_memory" + struct.pack("<I", version)], []
    for piece in pieces:
        part = framed(json.dumps(piece.facts).encode(), piece.body)
        digests.append(hashlib.sha256(part).digest())
        out += [part, digests[-1]]
    told = {"part": "end", "parts": len(digests), "sha256": hashlib.sha256(b"".join(digests)).hexdigest()}
    last = framed(json.dumps(told | (end or {})).encode(), b"")
    return b"".join([*out, last, hashlib.sha256(last).digest()])


def framed(head: bytes, body: bytes, n_head: int | None = None, n_body: int | None = None) -> bytes:
    """A part without its digest; its sizes may lie."""
    sizes = struct.pack("<IQ", len(head) if n_head is None else n_head, len(body) if n_body is None else n_body)
    return sizes + head + body


#: What a stranger may write in place of any value.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, -1, 7, 16, 17, 1 << 31, 1 << 53, 1 << 63, 10**30, 0.5, -0.0, 1e308, float("nan"),
    "", "a", "../../etc/passwd", "/etc/passwd", "exact", "q8", "quantized", "\0", "\ud800", "x" * 5_000, "{}", "[]",
    [], {}, [0, 0], [0, 99], [99, 0], [-1, 0], [0, 0, 0], [[[]]], {"a": {"b": {}}}, [None] * 300, "[" * 500,
)  # fmt: skip


def broken(raw: bytes, rng: random.Random) -> bytes:
    """A file with some bytes changed, cut, added, moved or repeated; its digests are not."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 3))):
        at, n = rng.randrange(len(out)), rng.choice((1, 2, 8, 64, 4096))
        how = rng.randrange(8)
        if how < 3:
            out[at] ^= 1 << rng.randrange(8)
        elif how == 3:
            del out[at : at + n]
        elif how == 4:
            out[at : at + n] = bytes(min(n, len(out) - at))
        elif how == 5:
            out[at:at] = rng.randbytes(n)
        elif how == 6:
            del out[max(1, at) :]
        else:
            out[at:at] = out[rng.randrange(len(out)) :][:n]
    return bytes(out)


def forged(raw: bytes, rng: random.Random) -> bytes:
    """A file whose parts were changed by somebody who knows the format: every digest is right."""
    found = parts(raw)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(found))
        one = found[at]
        how = rng.randrange(9)
        if how < 3:
            one.facts = _changed(one.facts, rng)
        elif how == 3:
            one.body = _changed_json(one.body, rng)
        elif how == 4:
            one.body = broken(one.body, rng) if one.body else rng.randbytes(9)
        elif how == 5:
            del found[at]
        elif how == 6:
            found.insert(rng.randrange(len(found) + 1), one)
        elif how == 7:
            found[at] = found[rng.randrange(len(found))]
        else:
            one.facts = {**one.facts, **{k: v for k, v in rng.choice(found).facts.items() if k != "part"}}
        found = [Piece(dict(piece.facts), piece.body) for piece in found] or [one]
    return sealed(found, end=_changed({"parts": len(found)}, rng) if rng.random() < 0.03 else None)


def _changed(facts: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    key = rng.choice(list(facts))
    value = facts[key]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return {**facts, key: value + rng.choice((-1, 1, 16, -16))}
    return {**facts, key: rng.choice(ODD)}


def _changed_json(body: bytes, rng: random.Random) -> bytes:
    """The JSON that a body begins with, changed somewhere inside."""
    try:
        value, stop = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    except ValueError:
        return body
    return json.dumps(_inside(value, rng)).encode() + body[stop:]


def _inside(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return {**value, key: _inside(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], _inside(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)

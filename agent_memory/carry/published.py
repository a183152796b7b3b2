"""The published log of an agent: numbered parts on a bucket, each created once, which no second writer can replace.

| part | what it is |
| --- | --- |
| turns | the turns since the part before it; ``keep`` of the earlier ones stay (fewer after a rewind) |
| taken | no turn: another store publishes the agent from here on, in the next ``epoch`` |

- A part names its number, and the sha256 of the part before it: parts cannot be left out, reordered or exchanged.
- ``holder`` is the token of the store that may publish; it changes with each taking. Whoever creates number n has
  published it: the other writer is refused, however late it comes. So an epoch fences every write.
- Turns are compared by when and where they were added, not by their texts: a host's redactor may differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np
from attrs import field, frozen

from agent_memory.carry.exporting import facts_of
from agent_memory.errors import RemoteError, repr_of
from agent_memory.log.soundness import BAD_JSON, is_count, is_time
from agent_memory.log.turns import Turn
from agent_memory.prompt.messages import to_json
from agent_memory.remote.failures import ObjectDamagedError
from agent_memory.remote.names import ObjectNames, RemoteKeys
from agent_memory.remote.objects import MAX_HEADER_BYTES, read_object, write_object

Kind = Literal["turns", "taken"]
MAX_TURNS = 256  #: of one part
FULL_BYTES = 32 << 20  #: a part that has so many takes no further turn
MAX_PART_BYTES = 512 << 20  #: a larger one is not read
MARKS = ("created_s", "n_messages_kept", "finish", "n_messages")  #: facts of a turn that its digest is made of
_LONG = 512  #: characters of a host's name, a token, a digest

Ids = np.ndarray[Any, Any]


@frozen(kw_only=True)
class Part:
    """What a part's header says. ``state``: digest of all turns after it, of which there are ``n_turns``."""

    agent: str
    number: int  #: counts up from 1
    before: str  #: sha256 of the part before it; "" of the first
    kind: Kind
    id: str  #: random: tells a lost answer from another writer
    epoch: int  #: how often the agent was taken; 1 for its first store
    holder: str = field(repr=False)
    host: str  #: for people
    at: float  #: Unix time
    keep: int
    n_turns: int
    state: str
    told: Mapping[str, Any] = field(repr=False)  #: the agent itself, as an agent's file tells it
    turns: tuple[Mapping[str, Any], ...] = field(repr=False)  #: facts of each new turn


@frozen
class RawTurn:
    """A turn as it was published, not checked yet."""

    facts: Mapping[str, Any]
    messages: str = field(repr=False)  #: JSON
    ids: Ids = field(eq=False, repr=False)


@frozen
class Stored:
    """A part as it is on the bucket, and the digest that the next one names."""

    part: Part
    digest: str
    turns: tuple[RawTurn, ...] = field(repr=False)


def states(turns: Iterable[Turn]) -> list[str]:
    """Return a digest for each turn, of it and all before it. Some microseconds each."""
    return chained((_mark_of(turn) for turn in turns), [])


def _mark_of(turn: Turn) -> Sequence[Any]:
    return turn.created_s, turn.n_messages_kept, turn.finish, len(turn.messages)


def chained(marks: Iterable[Sequence[Any]], before: Sequence[str]) -> list[str]:
    """Return ``before``, and a digest more for each turn, by its `MARKS`."""
    found = list(before)
    for mark in marks:
        last = found[-1] if found else ""
        found.append(hashlib.sha256(json.dumps([last, *mark]).encode()).hexdigest()[:32])
    return found


def n_same(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Return how many leading turns are the same, by their `states`."""
    same = 0
    while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
        same += 1
    return same


def divided(turns: Sequence[Turn], keep: int) -> list[int]:
    """Return where each part ends that the turns behind the first ``keep`` are published in; one at least."""
    stops: list[int] = []
    start, n_bytes = keep, 0
    for number, turn in enumerate(turns[keep:], keep):
        if number > start and (number - start == MAX_TURNS or n_bytes >= FULL_BYTES):
            stops.append(number)
            start, n_bytes = number, 0
        n_bytes += 4 * len(turn.ids) + sum(len(one.content) + len(one.source) for one in turn.messages)
    return [*stops, len(turns)]


def write_part(part: Part, turns: Sequence[Turn], names: ObjectNames, keys: RemoteKeys) -> bytes:
    """Return a part's bytes, sealed under its name. Raises RemoteError for one that nobody would read."""
    facts = tuple({**facts_of(turn), "n_messages": len(turn.messages)} for turn in turns)
    header = attrs.asdict(attrs.evolve(part, turns=facts))
    bodies: list[bytes] = []
    for turn in turns:
        bodies += [to_json(turn.messages).encode(), turn.ids.astype("<u4").tobytes()]
    try:
        if (n_bytes := sum(map(len, bodies))) > MAX_PART_BYTES - MAX_HEADER_BYTES:
            raise ValueError(f"{len(turns)} turns take {n_bytes:,} bytes")
        return write_object(names.log(part.agent, part.number), keys, header, bodies)
    except ValueError as error:
        raise RemoteError(
            f"agent {repr_of(part.agent)} cannot be published: {error}. Move it by agent.export and memory.import_agent"
        ) from error


def read_part(agent: str, number: int, body: bytes | memoryview, names: ObjectNames, keys: RemoteKeys) -> Stored:
    """Read a part that was published. Raises ObjectDamagedError."""
    name = names.log(agent, number)
    found = read_object(name, keys, body)
    try:
        part = _part_of(found.header)
        if (part.agent, part.number) != (agent, number) or found.n_parts != 2 * len(part.turns):
            raise ValueError("it is another part")
        parts = found.opening()
        turns = tuple(
            RawTurn(facts, bytes(next(parts)).decode("ascii"), np.frombuffer(next(parts), "<u4").astype(np.uint32))
            for facts in part.turns
        )
    except BAD_JSON as error:
        if isinstance(error, ObjectDamagedError):
            raise
        raise ObjectDamagedError(f"object {name}: part {number} of an agent's log: {error}") from error
    return Stored(part, hashlib.sha256(body).hexdigest(), turns)


def _part_of(header: Mapping[str, Any]) -> Part:
    part = Part(**{**header, "turns": tuple(header["turns"])})
    texts = (part.agent, part.before, part.id, part.holder, part.host, part.state)
    if not all(isinstance(text, str) for text in texts) or any(len(text) > _LONG for text in texts[1:]):
        raise ValueError("its texts make no sense")
    numbers = (part.number, part.epoch, part.keep, part.n_turns)
    if not all(type(number) is int and is_count(number) for number in numbers) or not is_time(part.at):
        raise ValueError("its numbers make no sense")
    if part.kind not in ("turns", "taken") or not isinstance(part.told, dict):
        raise ValueError("it does not say what it is")
    if not all(isinstance(facts, dict) for facts in part.turns):
        raise ValueError("its turns make no sense")
    return part


class Replay:
    """The turns of a published log, part by part. Raises ObjectDamagedError where parts do not follow one another."""

    def __init__(self) -> None:
        self.last: Stored | None = None
        self.turns: list[RawTurn] = []
        self.states: list[str] = []
        self.known: dict[str, tuple[str, RawTurn]] = {}  #: every turn of any part: digest -> digest before it, turn
        self.versions: Any = None  #: what the newest part that tells of versions says; older releases tell nothing

    @property
    def number(self) -> int:
        """The number of the newest part; 0: there is none."""
        return 0 if self.last is None else self.last.part.number

    def take(self, stored: Stored) -> None:
        """Take the next part."""
        part, before = stored.part, self.last
        follows = part.before == ("" if before is None else before.digest) and part.number == self.number + 1
        if not follows or part.keep > len(self.turns) or (before is not None and part.epoch < before.part.epoch):
            raise ObjectDamagedError(f"part {part.number} of a published log does not follow the one before it")
        marks = [tuple(turn.facts.get(name) for name in MARKS) for turn in stored.turns]
        found = chained(marks, self.states[: part.keep])
        if len(found) != part.n_turns or (found[-1] if found else "") != part.state:
            raise ObjectDamagedError(f"part {part.number} of a published log tells of other turns than it has")
        for place, turn in enumerate(stored.turns, part.keep):
            self.known[found[place]] = (found[place - 1] if place else "", turn)
        self.turns, self.states = [*self.turns[: part.keep], *stored.turns], found
        self.versions = part.told.get("versions", self.versions)
        self.last = stored

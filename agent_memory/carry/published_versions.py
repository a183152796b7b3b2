"""The versions of a published agent: one object beside its log, which the newest part names.

- A version is told by its number, label and reason, and by the digest of its last turn (``published.states``).
- Turns that some part has, also a rewound one, are not written again: their digests lead to them. Turns that were taken
  back before they were published are in the object itself, each with the digest of the turn before it.
- The object is created before the part that names it, under a random name: one that no part names is seen by nobody.
- At most ``MAX_VERSIONS`` move, and ``MAX_OWN_BYTES`` of turns and system prompts that no part has: the newest ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from attrs import evolve, field, frozen

from agent_memory.carry.exporting import facts_of, unbound
from agent_memory.carry.published import MARKS, RawTurn, Replay, chained, states
from agent_memory.log.carried import Intake, Terms
from agent_memory.log.facts import Facts
from agent_memory.log.soundness import BAD_JSON
from agent_memory.log.turns import Turn
from agent_memory.log.versions import Kept, Span, State, Version
from agent_memory.prompt.messages import to_json
from agent_memory.remote.failures import ObjectDamagedError
from agent_memory.remote.names import ObjectNames, RemoteKeys
from agent_memory.remote.objects import read_object, write_object

MAX_VERSIONS = 1024
MAX_OWN_BYTES = 64 << 20
MAX_OBJECT_BYTES = 2 * MAX_OWN_BYTES  #: a larger one was not written here
_TURN_BYTES = 1 << 10  #: what is told of a turn or a version, at most, without its texts
_ID_CHARS = 32
_LONG = 512


@frozen
class Past:
    """One version: its turns, and their digests. What arrives is checked."""

    version: Version
    turns: tuple[Turn, ...] = field(repr=False)
    states: tuple[str, ...] = field(repr=False)
    system: str | None = field(repr=False)
    facts: Facts = field(repr=False)

    @property
    def mark(self) -> Sequence[Any]:
        """What tells it from another version, whatever number that has."""
        told = self.version
        return told.created_s, told.n_turns, told.label, told.reason, self.states[-1] if self.states else ""


@frozen
class Reference:
    """How a part names the object that holds the versions."""

    id: str
    sha256: str
    mark: str  #: digest of the versions: the same versions are not written again

    @classmethod
    def of(cls, told: Any) -> Reference | None:
        """Return what a part says; None: the agent has no versions. Raises ObjectDamagedError."""
        if told is None:
            return None
        names = [one.name for one in attrs.fields(cls)]
        if not isinstance(told, dict) or not all(isinstance(told.get(name), str) for name in names):
            raise ObjectDamagedError("what a part says of the agent's versions cannot be read")
        found = cls(**{name: told[name] for name in names})
        if len(found.id) != _ID_CHARS or not found.id.isalnum() or len(found.mark) > _LONG:
            raise ObjectDamagedError("what a part says of the agent's versions makes no sense")
        return found


@frozen
class Digests:
    """What a writer knows of the versions that are published: the turns that they need and no part has are ``own``."""

    ends: frozenset[str] = frozenset()  #: the versions' last turns
    own: frozenset[str] = frozenset()

    def in_parts(self, past: Past) -> frozenset[str]:
        """Return the turns of a version that are known to be in parts."""
        is_known = bool(past.states) and past.states[-1] in self.ends
        return frozenset(past.states) - self.own if is_known else frozenset()


@frozen
class RawVersions:
    """The versions as they were published, not checked yet, and the turns that no part has, by their digests."""

    told: tuple[Mapping[str, Any], ...] = ()
    turns: Mapping[str, tuple[str, RawTurn]] = field(factory=dict, repr=False)  #: digest -> digest before it, turn

    @property
    def digests(self) -> Digests:
        """What a writer needs to know of them."""
        return Digests(frozenset(str(one["state"]) for one in self.told), frozenset(self.turns))


def mark_of(pasts: Sequence[Past]) -> str:
    """Return a digest of versions; "" of none."""
    told = [[past.version.number, *past.mark] for past in pasts]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:_ID_CHARS] if told else ""


def chosen(pasts: Sequence[Past], published: Collection[str]) -> list[Past]:
    """Return the versions that move: the newest ones whose own turns fit into ``MAX_OWN_BYTES``; the oldest first."""
    found: list[Past] = []
    seen: set[str | None] = {None, *published}
    n_bytes = 0
    for past in reversed(pasts):
        own = [turn for state, turn in zip(past.states, past.turns, strict=True) if state not in seen]
        n_bytes += _TURN_BYTES + sum(_TURN_BYTES + 4 * len(turn.ids) + len(to_json(turn.messages)) for turn in own)
        n_bytes += len(past.facts.to_json() or "") + len(json.dumps(past.version.label))
        n_bytes += 0 if past.system in seen else len(json.dumps(past.system))
        if n_bytes > MAX_OWN_BYTES:
            break
        seen.update(past.states)
        seen.add(past.system)
        found.append(past)
    return found[::-1]


def write_versions(
    agent: str, id: str, pasts: Sequence[Past], published: Collection[str], names: ObjectNames, keys: RemoteKeys
) -> tuple[bytes, Digests]:
    """Return the object's bytes, sealed under its name, and what is in it. ``published``: digests of parts' turns."""
    own: dict[str, tuple[str, Turn]] = {}
    systems: dict[str, int] = {}
    for past in pasts:
        for before, state, turn in zip(("", *past.states), past.states, past.turns, strict=False):
            if state not in published:
                own.setdefault(state, (before, turn))
        if past.system is not None:
            systems.setdefault(past.system, len(systems))
    told = tuple(_told(past, systems) for past in pasts)
    turns = [{**facts_of(turn), **_marks(turn), "before": before} for before, turn in own.values()]
    described = {"versions": told, "systems": list(systems), "turns": turns}
    bodies = [json.dumps(described, allow_nan=False).encode()]
    for _, turn in own.values():
        bodies += [to_json(turn.messages).encode(), turn.ids.astype("<u4").tobytes()]
    body = write_object(names.versions(agent, id), keys, {"agent": agent, "id": id}, bodies)
    return body, Digests(frozenset(past.states[-1] for past in pasts if past.states), frozenset(own))


def read_versions(agent: str, id: str, body: bytes | memoryview, names: ObjectNames, keys: RemoteKeys) -> RawVersions:
    """Read an object that holds versions. Raises ObjectDamagedError."""
    name = names.versions(agent, id)
    found = read_object(name, keys, body)
    try:
        if (found.header.get("agent"), found.header.get("id")) != (agent, id) or not found.n_parts:
            raise ValueError("it is another object")
        parts = found.opening()
        described = json.loads(bytes(next(parts)))
        systems, told, facts = (described[part] for part in ("systems", "versions", "turns"))
        if len(told) > MAX_VERSIONS or found.n_parts != 1 + 2 * len(facts):
            raise ValueError("it has other parts than it tells")
        turns: dict[str, tuple[str, RawTurn]] = {}
        for one in facts:
            messages = bytes(next(parts)).decode("ascii")
            raw = RawTurn(one, messages, np.frombuffer(next(parts), "<u4").astype(np.uint32))
            before = str(one["before"])
            turns[chained([tuple(one.get(mark) for mark in MARKS)], [before] if before else [])[-1]] = (before, raw)
        return RawVersions(tuple(_with_system(one, systems) for one in told), turns)
    except BAD_JSON as error:
        if isinstance(error, ObjectDamagedError):
            raise
        raise ObjectDamagedError(f"object {name}: the versions of an agent: {error}") from error


def _told(past: Past, systems: Mapping[str, int]) -> Mapping[str, Any]:
    version = past.version
    return {
        "number": version.number,
        "n_turns": version.n_turns,
        "created_s": version.created_s,
        "reason": version.reason,
        "label": version.label,
        "system": None if past.system is None else systems[past.system],
        "facts": unbound(past.facts.to_json()),
        "state": past.states[-1] if past.states else "",
    }


def _marks(turn: Turn) -> Mapping[str, Any]:
    return {"n_messages": len(turn.messages)}


def _with_system(told: Any, systems: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(told["state"], str) or not isinstance(told["system"], int | None):
        raise ValueError("a version makes no sense")
    return {**told, "system": None if told["system"] is None else systems[told["system"]]}


def line_of(state: str, n_turns: int, known: Sequence[Mapping[str, tuple[str, RawTurn]]]) -> list[str]:
    """Return the digests of a version's turns. ``known``: turns by digest. Raises ValueError if they lead nowhere."""
    found: list[str] = []
    if type(n_turns) is not int:
        raise ValueError("a version's numbers make no sense")
    while state and len(found) < n_turns:
        found.append(state)
        state = _turn_of(state, known)[0]
    if state or len(found) != n_turns:
        raise ValueError("a version has turns that are in no part")
    return found[::-1]


def _turn_of(state: str, known: Sequence[Mapping[str, tuple[str, RawTurn]]]) -> tuple[str, RawTurn]:
    for turns in known:
        if state in turns:
            return turns[state]
    raise ValueError("a version has turns that are in no part")


def pasts_of(
    raw: RawVersions, parts: Mapping[str, tuple[str, RawTurn]], intake: Intake, live: Iterable[tuple[str, Turn]]
) -> Iterator[Past]:
    """Check published versions as a stranger's, and yield them.

    ``parts``: the turns of all parts, by their digests. ``intake``: it has taken ``live``, the agent's own turns with
    their digests, as its first branch. Raises ValueError.
    """
    known = (raw.turns, parts)
    checked = dict(live)
    homes = dict.fromkeys(checked, 0)  # digest -> the branch that has the turn
    n_branches, last = 1, 0
    for told in raw.told:
        line = line_of(told["state"], told["n_turns"], known)
        n_known = next((n for n in range(len(line), 0, -1) if line[n - 1] in homes), 0)
        branch = homes[line[n_known - 1]] if n_known else 0
        if n_known < len(line):
            intake.branch(branch if n_known else None, n_known)
            branch, n_branches = n_branches, n_branches + 1
            for state in line[n_known:]:
                turn = _turn_of(state, known)[1]
                checked[state] = intake.turn(turn.facts, turn.messages, turn.ids)
                homes[state] = branch
        described = {name: told.get(name) for name in ("label", "system", "facts")}
        version, _, system, facts = intake.version({**told, "branch": branch}, described)
        if version.number <= last:
            raise ValueError("its versions are out of order")
        last = version.number
        yield Past(version, tuple(checked[state] for state in line), tuple(line), system, facts)


@frozen
class Arrived:
    """A published agent, checked: what is told of it, and its turns and versions as this store has them."""

    told: Mapping[str, Any]
    facts: Facts
    turns: tuple[Turn, ...] = field(repr=False)
    states: tuple[str, ...] = field(repr=False)
    pasts: tuple[Past, ...]
    published: Collection[str] = field(repr=False)  #: digests of every turn that any part has
    n_remade: int  #: turns whose ids are made anew, under another tokenizer


def arrived(replay: Replay, raw: RawVersions, terms: Terms) -> Arrived:
    """Check a replayed log and its versions as a stranger's. Raises ValueError."""
    assert replay.last is not None
    intake = Intake(terms)
    told = intake.agent(dict(replay.last.part.told))
    intake.branch(None, 0)
    turns = [intake.turn(one.facts, one.messages, one.ids) for one in replay.turns]
    n_remade = intake.n_remade
    pasts = tuple(pasts_of(raw, replay.known, intake, zip(replay.states, turns, strict=True)))
    return Arrived(
        told=told, facts=Facts.from_json(told["facts"]), turns=tuple(turns), states=tuple(replay.states), pasts=pasts,
        published=replay.known.keys(), n_remade=n_remade,
    )  # fmt: skip


@frozen
class Adopted:
    """The versions of a log, joined with those of another host."""

    kept: tuple[Kept, ...]  #: all of them, the oldest first
    written: tuple[Kept, ...]  #: those that are new, or have another number or label than before
    dropped: tuple[int, ...]  #: numbers that no version has any more
    branches: tuple[tuple[int, Span | None, tuple[Turn, ...]], ...]  #: of turns that the log lacks
    n_versions: int  #: the highest number that a version was given


def adopted(
    live: State, kept: Sequence[Kept], pasts: Sequence[Past], n_versions: int, new_number: Callable[[], int]
) -> Adopted:
    """Join a log's versions with published ones: those have their numbers and labels, the log's own others.

    ``live``: the log's state; ``n_versions``: the highest number given so far; ``new_number``: gives those of branches.
    """
    homes: dict[str, State] = {}  # digest -> a state that has the turn
    own: dict[tuple[Any, ...], Kept] = {}
    for state, one in ((live, None), *((one.state, one) for one in kept)):
        digests = tuple(states(state.turns))
        for digest in digests:
            homes.setdefault(digest, state)
        if one is not None:
            own[tuple(Past(one.version, state.turns, digests, None, Facts()).mark)] = one
    branches: list[tuple[int, Span | None, tuple[Turn, ...]]] = []
    found: dict[int, Kept] = {}
    for past in pasts:
        if (mine := own.pop(tuple(past.mark), None)) is not None:
            found[past.version.number] = evolve(mine, version=past.version)
        else:
            state = evolve(_home(past, homes, live, branches, new_number), system=past.system, facts=past.facts)
            found[past.version.number] = Kept(past.version, state)
    labels = {past.version.label for past in pasts} - {None}
    n_versions = max([n_versions, *found])
    for one in own.values():
        version = one.version
        if version.number in found:
            version = evolve(version, number=(n_versions := n_versions + 1))
        if version.label in labels:
            version = evolve(version, label=None)
        found[version.number] = evolve(one, version=version)
    joined = tuple(found[number] for number in sorted(found))
    before = {one.version.number: one for one in kept}
    written = tuple(one for one in joined if one != before.get(one.version.number))
    return Adopted(joined, written, tuple(before.keys() - found.keys()), tuple(branches), n_versions)


def _home(
    past: Past,
    homes: dict[str, State],
    live: State,
    branches: list[tuple[int, Span | None, tuple[Turn, ...]]],
    new_number: Callable[[], int],
) -> State:
    """Return the state of a version, in branches that are there as far as they have its turns."""
    n_turns, line = len(past.turns), past.states
    n_known = next((n for n in range(n_turns, 0, -1) if line[n - 1] in homes), 0)
    state = (homes[line[n_known - 1]] if n_known else live).first(n_known)
    if n_known == n_turns:
        return state
    number = new_number()
    base = Span(state.spans[-1].branch, n_known) if n_known else None
    branches.append((number, base, past.turns[n_known:]))
    state = evolve(state.on(number), turns=(*state.turns, *past.turns[n_known:]))
    homes.update(dict.fromkeys(line[n_known:], state))
    return state

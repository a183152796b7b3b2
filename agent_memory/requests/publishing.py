"""Agents that move between hosts through a bucket: each publishes its log in parts, and one host at a time may."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
from attrs import frozen

from agent_memory.carry.carrier import Carrier
from agent_memory.carry.exporting import told_of
from agent_memory.carry.published import (
    MAX_PART_BYTES,
    Kind,
    Part,
    Replay,
    Stored,
    divided,
    n_same,
    read_part,
    states,
    write_part,
)
from agent_memory.carry.published_versions import (
    MAX_OBJECT_BYTES,
    MAX_VERSIONS,
    Arrived,
    Digests,
    Past,
    RawVersions,
    Reference,
    arrived,
    chosen,
    mark_of,
    read_versions,
    write_versions,
)
from agent_memory.errors import (
    AgentMovedError,
    ConfigError,
    RemoteError,
    UnknownAgentError,
    UnsupportedParameterError,
    repr_of,
)
from agent_memory.exchange.opening import Remote
from agent_memory.log.carried import Terms
from agent_memory.log.log import Log
from agent_memory.log.soundness import BAD_JSON
from agent_memory.log.turns import Turn
from agent_memory.log.versions import Span, State
from agent_memory.reader.shared import ensure_writable
from agent_memory.remote.failures import ObjectDamagedError
from agent_memory.requests.evicting import flush
from agent_memory.requests.registry import Agents, check_name
from agent_memory.requests.versions import Versions
from agent_memory.scheduler.engine import Engine
from agent_memory.store.store import Store

log = logging.getLogger("agent_memory.requests")

_LOOK_S = 10.0  #: a caller waits for these look-ups, unlike a reply for a look-up of KV
_READERS = 8  #: parts that are read at once
_TRIES = 8  #: takings that another host may be ahead of
_STRIDE = 16  #: numbers of parts that are looked for in one round
_MOST_PARTS = 1 << 24


class _BehindError(Exception):
    """Internal: a part of this store's own is there, whose answer was lost."""


@frozen
class _Known:
    """The newest part, as this store published or read it."""

    number: int
    digest: str
    epoch: int
    holder: str
    states: Sequence[str]
    versions: Reference | None = None  #: where the agent's versions are
    digests: Digests | None = None  #: what is there; None: not read yet


class Publishing:
    """Publishes agents' logs and takes agents over. Any thread; calls for one agent run one after another.

    - Versions move with the log: in an object beside it, which the part names that is created behind it.

    - What is published is the log as of its last finished turn, flushed before; KV goes by the remote tier.
    - A publication is one create of the part after the newest one. A store that does not hold the agent, or no longer,
      is refused there, whatever it believed.
    - Nothing is lost by a taking: turns of this store that were never published follow the published ones, or, where
      others were published in their place, stay as a version of the agent.
    """

    def __init__(
        self, remote: Remote | None, agents: Agents, versions: Versions, store: Store, engine: Engine,
        terms: Callable[[], Terms],
    ) -> None:  # fmt: skip
        self._found, self._agents, self._versions = remote, agents, versions
        self._store, self._engine, self._terms = store, engine, terms
        self._known: dict[str, _Known] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._conditions: bool | None = None
        self._lines: dict[str, dict[Any, tuple[str, ...]]] = {}  # agent -> digests of each version's turns

    def publish(self, agent: Log) -> int:
        """Publish an agent's new turns; return how many turns are published now.

        Raises AgentMovedError, RemoteError, ConfigError without a remote.
        """
        self._ensure("publish an agent")
        self._ensure_lasting(agent, "publish", "publish a fork of it")
        with self._locks[agent.name]:
            self._ensure_conditions()
            if agent.facts.holder is None:
                self._agents.hold(agent, secrets.token_hex(16))
            flush(self._engine, self._store)
            for _ in range(_TRIES):
                with contextlib.suppress(_BehindError):
                    return self._publish(agent, agent.turns)
            raise RemoteError(f"the newest part of the published log of agent {repr_of(agent.name)} was not found")

    def fetch(self, name: str) -> Log:
        """Take an agent over from the host that published it, and return its log; every published turn is in it.

        Raises UnknownAgentError if none of that name was published, RemoteError, ConfigError without a remote or for a
        bad name, UnsupportedParameterError where an agent of that name cannot take the turns.
        """
        self._ensure("take an agent over")
        check_name(name)
        with self._locks[name]:
            self._ensure_conditions()
            replay = Replay()
            here = self._agents.find(name, identity=self._agents.identity)
            if here is not None:
                self._ensure_lasting(here, "take over", f"memory.delete({name!r}) first")
            for _ in range(_TRIES):
                self._read_on(name, replay)
                if replay.last is None:
                    raise UnknownAgentError(name)
                part = replay.last.part
                known = self._known_of(name, replay)
                found = self._checked(name, replay, known)  # before the taking: what cannot be used here is left alone
                if here is not None and here.facts.holder == part.holder:
                    holder, found = part.holder, attrs.evolve(found, pasts=())  # it has them, or has pruned them
                    break
                told = {**part.told, "versions": replay.versions}
                taking = self._next(name, known, "taken", secrets.token_hex(16), told)
                taking = attrs.evolve(taking, epoch=part.epoch + 1, keep=part.n_turns, n_turns=part.n_turns,
                                      state=part.state)  # fmt: skip
                if (digest := self._put(taking, ())) is not None:
                    holder = taking.holder
                    known = attrs.evolve(known, number=taking.number, digest=digest, epoch=taking.epoch, holder=holder)
                    break
            else:
                raise RemoteError(f"agent {repr_of(name)} was not taken over: other hosts took it {_TRIES} times")
            taken = self._store_here(name, here, found, holder)
            self._known[name] = known
            return taken

    def _publish(self, agent: Log, turns: Sequence[Turn]) -> int:
        ours = states(turns)
        known = self._known.get(agent.name)
        if known is None or known.holder != agent.facts.holder:
            known = self._look(agent, ours)
        keep = n_same(ours, known.states)
        pasts = self._pasts(agent)
        is_same = mark_of(pasts) == ("" if known.versions is None else known.versions.mark)
        if keep == len(ours) == len(known.states) and known.number and is_same:
            return keep
        if not is_same:  # the last part names them: those before it have not all of their turns
            after = self._put_versions(agent.name, known, pasts, ours)
        for stop in divided(turns, keep):
            if stop == len(turns) and not is_same:
                known = attrs.evolve(known, versions=after.versions, digests=after.digests)
            known = self._append(agent, known, turns[keep:stop], keep, ours[:stop])
            keep = stop
        return len(turns)

    def _pasts(self, agent: Log) -> list[Past]:
        """Return the versions that may move, the oldest first."""
        before, lines = self._lines.get(agent.name, {}), {}
        pasts: list[Past] = []
        for kept in agent.kept[-MAX_VERSIONS:]:
            key = (kept.version.number, kept.version.created_s, kept.version.n_turns)
            lines[key] = line = before.get(key) or tuple(states(kept.state.turns))
            pasts.append(Past(kept.version, kept.state.turns, line, kept.state.system, kept.state.facts))
        self._lines[agent.name] = lines
        return pasts

    def _put_versions(self, name: str, known: _Known, pasts: Sequence[Past], ours: Sequence[str]) -> _Known:
        """Create the object with an agent's versions; the part that names it comes behind it."""
        remote, id = self._remote, secrets.token_hex(16)
        digests = known.digests
        if digests is None:
            digests = Digests() if known.versions is None else self._read_versions(name, known.versions).digests
        published = {*ours, *known.states}.union(*(digests.in_parts(past) for past in pasts))
        if not (moved := chosen(pasts, published)):
            return attrs.evolve(known, versions=None, digests=Digests())
        if len(moved) < len(pasts):
            log.warning("agent %r: its oldest %d versions are too large to be published", name, len(pasts) - len(moved))
        body, digests = write_versions(name, id, moved, published, remote.names, remote.keys)
        remote.bucket.put_new(remote.names.versions(name, id), body)
        reference = Reference(id, hashlib.sha256(body).hexdigest(), mark_of(pasts))
        return attrs.evolve(known, versions=reference, digests=digests)

    # what is on the remote

    def _look(self, agent: Log, ours: Sequence[str]) -> _Known:
        """Return the newest part of an agent whose parts this process has not seen. Raises AgentMovedError."""
        number = self._newest(agent.name)
        if not number:
            return _Known(0, "", 1, "", ())
        last = self._read(agent.name, number)
        if last.part.holder != agent.facts.holder:
            raise self._moved(agent, last)
        if last.part.n_turns <= len(ours) and (last.part.state == "" or ours[last.part.n_turns - 1] == last.part.state):
            return _Known(
                number, last.digest, last.part.epoch, last.part.holder, ours[: last.part.n_turns],
                self._reference(agent.name, number, last.part.told.get("versions")),
            )  # fmt: skip
        replay = Replay()  # it was rewound: how far
        self._read_on(agent.name, replay)
        return self._known_of(agent.name, replay)

    def _newest(self, name: str) -> int:
        """Return the number of the newest part, by a few rounds of look-ups; 0: there is none."""
        sizes, log_name = self._remote.bucket.sizes, self._remote.names.log
        steps = [1 << power for power in range(_MOST_PARTS.bit_length())]
        there = sizes([log_name(name, number) for number in steps], timeout_s=_LOOK_S)
        if there[0] is None:
            if any(size is not None for size in there):
                raise RemoteError(f"the first part of the published log of agent {repr_of(name)} is gone")
            return 0
        low = max(number for number, size in zip(steps, there, strict=True) if size is not None)
        high = 2 * low  # low is there, high is not
        while high - low > 1:
            step = max(1, (high - low) // _STRIDE)
            asked = range(low + step, high, step)
            found = sizes([log_name(name, number) for number in asked], timeout_s=_LOOK_S)
            missing = [number for number, size in zip(asked, found, strict=True) if size is None]
            high = min(missing, default=high)
            low = max([low, *(n for n, size in zip(asked, found, strict=True) if size is not None and n < high)])
        return low

    def _read_on(self, name: str, replay: Replay) -> None:
        """Read the parts that a replay lacks."""
        numbers = range(replay.number + 1, self._newest(name) + 1)
        with ThreadPoolExecutor(_READERS, "agent_memory parts") as readers:
            for number, stored in zip(numbers, readers.map(lambda n: self._read(name, n), numbers), strict=True):
                try:
                    replay.take(stored)
                except ObjectDamagedError as error:
                    raise _damaged(name, number, error) from error

    def _read(self, name: str, number: int) -> Stored:
        remote, object_name = self._remote, self._remote.names.log(name, number)
        [size] = remote.bucket.sizes([object_name], timeout_s=_LOOK_S)
        # by its size, so that a folder that hangs holds nobody longer than such a part may take
        body = None if size is None else remote.bucket.get(object_name, max_bytes=min(size, MAX_PART_BYTES))
        if body is None:
            raise RemoteError(f"part {number} of the published log of agent {repr_of(name)} is gone")
        try:
            return read_part(name, number, body, remote.names, remote.keys)
        except ObjectDamagedError as error:
            raise _damaged(name, number, error) from error

    def _read_versions(self, name: str, reference: Reference) -> RawVersions:
        remote, object_name = self._remote, self._remote.names.versions(name, reference.id)
        [size] = remote.bucket.sizes([object_name], timeout_s=_LOOK_S)
        body = None if size is None else remote.bucket.get(object_name, max_bytes=min(size, MAX_OBJECT_BYTES))
        if body is None:
            raise RemoteError(f"the versions of the published agent {repr_of(name)} are gone")
        try:
            if hashlib.sha256(body).hexdigest() != reference.sha256:
                raise ObjectDamagedError(f"object {object_name}: its sha256 is another")
            return read_versions(name, reference.id, body, remote.names, remote.keys)
        except ObjectDamagedError as error:
            raise RemoteError(
                f"the versions of the published agent {repr_of(name)} are damaged or forged: {error}"
            ) from error

    def _reference(self, name: str, number: int, told: Any) -> Reference | None:
        try:
            return Reference.of(told)
        except ObjectDamagedError as error:
            raise _damaged(name, number, error) from error

    def _known_of(self, name: str, replay: Replay) -> _Known:
        assert replay.last is not None
        part, reference = replay.last.part, self._reference(name, replay.number, replay.versions)
        return _Known(replay.number, replay.last.digest, part.epoch, part.holder, tuple(replay.states), reference)

    def _append(self, agent: Log, known: _Known, turns: Sequence[Turn], keep: int, ours: Sequence[str]) -> _Known:
        holder = agent.facts.holder
        assert holder is not None
        versions = None if known.versions is None else attrs.asdict(known.versions)
        told = {**told_of(agent.record()), "versions": versions}
        part = self._next(agent.name, known, "turns", holder, told)
        part = attrs.evolve(part, keep=keep, n_turns=len(ours), state=ours[-1] if ours else "")
        digest = self._put(part, turns)
        if digest is None:
            self._known.pop(agent.name, None)
            there = self._read(agent.name, part.number)
            if there.part.holder == holder:
                raise _BehindError
            raise self._moved(agent, there)
        found = attrs.evolve(known, number=part.number, digest=digest, holder=holder, states=tuple(ours))
        self._known[agent.name] = found
        return found

    def _next(self, name: str, known: _Known, kind: Kind, holder: str, told: Mapping[str, Any]) -> Part:
        return Part(
            agent=name, number=known.number + 1, before=known.digest, kind=kind, id=secrets.token_hex(16),
            epoch=known.epoch, holder=holder, host=socket.gethostname(), at=time.time(), keep=0, n_turns=0, state="",
            told=told, turns=(),
        )  # fmt: skip

    def _put(self, part: Part, turns: Sequence[Turn]) -> str | None:
        """Create a part; return its digest, None if another one has that number."""
        remote = self._remote
        body = write_part(part, turns, remote.names, remote.keys)
        is_ours = remote.bucket.put_new(remote.names.log(part.agent, part.number), body)
        stored = read_part(part.agent, part.number, body, remote.names, remote.keys) if is_ours else None
        if stored is None and (there := self._read(part.agent, part.number)).part.id == part.id:
            stored = there  # the server had stored it, and its answer was lost
        return None if stored is None else stored.digest

    def _moved(self, agent: Log, by: Stored) -> AgentMovedError:
        return AgentMovedError(agent.name, by.part.number, by.part.keep + 1, by.part.host, by.part.epoch)

    # what is here

    def _checked(self, name: str, replay: Replay, known: _Known) -> Arrived:
        raw = RawVersions() if known.versions is None else self._read_versions(name, known.versions)
        try:
            return arrived(replay, raw, self._terms())
        except BAD_JSON as error:
            raise _damaged(name, replay.number, error) from error

    def _store_here(self, name: str, here: Log | None, found: Arrived, holder: str) -> Log:
        if here is None:
            told = {**found.told, "facts": found.facts.to_json(), "name": name}
            Carrier(self._store).take_log(told, found.turns, self._agents.salt)
            here = self._agents.arrived(name, is_foreign=found.n_remade > 0)
            self._versions.take_over(here, found.pasts, found.facts.n_versions or 0)
        else:
            self._go_on(here, found, is_ours=here.facts.holder == holder)
        self._agents.hold(here, holder)  # last: who is killed before has not got it, and takes it again
        flush(self._engine, self._store)
        return here

    def _go_on(self, here: Log, found: Arrived, *, is_ours: bool) -> None:
        """Give an agent that is here what others published. ``is_ours``: this store has published it last."""
        before, turns = states(here.turns), here.turns
        same = n_same(before, found.states)
        n_own = sum(state not in found.published for state in before[same:])
        is_gone = same < len(found.turns) or (not n_own and not is_ours)  # else turns that nobody has published stay
        if same == len(turns):
            self._versions.extend(here, found.turns[same:], found.facts)
        elif is_gone:
            left = [past for past in found.pasts if list(past.states) == before]  # what is left is a version already
            self._versions.take_over(here, left, found.facts.n_versions or 0)
            state = State(
                turns=found.turns, spans=(Span(here.agent_id, 0),), system=found.told["system"], facts=found.facts
            )
            self._versions.replace(here, state, "replaced", here.version)
        self._versions.take_over(here, found.pasts, found.facts.n_versions or 0)
        if is_gone and n_own:
            number = next(kept.version.number for kept in here.kept if states(kept.state.turns) == before)
            log.warning(
                "agent %r: %d turns of this store were never published; they stay as version %d",
                here.name, n_own, number,
            )  # fmt: skip

    @property
    def _remote(self) -> Remote:
        assert self._found is not None
        return self._found

    def _ensure(self, doing: str) -> None:
        if self._found is None:
            raise ConfigError(
                f"cannot {doing}: this Memory has no remote. Open it with Config(remote=..., remote_key=...)"
            )
        if not self._found.is_writing:
            raise ConfigError(f"cannot {doing}: Config.remote_write is False")
        ensure_writable(self._store, doing)

    def _ensure_lasting(self, agent: Log, doing: str, instead: str) -> None:
        """Raise UnsupportedParameterError for a temporary agent, and for the log of a group."""
        if agent.is_temporary:
            raise UnsupportedParameterError(f"agent {repr_of(agent.name)} is temporary: {instead}")
        self._agents.ensure_own(agent, f"{doing} it")

    def _ensure_conditions(self) -> None:
        if self._conditions is None:
            self._conditions = self._remote.bucket.probe()
        if not self._conditions:
            raise RemoteError(
                f"remote {self._remote.bucket.place} stores a second object under a name that is taken: published logs "
                "need a server that honours If-None-Match. Agents move by agent.export and memory.import_agent"
            )


def _damaged(name: str, number: int, error: Exception) -> RemoteError:
    return RemoteError(f"part {number} of the published log of agent {repr_of(name)} is damaged or forged: {error}")

"""Groups of one Memory: opened or made, each once."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from agent_memory.agent import Agent, ensure_of
from agent_memory.errors import ConfigError, UnknownAgentError, repr_of
from agent_memory.groups.events import Event
from agent_memory.groups.group import Group
from agent_memory.groups.phases import TOPOLOGIES, Phase, Topology, checked_phases
from agent_memory.groups.seats import Seat, log_name, seat_name
from agent_memory.log.log import Log
from agent_memory.requests.asking import Asking
from agent_memory.requests.registry import AgentSpec


class Groups:
    """The groups that are open. Any thread."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._open: dict[str, tuple[Log, Sequence[Seat], Group]] = {}
        self._lock = threading.Lock()
        asking.agents.group_of = group_of

    def open(
        self, name: str, members: Sequence[str | Agent], topology: Topology | None, phases: Sequence[Phase]
    ) -> Group:
        """The group of a name. Raises ConfigError, and UnknownAgentError for a member that does not exist."""
        self._asking.ensure_open()
        if not isinstance(name, str) or not name or not name.isprintable() or "/" in name:
            raise ConfigError(f"a group's name must be a printable text without '/', got {repr_of(name)}")
        if topology is not None and topology not in TOPOLOGIES:
            raise ConfigError(f"topology must be one of {', '.join(map(repr, TOPOLOGIES))}, got {repr_of(topology)}")
        names = self._names(members)
        with self._lock:
            found = self._asking.agents.find(log_name(name), identity=self._asking.identity)
            held = self._open.get(name)
            spec = None if found is None else _spec_of(found)
            checked = checked_phases(phases, names or (spec.more["members"] if spec else ()))
            if spec is None:
                spec = self._made(name, names, topology or "round", checked)
            _ensure_same(name, spec, names, topology, checked)
            log = self._asking.agents.find(log_name(name), identity=self._asking.identity)
            assert log is not None
            if held is None or held[0] is not log or any(seat.log.is_deleted for seat in held[1]):
                of_phases = tuple(map(Phase.of_row, spec.more["phases"]))
                seats = [
                    Seat.open(self._asking, name, spec.more.get("id", ""), member) for member in spec.more["members"]
                ]
                group = Group(self._asking, name, log, seats, spec.more["topology"], of_phases)
                self._open[name] = held = (log, seats, group)
            return held[2]

    def _names(self, members: Sequence[str | Agent]) -> tuple[str, ...]:
        if isinstance(members, str | Agent) or not isinstance(members, Sequence):
            raise ConfigError(f"members must be a list of agents or of their names, got {type(members).__name__}")
        for one in members:
            if isinstance(one, Agent):
                ensure_of(one, self._asking)
        names = tuple(one.name if isinstance(one, Agent) else one for one in members)
        if odd := [one for one in names if not isinstance(one, str) or not one or not one.isprintable()]:
            raise ConfigError(f"a member's name must be a printable text, got {repr_of(odd[0])}")
        if twice := [one for one in names if names.count(one) > 1]:
            raise ConfigError(f"{repr_of(twice[0])} is named twice among the members")
        return names

    def _made(self, name: str, members: tuple[str, ...], topology: Topology, phases: tuple[Phase, ...]) -> Event:
        """Store a new group, its seats excepted."""
        if not members:
            raise ConfigError(f"there is no group {repr_of(name)} yet: give its members")
        asking, identity = self._asking, self._asking.identity
        for member in members:
            if asking.agents.find(member, identity=identity) is None:
                raise UnknownAgentError(member)
            asking.agents.ensure_free(seat_name(name, member))
        log = asking.agents.open(log_name(name), AgentSpec(), identity=identity, tokenizer=asking.ensure_open().digest)
        if log.messages:
            raise ConfigError(f"agent {repr_of(log.name)} exists and is no group; delete it, or take another name")
        rows = [phase.to_row() for phase in phases]
        more = {"members": list(members), "topology": topology, "phases": rows, "id": secrets.token_hex(8)}
        spec = Event(kind="group", more=more)
        asking.versions.add(log, lambda: [spec.message()], asking.ensure_open().digest)
        return spec


def _spec_of(log: Log) -> Event | None:
    """What a group's log says of the group; None where it is none's."""
    first = Event.of(log.messages[0]) if log.messages else None
    return first if first is not None and first.kind == "group" and _is_sound(first.more) else None


def _is_sound(more: Mapping[str, Any]) -> bool:
    """True if a group could have been made so."""
    members, topology, phases = (more.get(what) for what in ("members", "topology", "phases"))
    if not isinstance(members, list) or not members or not all(isinstance(one, str) and one for one in members):
        return False
    try:
        checked_phases([Phase.of_row(row) for row in phases or ()], members)
    except (ConfigError, TypeError, ValueError):
        return False
    return topology in TOPOLOGIES and isinstance(phases, list) and isinstance(more.get("id", ""), str)


def group_of(log: Log) -> str | None:
    """The name of the group whose events a log holds; None for any other log."""
    name = log.name.removesuffix("/")
    return name if log.name == log_name(name) and not log.is_deleted and _spec_of(log) is not None else None


def _ensure_same(
    name: str, spec: Event, members: tuple[str, ...], topology: Topology | None, phases: tuple[Phase, ...]
) -> None:
    """Raise ConfigError where a group exists and is another than the arguments say."""
    given = {
        "members": list(members) or None,
        "topology": topology,
        "phases": [phase.to_row() for phase in phases] or None,
    }
    for what, value in given.items():
        if value is not None and value != spec.more[what]:
            raise ConfigError(
                f"group {repr_of(name)} exists with other {what}: {repr_of(spec.more[what])}. Open it without {what}=, "
                "or take another name, or delete() it first"
            )

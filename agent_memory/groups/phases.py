"""Phases: parts of a group's conversation, whose openings may quote what was said in earlier ones. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from attrs import field, frozen

from agent_memory.errors import ConfigError, repr_of
from agent_memory.groups.events import Event
from agent_memory.prompt.escaping import escaped

Topology = Literal["round", "turns", "free"]
TOPOLOGIES: tuple[str, ...] = get_args(Topology)

_QUOTE = re.compile(r"\{(\w+)\.(\w+)\}")


def _members(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"members of a phase must be a list of names, got {repr_of(value)}")
    return tuple(str(getattr(one, "name", one)) for one in value)


def _opening(value: Any) -> str | Mapping[str, str]:
    if isinstance(value, Mapping):
        if all(isinstance(text, str) for text in value.values()):
            return {str(getattr(name, "name", name)): text for name, text in value.items()}
    elif isinstance(value, str):
        return value
    raise ConfigError(f"opening must be a text, or a text for each member by name, got {repr_of(value)}")


@frozen
class Phase:
    """A part of a group's conversation.

    ``opening``: what the host says when it begins, one text for all or one for each member. ``{earlier.transcript}``
    quotes what members said in the phase ``earlier``, ``{earlier.ann}`` what ann said. ``rounds``: how often each
    speaks. ``members``: who takes part; the others hear nothing of it; () is all. ``topology``: None: the group's.
    """

    name: str
    opening: str | Mapping[str, str] = field(default="", converter=_opening)
    rounds: int = field(default=1, kw_only=True)
    members: tuple[str, ...] = field(default=(), converter=_members, kw_only=True)
    topology: Topology | None = field(default=None, kw_only=True)

    def to_row(self) -> list[Any]:
        """JSON of the phase."""
        opening = self.opening if isinstance(self.opening, str) else dict(self.opening)
        return [self.name, opening, self.rounds, list(self.members), self.topology]

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> Phase:
        """The reverse of ``to_row``."""
        name, opening, rounds, members, topology = row
        return cls(name, opening, rounds=rounds, members=members, topology=topology)


def checked_phases(phases: Sequence[Phase], members: Sequence[str]) -> tuple[Phase, ...]:
    """Phases as a group has them. Raises ConfigError."""
    if not isinstance(phases, Sequence):
        raise ConfigError(f"phases must be a list of Phase values, got {repr_of(phases)}")
    found: list[Phase] = []
    for phase in phases:
        if not isinstance(phase, Phase):
            raise ConfigError(f"phases must be Phase values, got {type(phase).__name__}")
        if not isinstance(phase.name, str) or not re.fullmatch(r"\w+", phase.name):
            raise ConfigError(f"a phase's name must be letters, digits and '_', got {repr_of(phase.name)}")
        if phase.name in [one.name for one in found]:
            raise ConfigError(f"two phases have the name {repr_of(phase.name)}")
        if not isinstance(phase.rounds, int) or isinstance(phase.rounds, bool) or phase.rounds < 1:
            raise ConfigError(f"rounds of phase {phase.name} must be an int of at least 1, got {repr_of(phase.rounds)}")
        if phase.topology is not None and phase.topology not in TOPOLOGIES:
            raise ConfigError(f"topology of phase {phase.name} must be one of {TOPOLOGIES}")
        by_member = phase.opening if isinstance(phase.opening, Mapping) else {}
        if strangers := sorted({*phase.members, *by_member} - set(members)):
            raise ConfigError(f"phase {phase.name} names {strangers[0]!r}, who is no member of the group")
        texts = [phase.opening] if isinstance(phase.opening, str) else list(phase.opening.values())
        for earlier, what in (quote for text in texts for quote in _QUOTE.findall(text)):
            if earlier not in [one.name for one in found]:
                raise ConfigError(f"phase {phase.name} quotes {{{earlier}.{what}}}, but {earlier} is no earlier phase")
            if what != "transcript" and what not in members:
                raise ConfigError(f"phase {phase.name} quotes {{{earlier}.{what}}}: give 'transcript', or a member")
        found.append(phase)
    return tuple(found)


def openings(phases: Sequence[Phase], number: int, events: Sequence[Event]) -> list[Event]:
    """Return the events that begin a phase. ``events``: what happened before, in order."""
    phase = phases[number]
    texts: list[tuple[tuple[str, ...] | None, str]] = (
        [(phase.members or None, phase.opening)]
        if isinstance(phase.opening, str)
        else [((member,), text) for member, text in phase.opening.items()]
    )
    said = [(to, filled(text, phases, events)) for to, text in texts if text.strip()]
    begun = Event(kind="phase", phase=number)
    return [begun, *(Event(kind="say", text=text, to=to, phase=number) for to, text in said if text.strip())]


def filled(text: str, phases: Sequence[Phase], events: Sequence[Event]) -> str:
    """An opening with its quotes filled in. Whispers are never quoted, and quoted text is not filled in again."""

    def quote(match: re.Match[str]) -> str:
        number = [phase.name for phase in phases].index(match[1])
        said = [event for event in events if event.phase == number and event.kind == "turn"]
        if match[2] != "transcript":
            return "\n".join(escaped(event.text) for event in said if event.speaker == match[2])
        return "\n".join(f"{escaped(str(event.speaker))}: {escaped(event.text)}" for event in said)

    return _QUOTE.sub(quote, text)

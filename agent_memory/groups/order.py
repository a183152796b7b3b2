"""Whose turn it is: who may speak next in a phase, and what they have heard by then. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attrs import frozen

from agent_memory.groups.events import Event
from agent_memory.groups.phases import Topology


@frozen(kw_only=True)
class Floor:
    """The state of one phase: who takes part, and who has spoken how often, extra turns left out."""

    members: tuple[str, ...]
    topology: Topology
    n_turns: Counter[str]
    round: int | None = None  #: the round under way, or the next one
    heard: int | None = None  #: events that each speaker of the round hears, once somebody has spoken in it

    @classmethod
    def of(cls, events: Sequence[Event], phase: int | None, members: tuple[str, ...], topology: Topology) -> Floor:
        """What the events say of a phase."""
        said = [e for e in events if e.kind == "turn" and e.phase == phase and not e.is_extra]
        counted = Counter(str(event.speaker) for event in said)
        if topology != "round":
            return cls(members=members, topology=topology, n_turns=counted)
        number = max((event.round or 0 for event in said), default=1)
        spoken = [event for event in said if event.round == number]
        if {event.speaker for event in spoken} >= set(members):
            number, spoken = number + 1, []
        heard = spoken[0].heard if spoken else None
        return cls(members=members, topology=topology, n_turns=counted, round=number, heard=heard)

    @property
    def left(self) -> tuple[str, ...]:
        """Those who have spoken less often than others, in order: who is left of this round, or all of the next."""
        counts = [self.n_turns[member] for member in self.members]
        return tuple(m for m, n in zip(self.members, counts, strict=True) if n == min(counts))

    @property
    def round_of(self) -> tuple[str, ...]:
        """Those who speak in the next round."""
        return self.members if self.topology == "free" else self.left

    def is_over(self, n_rounds: int) -> bool:
        """True if everybody has spoken ``n_rounds`` times."""
        return all(self.n_turns[member] >= n_rounds for member in self.members)

"""Speaking: the turns of a group's members that run, and the questions that start them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from agent_memory.errors import RequestError, UnsupportedParameterError
from agent_memory.generation import Generation
from agent_memory.groups.events import Event, Mark
from agent_memory.groups.order import Floor
from agent_memory.groups.record import phase_of
from agent_memory.groups.seats import Seat
from agent_memory.groups.views import NOTHING_NEW, heard_text, introduction
from agent_memory.requests.asking import Asking
from agent_memory.requests.options import Settings
from agent_memory.requests.prompting import Answers
from agent_memory.types import Message, Recall

_ENDED = ("done", "cancelled", "failed")


class Speaking:
    """Starts turns, and knows those that run. Under the group's lock."""

    def __init__(self, asking: Asking, group: str, seats: Mapping[str, Seat]) -> None:
        self._asking, self._group, self._seats = asking, group, seats
        self._running: dict[str, tuple[Generation, Mark]] = {}

    def running(self) -> dict[str, Generation]:
        """Return the turns that run, by member."""
        return {member: handle for member, (handle, _) in self._alive().items()}

    def ensure_quiet(self, members: Sequence[str] | None = None) -> None:
        """Raise RequestError while a turn of one of these members runs, or of anybody."""
        if busy := [member for member in self._alive() if members is None or member in members]:
            raise RequestError(f"a turn of {busy[0]} runs; await or cancel it first")

    def next_of(self, floor: Floor) -> str:
        """Return whose turn it is. Raises where nobody's is."""
        if floor.topology == "free":
            raise UnsupportedParameterError("say whose turn it is: topology 'free' has no order")
        running = self._alive()
        idle = [member for member in floor.left if member not in running]
        if not idle:
            raise RequestError(f"all that are left of this round speak now: {', '.join(floor.left)}; await them first")
        return idle[0]

    def ensure_may(self, member: str, floor: Floor) -> None:
        """Raise RequestError where the order says that a member may not speak."""
        if member not in floor.members:
            raise RequestError(f"{member} takes no part in this phase: {', '.join(floor.members)} do")
        if floor.topology == "free":
            return
        allowed = floor.left[:1] if floor.topology == "turns" else floor.left
        if member not in allowed:
            raise RequestError(
                f"it is not the turn of {member}: {' and '.join(allowed)} first. interrupt({member!r}) lets it speak "
                "out of the order"
            )
        if floor.topology == "turns":
            self.ensure_quiet()

    def start(
        self,
        members: Sequence[str],
        events: Sequence[Event],
        settings: Settings,
        floor: Floor | None = None,
        *,
        vote: int | None = None,
        asks: str = "",
    ) -> dict[str, Generation]:
        """Start the turns of some members, all on the same state, which is ``events``, or that of the round.

        ``floor``: the order that they are part of; None: of none. ``vote``: they are ballots of it, and ``asks`` says
        what for.
        """
        for member in members:
            self._seats[member].ensure_exists()
        self.ensure_quiet(members)
        running = self._alive()
        number, heard = (floor.round, floor.heard) if floor else (None, None)
        of_round = [mark.heard for _, mark in running.values() if number is not None and mark.round == number]
        mark = Mark(
            group=self._group,
            heard=next((n for n in (*of_round, heard) if n is not None), len(events)),
            number=0,
            phase=phase_of(events),
            round=number,
            vote=vote,
            is_extra=floor is None and vote is None,
        )
        seats = [self._seats[member] for member in members]
        asked = [(self._question(seat, events, mark, asks), seat.log, _settings_of(seat, settings)) for seat in seats]
        handles = dict(zip(members, self._asking.start_all(asked), strict=True))
        self._running = running | {member: (handle, mark) for member, handle in handles.items()}
        return handles

    def _question(self, seat: Seat, events: Sequence[Event], mark: Mark, asks: str) -> Answers:
        """The question for one member: what it has not heard yet, and its mark."""
        newest = seat.newest()
        heard, own = (newest.mark.heard, newest.mark.number) if newest else (0, 0)
        numbers = [event.number or 0 for event in events if event.is_of(seat.member)]
        mark = attrs.evolve(mark, id=seat.id, number=max(own, *numbers, 0) + 1, heard=max(mark.heard, heard))
        members, tokenizer = tuple(self._seats), self._asking.ensure_open()
        text = heard_text(events, seat.member, members, heard, mark.heard, own, tokenizer)
        parts = [introduction(seat.member, members) if newest is None else "", text, asks]
        return Answers((Message("user", "\n".join(filter(None, parts)) or NOTHING_NEW, source=mark.source()),))

    def _alive(self) -> dict[str, tuple[Generation, Mark]]:
        return {member: one for member, one in self._running.items() if one[0].state not in _ENDED}


def _settings_of(seat: Seat, settings: Settings) -> Settings:
    """``settings`` for one member, which recalls as it does elsewhere, and remembers only what the caller says.

    A workspace is shared: a whisper that one member remembers, another would recall.
    """
    kept = seat.log.facts.recall
    if isinstance(settings.recall, Recall) or not (settings.recall or (settings.recall is None and kept)):
        return settings
    return attrs.evolve(settings, recall=attrs.evolve(kept or Recall(), remember=False))

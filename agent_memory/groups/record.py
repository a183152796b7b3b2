"""Record: what happened in a group, read from its log and from the logs of its seats. The one place that adds to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent_memory.groups.events import SPOKEN, Event, Kind, Utterance
from agent_memory.groups.order import Floor
from agent_memory.groups.phases import Phase, Topology
from agent_memory.groups.seats import Seat, news
from agent_memory.groups.views import in_order
from agent_memory.log.log import Log
from agent_memory.requests.asking import Asking
from agent_memory.types import Message


class Record:
    """The events of one group. Any thread; added to on the engine thread.

    - Before anything is added, turns and ballots that have come to their end meanwhile are taken over from the seats'
      logs, in the order of the seats: a process that was killed between the two loses nothing.
    """

    def __init__(
        self, asking: Asking, log: Log, seats: Sequence[Seat], topology: Topology, phases: tuple[Phase, ...]
    ) -> None:
        self._asking, self.log, self._seats, self._topology, self._phases = asking, log, tuple(seats), topology, phases
        self._parsed: tuple[tuple[Message, ...], tuple[Event, ...]] = ((), ())

    @property
    def members(self) -> tuple[str, ...]:
        """The members' names, in their order."""
        return tuple(seat.member for seat in self._seats)

    def settled(self) -> tuple[Event, ...]:
        """Return all events, with the turns that have come to their end meanwhile."""
        self.note(lambda events: [])
        return self.known()

    def note(self, make: Callable[[Sequence[Event]], Sequence[Event]]) -> None:
        """Add events; ``make`` gets what happened before, on the engine thread."""

        def messages() -> list[Message]:
            events = self.known()
            new = news(self._seats, events, self.hearers)
            return [event.message() for event in (*new, *make((*events, *new)))]

        tokenizer = self._asking.ensure_open()
        self._asking.versions.add(self.log, messages, tokenizer.digest)

    def floor(self) -> tuple[tuple[Event, ...], Floor]:
        """Return all events, and who may speak."""
        events = self.settled()
        number = phase_of(events)
        phase = None if number is None else self._phases[number]
        members = (phase.members if phase else ()) or self.members
        topology = (phase.topology if phase else None) or self._topology
        return events, Floor.of(events, number, members, topology)

    def public(self, events: Sequence[Event], kind: Kind, text: str, speaker: str | None = None) -> Event:
        """Return the event that is heard by all who take part in the phase under way."""
        phase = phase_of(events)
        return Event(kind=kind, speaker=speaker, text=text, to=self.hearers(phase), phase=phase)

    def hearers(self, phase: int | None) -> tuple[str, ...] | None:
        """Return who hears what is said aloud in a phase; None: all."""
        return None if phase is None else self._phases[phase].members or None

    def utterances(self) -> tuple[Utterance, ...]:
        """Return what was said, whispers included."""
        return tuple(
            Utterance(
                speaker=event.speaker,
                text=event.text,
                to=None if event.to is None else tuple(one for one in event.to if one != event.speaker),
                kind=event.kind,
                phase=None if event.phase is None else self._phases[event.phase].name,
            )
            for event in in_order(self.settled(), self.members)
            if event.kind in SPOKEN and event.text
        )

    def known(self) -> tuple[Event, ...]:
        """Return the events that the log has, without those that the seats alone tell of."""
        messages, (read, events) = self.log.messages, self._parsed
        if read and (len(messages) < len(read) or messages[len(read) - 1] is not read[-1]):
            read, events = (), ()  # the log is another one than before: it was taken back
        if len(read) < len(messages):
            found = filter(None, map(Event.of, messages[len(read) :]))
            events = (*events, *filter(self._is_own, found))
        self._parsed = messages, events
        return events

    def _is_own(self, event: Event) -> bool:
        """True if an event is of this group's phases and members; a log that came in a file may tell of others."""
        is_in_phase = event.phase is None or event.phase < len(self._phases)
        return is_in_phase and (event.kind not in ("turn", "ballot") or event.speaker in self.members)


def phase_of(events: Sequence[Event]) -> int | None:
    """The number of the phase under way."""
    return next((event.phase for event in reversed(events) if event.kind == "phase"), None)

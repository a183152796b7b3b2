"""Group: several agents in one conversation."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import attrs

from agent_memory.agent import Agent
from agent_memory.config import is_text
from agent_memory.errors import RequestError, UnsupportedParameterError, repr_of
from agent_memory.generation import Generation
from agent_memory.groups.events import Event, Utterance
from agent_memory.groups.phases import Phase, Topology, openings
from agent_memory.groups.record import Record, phase_of
from agent_memory.groups.seats import Seat
from agent_memory.groups.speaking import Speaking
from agent_memory.groups.views import in_order
from agent_memory.groups.voting import (
    Tally,
    ballot_of,
    ballot_question,
    ballot_schema,
    ballots_in,
    checked_vote,
    counted,
    open_vote,
)
from agent_memory.log.log import Log
from agent_memory.requests.asking import Asking
from agent_memory.requests.batching import replies
from agent_memory.requests.options import Options, Settings, takes_options, unknown_option
from agent_memory.types import Reply

_NOT = ("raw", "on_diverge")  #: options that have no meaning where a conversation goes on by itself


class Group:
    """Several agents in one conversation; ``Memory.group`` makes it. Thread-safe; one object a group.

    - What happened stands in the group's own log, what a member knows in the log of its seat, an agent of its own.
    - A member's view only grows: a turn computes what the member has not heard yet, and nothing else.
    - What a member said is taken over from its seat's log when the group is used next, in another process too.
    - Durable at the next flush, in order: a killed process leaves a beginning of what happened.
    """

    def __init__(
        self, asking: Asking, name: str, log: Log, seats: Sequence[Seat], topology: Topology, phases: tuple[Phase, ...]
    ) -> None:
        self._asking, self._name, self._topology, self._phases = asking, name, topology, phases
        self._seats = {seat.member: seat for seat in seats}
        self._record = Record(asking, log, seats, topology, phases)
        self._speaking = Speaking(asking, name, self._seats)
        self._lock = threading.RLock()  #: from a look at what happened to the start of what follows from it

    def __repr__(self) -> str:
        number = phase_of(self._record.known())
        phase = "" if number is None else f" phase={self._phases[number].name!r}"
        return f"Group({self._name!r} members={list(self._seats)} topology={self._topology!r}{phase})"

    @property
    def name(self) -> str:
        """The group's name."""
        return self._name

    @property
    def members(self) -> tuple[str, ...]:
        """The members' names, in their order."""
        return tuple(self._seats)

    @property
    def topology(self) -> Topology:
        """Who speaks when, where a phase says nothing else."""
        return self._topology

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases, as they were given when the group was made."""
        return self._phases

    @property
    def phase(self) -> str | None:
        """The phase under way; None before the first, and in a group without phases."""
        number = phase_of(self._record.settled())
        return None if number is None else self._phases[number].name

    @property
    def transcript(self) -> tuple[Utterance, ...]:
        """Everything that was said so far, whispers included: for the host, no member sees it."""
        return self._record.utterances()

    def member(self, name: str | Agent) -> Agent:
        """Return the member's agent in this group: its log, its tokens. What it says there by itself is private."""
        seat = self._seat(name)
        seat.ensure_exists()
        return Agent(self._asking, seat.log)

    def say(self, text: str, sender: str | Agent | None = None) -> None:
        """Tell the members of this phase something; nobody answers yet.

        ``sender``: a member, or any other name; None: the host, whose words come without a name.
        """
        speaker, told = self._speaker(sender), self._told(text)
        self._record.note(lambda events: [self._record.public(events, "say", told, speaker)])

    def whisper(self, sender: str | Agent | None, to: str | Agent, text: str) -> None:
        """Let ``to`` alone hear something that ``sender`` says, a member or the host (None)."""
        speaker = None if sender is None else self._seat(sender).member
        hearer = self._seat(to).member
        if speaker == hearer:
            raise UnsupportedParameterError(f"{speaker} cannot whisper to itself")
        heard_by = (hearer,) if speaker is None else (speaker, hearer)
        told = Event(kind="whisper", speaker=speaker, text=self._told(text), to=heard_by)
        self._record.note(lambda events: [attrs.evolve(told, phase=phase_of(events))])

    @takes_options(without=_NOT)
    def stream(self, agent: str | Agent | None = None, **options: Unpack[Options]) -> Generation:
        """Start a member's turn and return its handle: iterate it, await it. Arguments and errors as in ``turn``."""
        settings = _settings(Group.stream, options)
        with self._lock:
            events, floor = self._record.floor()
            member = self._speaking.next_of(floor) if agent is None else self._seat(agent).member
            self._speaking.ensure_may(member, floor)
            return self._speaking.start([member], events, settings, floor)[member]

    @takes_options(without=_NOT)
    def turn(self, agent: str | Agent | None = None, **options: Unpack[Options]) -> Reply:
        """Let a member speak, and return its reply. In topology "turns" the one whose turn it is, named or not.

        In topology "round" each member speaks once in a round, and hears the others of that round after it. Raises
        RequestError where it is not this member's turn.
        """
        _settings(Group.turn, options)
        with self.stream(agent, **options) as handle:
            reply = handle.result()
        self._record.settled()
        return reply

    @takes_options(without=_NOT)
    def round(self, **options: Unpack[Options]) -> dict[str, Reply]:
        """Let everybody speak who has not yet in this round, in one batch, all on the same state; replies by member.

        In topology "turns" they speak one after another instead. The first error ends the batch; what was said stays,
        and the next ``round()`` goes on with those who are left.
        """
        _settings(Group.round, options)
        floor = self._record.floor()[1]
        if floor.topology == "turns":
            return {member: self.turn(member, **options) for member in floor.left}
        return self._replies(self.stream_round(**options))

    @takes_options(without=_NOT)
    def stream_round(self, **options: Unpack[Options]) -> dict[str, Generation]:
        """Start a round in one batch, and return the handles by member. Not in topology "turns"."""
        settings = _settings(Group.stream_round, options)
        with self._lock:
            events, floor = self._record.floor()
            if floor.topology == "turns":
                raise UnsupportedParameterError('topology "turns" has no batch: stream() one turn after another')
            return self._speaking.start(floor.round_of, events, settings, floor)

    @takes_options(without=_NOT)
    def broadcast(self, text: str, sender: str | Agent | None = None, **options: Unpack[Options]) -> dict[str, Reply]:
        """Tell everybody something, and let all but the sender answer at once, in one batch and out of the order."""
        settings = _settings(Group.broadcast, options)
        self.say(text, sender)
        speaker = self._speaker(sender)
        with self._lock:
            events, floor = self._record.floor()
            handles = self._speaking.start([m for m in floor.members if m != speaker], events, settings)
        return self._replies(handles)

    @takes_options(without=_NOT)
    def interrupt(self, agent: str | Agent, **options: Unpack[Options]) -> Reply:
        """Let a member speak now, out of the order. Turns that run are cancelled: they were not taken."""
        settings, member = _settings(Group.interrupt, options), self._seat(agent).member
        with self._lock:
            for handle in self._speaking.running().values():
                handle.cancel()
                handle.outcome()
            handles = self._speaking.start([member], self._record.settled(), settings)
        return self._replies(handles)[member]

    @takes_options(without=(*_NOT, "schema"))
    def vote(self, question: str, options: Sequence[str], *, ranked: bool = False, **how: Unpack[Options]) -> Tally:
        """Ask every member of this phase for a secret ballot, in one batch, and tell all the result.

        ``ranked``: a ballot orders the options, and Borda's count decides. Ballots are held to the options by a
        grammar. A vote that was cut short goes on when it is asked again; those who have voted are not asked twice.
        Raises MissingExtraError without llguidance, RequestError in the middle of a round or of another vote.
        """
        settings = _settings(Group.vote, how, "schema")
        choices = checked_vote(question, options, is_ranked=ranked)
        settings = attrs.evolve(settings, schema=ballot_schema(choices, is_ranked=ranked))
        more = {"question": question, "options": list(choices), "ranked": ranked}
        with self._lock:
            number = self._open_vote(more)
            events, floor = self._record.floor()
            opened = next(n for n, event in enumerate(events) if event.kind == "vote" and event.number == number)
            voters = [member for member in floor.members if member not in ballots_in(events, number)]
            asks = ballot_question(question, choices, is_ranked=ranked)
            handles = self._speaking.start(voters, events[: opened + 1], settings, vote=number, asks=asks)
        self._replies(handles)
        given = ballots_in(self._record.settled(), number)
        ballots = {m: ballot_of(given[m], choices, is_ranked=ranked) for m in floor.members if m in given}
        tally = counted(question, choices, ballots, is_ranked=ranked)
        told = f"The vote on {json.dumps(question, ensure_ascii=False)} is over: {tally}."
        self._record.note(lambda found: [attrs.evolve(self._record.public(found, "tally", told), number=number)])
        return tally

    def next_phase(self) -> Phase | None:
        """Begin the next phase: its opening is said, with what it quotes of earlier ones. None after the last.

        Raises RequestError while a turn runs.
        """
        with self._lock:
            self._speaking.ensure_quiet()
            current = phase_of(self._record.settled())
            number = 0 if current is None else current + 1
            if number >= len(self._phases):
                return None
            self._record.note(lambda events: openings(self._phases, number, in_order(events, self.members)))
            return self._phases[number]

    @takes_options(without=_NOT)
    def run(self, **options: Unpack[Options]) -> tuple[Utterance, ...]:
        """Take all turns that are left of this phase and of those after it; return what was said.

        Raises UnsupportedParameterError for a group without phases.
        """
        _settings(Group.run, options)
        if not self._phases:
            raise UnsupportedParameterError(f"group {self._name!r} has no phases to run; take turns or rounds")
        n_before = len(self.transcript)
        while self.phase is not None or self.next_phase() is not None:
            number = phase_of(self._record.settled())
            assert number is not None
            while not self._record.floor()[1].is_over(self._phases[number].rounds):
                self.round(**options)
            if self.next_phase() is None:
                break
        return self.transcript[n_before:]

    def delete(self) -> bool:
        """Delete the group: its log and its seats, not the agents that it was made of. False where it is gone."""
        with self._lock:
            self._speaking.ensure_quiet()
            for seat in self._seats.values():
                self._asking.agents.delete(seat.log)
            return self._asking.agents.delete(self._record.log)

    def _replies(self, handles: Mapping[str, Generation]) -> dict[str, Reply]:
        try:
            return dict(zip(handles, replies(list(handles.values())), strict=True))
        finally:
            self._record.settled()

    def _open_vote(self, more: Mapping[str, Any]) -> int:
        """The number of the vote that is open, or of a new one. Raises RequestError."""
        events, floor = self._record.floor()
        if (vote := open_vote(events)) is not None:
            number = int(vote.number or 0)
            if dict(vote.more) == more:
                return number
            if ballots_in(events, number):
                asked, options = vote.more.get("question"), vote.more.get("options")
                raise RequestError(
                    f"a vote is open and not over: ask it again first, {repr_of(asked)} with {repr_of(options)}"
                )  # without a ballot it was perhaps one that nobody can be asked, and another takes its place
        self._speaking.ensure_quiet()
        if floor.heard is not None:
            raise RequestError(f"the round is not over: {' and '.join(floor.left)} have yet to speak; then vote")
        number = len([event for event in events if event.kind == "vote"]) + 1
        self._record.note(lambda found: [Event(kind="vote", number=number, phase=phase_of(found), more=more)])
        return number

    def _seat(self, name: str | Agent) -> Seat:
        """The seat of a member, which may be given by its name or as an Agent, its own or the seat's."""
        found = name.name.removeprefix(f"{self._name}/") if isinstance(name, Agent) else name
        if not isinstance(found, str) or found not in self._seats:
            known = ", ".join(self._seats)
            raise UnsupportedParameterError(f"{repr_of(name)} is no member of group {self._name!r}, which has {known}")
        return self._seats[found]

    def _speaker(self, sender: str | Agent | None) -> str | None:
        if sender is None or (isinstance(sender, str) and sender not in self._seats):
            return None if sender is None else self._told(sender)
        return self._seat(sender).member

    def _told(self, text: object) -> str:
        """A text of the host's, without secrets. Raises UnsupportedParameterError."""
        if not isinstance(text, str) or not is_text(text) or not text.strip():
            raise UnsupportedParameterError(f"what is said in a group must be text, not blank: got {repr_of(text)}")
        return self._asking.longterm.clean(text)


def _settings(method: Callable[..., Any], options: Mapping[str, Any], *refused: str) -> Settings:
    """The options of a turn. Raises UnsupportedParameterError for those that have no meaning in a group."""
    for name in (*_NOT, *refused):
        if name in options:
            raise unknown_option(method, name)
    return Settings.of(method, options)

"""Seats: a member's own agent in one group, and what its log says of the group's questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import frozen

from agent_memory.errors import AgentDeletedError, UnknownAgentError
from agent_memory.groups.events import Event, Mark
from agent_memory.log.log import Log
from agent_memory.requests.asking import Asking
from agent_memory.types import Message


def seat_name(group: str, member: str) -> str:
    """The name of a member's agent in a group."""
    return f"{group}/{member}"


def log_name(group: str) -> str:
    """The name of the agent whose log holds a group's events; no member's, as those are never empty."""
    return f"{group}/"


@frozen
class Asked:
    """A question of the group's in a seat's log, and the member's words that answer it, once they are there."""

    mark: Mark
    reply: Message | None


class Seat:
    """One member's agent in one group: a fork of the member, whose log is what the member knows. Any thread."""

    def __init__(self, group: str, id: str, member: str, log: Log) -> None:
        self.group, self.id, self.member, self.log = group, id, member, log

    @classmethod
    def open(cls, asking: Asking, group: str, id: str, member: str) -> Seat:
        """The seat, made where there is none yet. Raises UnknownAgentError where it would be and there is no member."""
        name = seat_name(group, member)
        log = asking.agents.find(name, identity=asking.identity)
        if log is None:
            own = asking.agents.find(member, identity=asking.identity)
            if own is None:
                raise UnknownAgentError(member)
            log = asking.versions.fork(own, name)
        return cls(group, id, member, log)

    def ensure_exists(self) -> None:
        """Raise AgentDeletedError once the agent of the seat was deleted; it says how the member sits down again."""
        if self.log.is_deleted:
            raise AgentDeletedError(
                self.log.name,
                f"It was the seat of member {self.member!r} in group {self.group!r}. Call memory.group({self.group!r}) "
                f"again: it seats a new fork of agent {self.member!r}, which hears all that was said; or delete() the "
                "group",
            )

    def newest(self) -> Asked | None:
        """The group's newest question that the log has; None before the first."""
        found = self.after(-1, most=1)
        return found[-1] if found else None

    def after(self, number: int, most: int | None = None) -> list[Asked]:
        """The group's questions that the log has from the one after ``number`` on, oldest first; the last ``most``."""
        found: list[Asked] = []
        reply: Message | None = None
        for message in reversed(self.log.messages):
            if message.role == "assistant" and not message.tool_calls and reply is None:
                reply = message
            if message.role != "user":
                continue
            mark = Mark.of(message, self.group, self.id)
            if mark is not None:
                if mark.number <= number:
                    break
                found.append(Asked(mark, reply))
                if len(found) == most:
                    break
            reply = None
        return found[::-1]


def news(
    seats: Sequence[Seat], events: Sequence[Event], hearers: Callable[[int | None], tuple[str, ...] | None]
) -> list[Event]:
    """The events that the seats' logs tell of and ``events`` do not: turns and ballots that have come to their end.

    ``hearers``: gives who hears the turns of a phase.
    """
    found = []
    for seat in seats:
        known = max((event.number or 0 for event in events if event.is_of(seat.member)), default=0)
        for asked in seat.after(known):
            mark, reply = asked.mark, asked.reply
            if reply is None:
                continue
            is_ballot = mark.vote is not None
            found.append(
                Event(
                    kind="ballot" if is_ballot else "turn",
                    speaker=seat.member,
                    text=reply.content,
                    to=() if is_ballot else hearers(mark.phase),
                    phase=mark.phase,
                    round=mark.round,
                    heard=mark.heard,
                    number=mark.number,
                    is_extra=mark.is_extra,
                    more={} if mark.vote is None else {"vote": mark.vote},
                )
            )
    return found

"""Events: what happened in a group, in order, as values; and their stored form, messages of the group's own log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import attrs
from attrs import field, frozen

from agent_memory.types import Message

#: ``group``: its members and phases. ``phase``: one begins. ``say``: by the host, or in somebody's name. ``turn``: a
#: member's own words. ``whisper``. ``vote``: one opens. ``ballot``. ``tally``: a vote's result.
Kind = Literal["group", "phase", "say", "turn", "whisper", "vote", "ballot", "tally"]
SPOKEN: tuple[Kind, ...] = ("say", "turn", "whisper", "tally")

_HEAD, _ASKED = "group event ", "group turn "  #: what the stored form of an event and of a mark begins with


@frozen(kw_only=True)
class Event:
    """One thing that happened in a group."""

    kind: Kind
    speaker: str | None = None  #: a member, or any other name; None: the host
    text: str = ""
    to: tuple[str, ...] | None = None  #: the members that hear it; None: all
    phase: int | None = None  #: number of the phase that it happened in
    round: int | None = None  #: number of the round, where members speak in rounds
    heard: int | None = None  #: of a turn: how many events its speaker had heard before
    number: int | None = None  #: of a turn or a ballot: the member's how-manieth; of a vote and its tally: the vote's
    is_extra: bool = False  #: of a turn: out of the order
    more: Mapping[str, Any] = field(factory=dict)  #: JSON: members and phases of a group; options of a vote

    def message(self) -> Message:
        """The event as a message of the group's log."""
        row = attrs.asdict(self, filter=lambda one, _: one.name != "text")
        return Message("user", self.text, source=_HEAD + _json(row))

    @classmethod
    def of(cls, message: Message) -> Event | None:
        """The event that a message of a group's log stores; None for a message of another origin."""
        if not message.source.startswith(_HEAD):
            return None
        row = json.loads(message.source.removeprefix(_HEAD))
        to = row.pop("to", None)
        return cls(text=message.content, to=None if to is None else tuple(to), **row)

    def is_of(self, member: str) -> bool:
        """True if it is a member's own turn or ballot."""
        return self.speaker == member and self.kind in ("turn", "ballot")

    def is_heard_by(self, member: str) -> bool:
        """True if a member may hear it."""
        return self.kind in SPOKEN and (self.to is None or member in self.to)


@frozen(kw_only=True)
class Utterance:
    """A line of a group's transcript. ``to``: who heard it besides its speaker; None: all members."""

    speaker: str | None  #: None: the host
    text: str
    to: tuple[str, ...] | None = None
    kind: str = "turn"  #: ``say``, ``turn`` (a member's own words), ``whisper`` or ``tally``
    phase: str | None = None

    def __str__(self) -> str:
        to = "" if self.to is None else f" (to {', '.join(self.to)})"
        return f"{self.speaker or 'host'}{to}: {self.text}"


@frozen(kw_only=True)
class Mark:
    """What the log of a member's seat says with each question of the group: how far the member has heard by then."""

    group: str
    heard: int
    number: int  #: of the member's turns and ballots, from 1
    phase: int | None = None
    round: int | None = None
    vote: int | None = None  #: the vote that this question asks a ballot for
    is_extra: bool = False

    def source(self) -> str:
        """The mark as it is stored with the question, which the model does not see."""
        return _ASKED + _json(attrs.asdict(self))

    @classmethod
    def of(cls, message: Message, group: str) -> Mark | None:
        """The mark of a question that ``group`` asked; None for any other message."""
        if message.role != "user" or not message.source.startswith(_ASKED):
            return None
        row = json.loads(message.source.removeprefix(_ASKED))
        return cls(**row) if row.get("group") == group else None


def _json(row: Mapping[str, Any]) -> str:
    """Compact JSON of what says something: 0 does."""
    kept = {name: value for name, value in row.items() if value is not None and value is not False and value != {}}
    return json.dumps(kept, separators=(",", ":"))

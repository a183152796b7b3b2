"""Events: what happened in a group, in order, as values; and their stored form, messages of the group's own log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import attrs
from attrs import field, frozen
from attrs.validators import and_, deep_iterable, ge, in_, instance_of, optional

from agent_memory.types import Message

#: ``group``: its members and phases. ``phase``: one begins. ``say``: by the host, or in somebody's name. ``turn``: a
#: member's own words. ``whisper``. ``vote``: one opens. ``ballot``. ``tally``: a vote's result.
Kind = Literal["group", "phase", "say", "turn", "whisper", "vote", "ballot", "tally"]
SPOKEN: tuple[Kind, ...] = ("say", "turn", "whisper", "tally")

_HEAD, _ASKED = "group event ", "group turn "  #: what the stored form of an event and of a mark begins with
_TEXT: Any = optional(instance_of(str))
_TEXTS: Any = optional(deep_iterable(instance_of(str)))
_COUNT: Any = and_(instance_of(int), ge(0))


@frozen(kw_only=True)
class Event:
    """One thing that happened in a group."""

    kind: Kind = field(validator=in_(get_args(Kind)))
    speaker: str | None = field(default=None, validator=_TEXT)  #: a member, or any other name; None: the host
    text: str = ""
    #: the members that hear it; None: all
    to: tuple[str, ...] | None = field(default=None, validator=_TEXTS)
    phase: int | None = field(default=None, validator=optional(_COUNT))  #: number of the phase that it happened in
    #: number of the round, where members speak in rounds
    round: int | None = field(default=None, validator=optional(_COUNT))
    #: of a turn: how many events its speaker had heard before
    heard: int | None = field(default=None, validator=optional(_COUNT))
    #: of a turn or a ballot: the member's how-manieth; of a vote and its tally: the vote's
    number: int | None = field(default=None, validator=optional(_COUNT))
    is_extra: bool = False  #: of a turn: out of the order
    #: JSON: members and phases of a group; options of a vote
    more: Mapping[str, Any] = field(factory=dict, validator=instance_of(dict))

    def message(self) -> Message:
        """The event as a message of the group's log."""
        row = attrs.asdict(self, filter=lambda one, _: one.name != "text")
        return Message("user", self.text, source=_HEAD + _json(row))

    @classmethod
    def of(cls, message: Message) -> Event | None:
        """The event that a message of a group's log stores; None for a message of another origin."""
        if (row := _row(message, _HEAD)) is None:
            return None
        try:
            to = row.pop("to", None)
            return cls(text=message.content, to=None if to is None else tuple(to), **row)
        except (TypeError, ValueError):  # a stranger's: an agent's file holds what it likes
            return None

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
    id: str = ""  #: the group's: one that was made later under that name has another; "" of groups older than this
    heard: int = field(validator=_COUNT)
    number: int = field(validator=_COUNT)  #: of the member's turns and ballots, from 1
    phase: int | None = field(default=None, validator=optional(_COUNT))
    round: int | None = field(default=None, validator=optional(_COUNT))
    #: the vote that this question asks a ballot for
    vote: int | None = field(default=None, validator=optional(_COUNT))
    is_extra: bool = False

    def source(self) -> str:
        """The mark as it is stored with the question, which the model does not see."""
        return _ASKED + _json(attrs.asdict(self))

    @classmethod
    def of(cls, message: Message, group: str, id: str) -> Mark | None:
        """The mark of a question that ``group`` asked; None for any other message."""
        row = _row(message, _ASKED) if message.role == "user" else None
        if row is None or (row.get("group"), row.get("id", "")) != (group, id):
            return None
        try:
            return cls(**row)
        except (TypeError, ValueError):  # a stranger's
            return None


def _row(message: Message, head: str) -> dict[str, Any] | None:
    """Return what a message stores behind ``head``; None where that is nothing that can be read."""
    if not message.source.startswith(head):
        return None
    try:
        row = json.loads(message.source.removeprefix(head))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _json(row: Mapping[str, Any]) -> str:
    """Compact JSON of what says something: 0 does."""
    kept = {name: value for name, value in row.items() if value is not None and value is not False and value != {}}
    return json.dumps(kept, separators=(",", ":"))

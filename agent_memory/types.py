"""The values that callers see: messages, requests' settings, replies and figures. All frozen."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from attrs import Factory, field, frozen
from attrs.validators import optional

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.figures import Choice as Choice
from agent_memory.figures import Doctor as Doctor
from agent_memory.figures import Health as Health
from agent_memory.figures import Histogram as Histogram
from agent_memory.figures import Stats as Stats
from agent_memory.usage import EXACTNESS as EXACTNESS
from agent_memory.usage import TIERS as TIERS
from agent_memory.usage import AsDict
from agent_memory.usage import DivergedAt as DivergedAt
from agent_memory.usage import Exactness as Exactness
from agent_memory.usage import MissCause as MissCause
from agent_memory.usage import Role as Role
from agent_memory.usage import Tier as Tier
from agent_memory.usage import Usage as Usage
from agent_memory.usage import is_weaker as is_weaker
from agent_memory.usage import weakest as weakest
from agent_memory.views.page import Note, Page, Part, Plain, Shown, Table
from agent_memory.views.units import count, seconds, size

Finish = Literal["stop", "length", "tool_calls"]
OnDiverge = Literal["replace", "branch", "error"]  #: what to do with a list that is another history than the agent's

_MOST = sys.float_info.max


def _number(wanted: str, is_right: Callable[[Any], bool], *kinds: type) -> Callable[[Any, Any, Any], None]:
    """A validator of finite numbers that raises this library's own error; a bool is no number."""

    def check(_: Any, attribute: Any, value: Any) -> None:
        is_number = isinstance(value, kinds or (int, float)) and not isinstance(value, bool)
        if not is_number or not (kinds or -_MOST <= value <= _MOST) or not is_right(value):
            kind = "an int" if kinds else "a number"
            raise UnsupportedParameterError(f"{attribute.name} must be {kind}, {wanted}: got {repr_of(value)}")

    return check


def _must(be: str, is_right: Callable[[Any], bool]) -> Callable[[Any, Any, Any], None]:
    def check(_: Any, attribute: Any, value: Any) -> None:
        if not is_right(value):
            raise UnsupportedParameterError(f"{attribute.name} must be {be}, got {repr_of(value)}")

    return check


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Collection) or not all(isinstance(one, str) for one in value):
        raise UnsupportedParameterError(f"kinds must be a list of texts, got {repr_of(value)}")
    return tuple(value)


@frozen
class Tool:
    """A tool that the model may call. ``parameters``: a JSON Schema of an object.

    ``strict``: a request in which calls cannot be held to that schema is refused; otherwise they are then free.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False


#: A value of ``tools=``: a Tool, either API's dict, or a typed Python function.
ToolLike = Tool | Mapping[str, Any] | Callable[..., Any]

#: A value of ``tool_choice=``; a mapping is ``{"name": ...}`` of one tool.
ToolChoice = Literal["auto", "none", "required", "any"] | Mapping[str, str]


@frozen
class ToolCall:
    """A call that the model asked for."""

    name: str
    arguments: Mapping[str, Any]
    id: str
    source: str = field(default="", eq=False, repr=False)  #: the arguments' JSON as the model wrote it, if it did


@frozen
class ToolResult:
    """The answer to one tool call. ``content``: text, or a list of text blocks."""

    id: str
    content: str | Sequence[Mapping[str, Any]]
    is_error: bool = False


@frozen
class RejectedCall:
    """A call that must not be run; ``detail`` says why."""

    reason: Literal["undeclared", "malformed", "truncated", "parallel"]
    name: str | None  #: where one could be read
    source: str = field(repr=False)  #: as the model wrote it, markup included
    detail: str


@frozen
class Card:
    """A remembered item as the model reads it, in front of a message."""

    id: int  #: of the item, in its workspace
    text: str  #: whole lines, escaped
    workspace: str = "default"
    score: float = field(default=0.0, eq=False)
    parts: Mapping[str, float] = field(factory=dict, eq=False, repr=False)  #: sum to ``score``; a log keeps neither


@frozen(kw_only=True)
class Recall:
    """What a turn recalls, and whether it is remembered. Raises UnsupportedParameterError.

    ``k``: most cards that a question recalls. ``budget_tokens``: most tokens that a turn's new cards take.
    """

    workspace: str = field(
        default="default",
        validator=_must("a text", lambda v: isinstance(v, str) and 0 < len(v) <= 200 and v.isprintable()),
    )
    budget_tokens: int = field(default=512, validator=_number("0 or more", lambda v: v >= 0, int))
    kinds: tuple[str, ...] = field(default=(), converter=_names)  #: of items, as in ``ContextMemory.recall``; () is all
    k: int = field(default=4, validator=_number("1 to 100", lambda v: 1 <= v <= 100, int))
    remember: bool = field(default=True, validator=_must("a bool", lambda v: isinstance(v, bool)))


@frozen
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    #: the model's whole text, calls and tags included, where ``content`` is not all of it
    source: str = field(default="", eq=False, repr=False)
    #: what stands in front of ``content`` where the model reads it
    recalled: tuple[Card, ...] = field(default=(), eq=False, repr=False)

    def __repr__(self) -> str:
        text = self.content if len(self.content) <= 60 else self.content[:57] + "..."
        return f"Message({self.role}: {text!r})"


#: A prompt: text (one user message), a message, or a list of messages, ours or either API's.
Prompt = str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]


@frozen(kw_only=True)
class Sampling:
    """How tokens are drawn from the model's probabilities; the default is greedy. Raises UnsupportedParameterError."""

    temperature: float = field(default=0.0, validator=_number("0 or more", lambda v: v >= 0))
    top_p: float = field(default=1.0, validator=_number("above 0 and at most 1", lambda v: 0 < v <= 1))
    top_k: int = field(default=0, validator=_number("0 or more", lambda v: v >= 0, int))  #: 0: no limit
    min_p: float = field(default=0.0, validator=_number("between 0 and 1", lambda v: 0 <= v <= 1))
    repetition_penalty: float = field(default=1.0, validator=_number("above 0", lambda v: v > 0))
    #: tokens looked back
    repetition_context: int = field(default=64, validator=_number("above 0", lambda v: v > 0, int))
    seed: int | None = field(default=None, validator=optional(_number("0 or more", lambda v: v >= 0, int)))

    @property
    def is_greedy(self) -> bool:
        """True if the most probable token is always taken."""
        return self.temperature == 0.0


@frozen(kw_only=True)
class Reply(Shown):
    """A finished generation."""

    text: str
    finish: Finish
    usage: Usage
    message: Message
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    rejected_calls: tuple[RejectedCall, ...] = ()
    parsed: Any = None
    stopped: str | None = None  #: the stop string that ended the text
    token_ids: tuple[int, ...] = field(default=(), repr=False)  #: the ids that the log keeps for this reply
    recalled: tuple[Card, ...] = field(default=(), repr=False)  #: what was put in front of the new message
    paused: Mapping[str, str] = field(factory=dict)  #: of run_tools: ids of calls that wait for a result -> why
    id: str = field(default="", eq=False, repr=False)  #: of the request, as in logs, the recorder and ``Generation.id``
    agent: str | None = field(default=None, eq=False, repr=False)  #: whose turn it is

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return f"Reply({repr_of(text)} finish={self.finish} {repr_of(self.usage)})"

    def __str__(self) -> str:
        return self.text

    def _page(self) -> Page:
        u, parts = self.usage, list[Part]()
        if self.reasoning:
            parts.append(Note(self.reasoning))
        if self.text:
            parts.append(Plain(self.text))
        calls = [(call.name, json.dumps(call.arguments, ensure_ascii=False, default=str)) for call in self.tool_calls]
        calls += [("rejected", one.source) for one in self.rejected_calls]
        parts += [Table(calls, ("call", "arguments"))] if calls else []
        parts.append(u.by_tier)
        reused = (
            f"{u.cached_tokens:,} of {u.prompt_tokens:,} prompt tokens reused, first token after {seconds(u.ttft_s)}"
        )
        parts.append(Note(reused + ("" if self.finish == "stop" else f", ended by {self.finish}")))
        return Page(f"Reply of {self.agent}" if self.agent else "", parts)


@frozen
class Text:
    """A piece of the visible answer. ``source``: the text itself; nothing where earlier events hold it, as those of a
    call that was given out and turned out malformed.
    """

    text: str
    source: str = field(default=Factory(lambda self: self.text, takes_self=True), repr=False)


@frozen
class Reasoning:
    """A piece of the text between the model's reasoning tags."""

    text: str

    @property
    def source(self) -> str:
        """The text itself."""
        return self.text


@frozen
class Markup:
    """Text that is neither answer nor call: a reasoning tag, the end of a call, blanks next to either."""

    source: str


@frozen
class CallStart:
    """A call opens. ``index`` counts the calls of a reply from 0."""

    index: int
    id: str
    name: str
    source: str = field(default="", repr=False)


@frozen
class CallArguments:
    """A piece of a call's arguments, JSON as the model wrote it; the pieces of one call join to one object."""

    index: int
    text: str
    source: str = field(default="", repr=False)


@frozen
class CallEnd:
    """A call closes: with ``call``, or with ``rejected`` where it turned out malformed or cut short.

    The text of a malformed call follows, as ``Text``.
    """

    index: int
    call: ToolCall | None
    rejected: RejectedCall | None = None
    source: str = field(default="", repr=False)


@frozen
class CallRejected:
    """Text that looks like a call but is none; it comes as ``Text`` too."""

    rejected: RejectedCall

    @property
    def source(self) -> str:
        """Empty: the ``Text`` event has it."""
        return ""


#: A part of a reply; parts come in order. The ``source`` of all events of a reply joins to what the model wrote.
Event = Text | Reasoning | Markup | CallStart | CallArguments | CallEnd | CallRejected


@frozen
class Delta:
    """One piece of a reply: ``text`` is its visible text, whole characters; ``events`` says what else there was."""

    text: str
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    events: tuple[Event, ...] = field(default=(), repr=False)

    @property
    def reasoning(self) -> str:
        """The reasoning in this piece."""
        return "".join(event.text for event in self.events if isinstance(event, Reasoning))


@frozen(kw_only=True)
class AgentInfo:
    """An agent at a glance.

    ``tier_tokens``, ``tier_bytes``: how much of its log each tier holds, hot, warm or cold, looked up when they are
    first read. Bytes that other agents use too count in full for each of them; versions do not count. ``cold``: as
    last committed. A turn that runs has its KV in no tier.
    """

    name: str
    n_turns: int
    n_messages: int
    n_tokens: int
    system: str | None = None
    created_s: float = 0.0  #: Unix time
    used_s: float = 0.0
    is_pinned: bool = False
    n_checkpoints: int = 0
    tier_tokens: Mapping[Tier, int] = field(factory=dict, eq=False, repr=False)
    tier_bytes: Mapping[Tier, int] = field(factory=dict, eq=False, repr=False)


@frozen(kw_only=True)
class VerifyReport(AsDict, Shown):
    """The result of ``Memory.verify()``."""

    segments: int
    chunks: int
    bytes_read: int
    turns: int
    damaged: tuple[str, ...] = ()  #: one line each
    unread: tuple[str, ...] = ()  #: files that could not be read just now, damaged or not; one line each
    strangers: tuple[str, ...] = ()  #: files in the folder that the store did not make, and never removes

    @property
    def ok(self) -> bool:
        """True if every file could be read and none was damaged."""
        return not self.damaged and not self.unread

    def _page(self) -> Page:
        found = [(kind, line) for kind in ("damaged", "unread", "strangers") for line in getattr(self, kind)]
        title = "The store is whole" if self.ok else f"{len(self.damaged)} damaged, {len(self.unread)} not readable"
        read = f"{count(self.segments, 'segment')} ({size(self.bytes_read)}) and {count(self.turns, 'turn')} read"
        return Page(title, [Note(read), *([Table(found)] if found else [])])

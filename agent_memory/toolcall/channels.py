"""Harmony, the way in which gpt-oss writes: messages in channels. ``analysis`` is reasoning, ``final`` and
``commentary`` are text, and a message to ``functions.name`` is a call, in whatever channel, and wherever in its header
the receiver stands.

A reply begins behind ``<|start|>assistant``, which the prompt has written. What stands between the marks of a header is
markup; text before the first header is text.
"""

from __future__ import annotations

import re

from agent_memory.toolcall.forms import ChannelForm, Form
from agent_memory.toolcall.framing import ArgumentsReader
from agent_memory.toolcall.marks import BLANKS, Beginnings, Shape
from agent_memory.toolcall.output import Output, Reason
from agent_memory.toolcall.phases import Phase
from agent_memory.toolcall.reading import CUT

_BEGIN, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_MARKS = (_BEGIN, _CHANNEL, _MESSAGE, *_ENDS)
_ANY = re.compile("|".join(map(re.escape, _MARKS)))
_BEHIND = re.compile("|".join(map(re.escape, (_MESSAGE, *_ENDS))))  #: what ends a header
_BEGUN = Beginnings(_MARKS)
_TO = re.compile(r"\bto=([^\s<]+)")
_KIND = re.compile(re.escape(_CHANNEL) + r"\s*(\w+)")
_CALLED = "to=functions."
_MAX_HEADER = 600
_CLOSES = Shape((r"<|call|>",), (r"<|end|>",), (r"<|return|>",), (_BEGIN,), (_CHANNEL,))


class ChannelPhase:
    """Text or reasoning of one message, or what stands between two; the home of every other phase of the format."""

    is_call = False

    def __init__(self, output: Output, *, takes_calls: bool = True) -> None:
        self._output, self.takes_calls = output, takes_calls
        self.is_reasoning = False

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read up to the mark that begins a header or ends the message."""
        found = _ANY.search(text, at)
        if found is None:
            stop = len(text) - _BEGUN.held_back(text, at)
            self._say(text[at:stop])
            return stop, self
        self._say(text[at : found.start()])
        self._output.is_line_start = True
        if found.group() in (_BEGIN, _CHANNEL):
            return found.start(), HeaderPhase(self._output, self)
        self.is_reasoning = self.is_reasoning and found.group() == _MESSAGE
        self._output.mark(found.group())
        return found.end(), self

    def end(self, held: str) -> tuple[str, Phase | None]:
        """What was held back belongs to the message."""
        self._say(held)
        return "", None

    def opened(self, held: str) -> None:
        """Nothing is open."""

    def _say(self, text: str) -> None:
        if self.is_reasoning:
            self._output.reasoning(text)
        else:
            self._output.text(text)


class ReplyPhase:
    """The beginning of a reply: the prompt has begun its header, and a receiver may stand next in it."""

    is_call = False
    _RECEIVER = Shape((BLANKS, _CALLED))

    def __init__(self, output: Output, home: ChannelPhase) -> None:
        self._output, self._home = output, home

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Tell whether a receiver stands there."""
        if self._RECEIVER.match(text, at) is not None:
            return at, HeaderPhase(self._output, self._home)
        return at, self if self._RECEIVER.may_begin(text, at) else self._home

    def end(self, held: str) -> tuple[str, Phase | None]:
        """What was held back is text."""
        return held, self._home

    def opened(self, held: str) -> None:
        """Nothing is open."""


class HeaderPhase:
    """A header, up to the message that it is of."""

    def __init__(self, output: Output, home: ChannelPhase) -> None:
        self._output, self._home = output, home
        self._parts: list[str] = []
        self._n = 0

    @property
    def is_call(self) -> bool:
        """True once a function is named as the receiver."""
        return _CALLED in "".join(self._parts)

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read up to the mark at which the message begins; what is too long for a header is text."""
        found = _BEHIND.search(text, at)
        stop = found.start() if found else len(text) - _BEGUN.held_back(text, at)
        stop = min(stop, at + _MAX_HEADER - self._n)
        self._parts.append(text[at:stop])
        self._n += stop - at
        if self._n >= _MAX_HEADER:
            self._output.text("".join(self._parts))
            return stop, self._home
        if found is None:
            return stop, self
        header = "".join(self._parts)
        if found.group() != _MESSAGE:
            self._output.mark(header)
            return stop, self._home
        to, kind = _TO.search(header), _KIND.search(header)
        if to is not None and self._home.takes_calls and to[1] != "assistant":
            self._home.is_reasoning = False
            return found.end(), MessageCallPhase(
                to[1].removeprefix("functions."), header + _MESSAGE, self._output, self._home
            )
        self._home.is_reasoning = kind is not None and kind[1] == "analysis"
        self._output.mark(header + _MESSAGE, drops_blanks=False)
        return found.end(), self._home

    def end(self, held: str) -> tuple[str, Phase | None]:
        """The output ends in the header: it says nothing."""
        raw = "".join(self._parts) + held
        if self.is_call and self._home.takes_calls:
            self._output.refuse("truncated", None, raw, CUT)
        else:
            self._output.mark(raw)
        return "", None

    def opened(self, held: str) -> tuple[Form, str] | None:
        """Held once a function is the receiver."""
        header = "".join(self._parts) + held
        _, called, written = header.partition(_CALLED)
        return (ChannelForm(), written) if called and self._home.takes_calls else None


class MessageCallPhase:
    """The message of a call: its arguments, and the mark that ends it."""

    is_call = True

    def __init__(self, name: str, head: str, output: Output, home: ChannelPhase) -> None:
        self._name, self._home, self._output = name, home, output
        self._head, self._written = head, head.partition(_CALLED)[2]
        self._blanks = ""
        self._call: ArgumentsReader | None = None

    def feed(self, text: str, at: int) -> tuple[int, Phase]:
        """Read the arguments, and up to the mark behind them."""
        if self._call is None:
            rest = text[at:].lstrip(" \t\r\n")
            stop = len(text) - len(rest)
            self._blanks += text[at:stop]
            if not rest:
                return stop, self
            self._call = ArgumentsReader(self._name, None, self._output, self._head + self._blanks)
            at = stop
        if not self._call.done:
            at = self._call.feed(text, at)
            if self._call.failed:
                return at, self._abandon("malformed", "its arguments are not JSON")
            if not self._call.done:
                return at, self
        rest = text[at:].lstrip(" \t\r\n")
        stop = len(text) - len(rest)
        if _CLOSES.match(text, stop) is not None:
            return stop, self._complete(text[at:stop])
        if not rest or _CLOSES.may_begin(text, stop):
            return at, self
        return at, self._abandon("malformed", "text stands behind its arguments")

    def end(self, held: str) -> tuple[str, Phase | None]:
        """The output ends in the call: complete arguments count."""
        if self._call is not None and self._call.done:
            return "", self._complete(held)
        if self._call is None:
            self._output.refuse("truncated", self._name, self._head + self._blanks + held, CUT)
            return "", self._home
        return held, self._abandon("truncated", CUT)

    def opened(self, held: str) -> tuple[Form, str] | None:
        """Held to its end."""
        written = self._call.written if self._call is not None else ""
        return ChannelForm(), self._written + self._blanks + written + held

    def _complete(self, behind: str) -> Phase:
        call = self._call
        assert call is not None
        try:
            found = call.found()
        except ValueError as error:
            return self._abandon("malformed", str(error), behind)
        if call.given is not None:
            call.given.end(found, behind)
        else:
            self._output.refuse("undeclared", found.name, call.raw + behind)
        return self._home

    def _abandon(self, reason: Reason, detail: str, behind: str = "") -> Phase:
        assert self._call is not None
        self._call.fail(reason, detail, behind)
        return self._home

"""ToolParser: a model's text in, events out: the answer, the reasoning, and the calls, while they are being written.

One machine serves streams and whole texts: ``parse`` feeds everything and ends. What it gives depends on the
characters alone, not on how they were cut. It never raises on any text, and loses no character: the ``source`` of all
events joins to what was fed.

The policy:

- Bare JSON is a call only at the beginning of the output or of a line, or right behind a call, outside code fences;
  marks count anywhere in the answer.
- A call of a tool that was not declared stays text and is listed as rejected. So does a malformed one: where it has
  been begun to be given out as a call it ends with a rejected ``CallEnd``, behind which all of its text follows.
- Arguments are what the model wrote: ``{}`` stands for none only where none were written, and a call whose arguments
  are uncertain is rejected.
- Text before, between and after calls is kept; blanks that touch a call or a mark and nothing else are markup.
- A call that is complete but not closed counts; one that is cut short is rejected as truncated.
- What stands in reasoning is reasoning, but for formats whose models open calls there.
"""

from __future__ import annotations

from collections.abc import Callable

from agent_memory.toolcall.channels import ChannelPhase, ReplyPhase
from agent_memory.toolcall.formats import format_of, forms
from agent_memory.toolcall.forms import ChannelForm, ElementForm, Form, FramedForm, LiteralForm, ObjectForm
from agent_memory.toolcall.framing import BegunPhase, FramedPhase
from agent_memory.toolcall.output import Output, Parsed
from agent_memory.toolcall.phases import Phase, ReasoningPhase, TextPhase
from agent_memory.toolcall.reading import GroupPhase, ObjectPhase
from agent_memory.tools import as_tools
from agent_memory.types import Event

THINK = ("<think>", "</think>")  #: the marks of reasoning where a tokenizer names no others


def parse(text: str, tools: object = None, format: str | None = None) -> Parsed:
    """The answer, reasoning and calls in a finished text; ``tools`` and ``format`` as ``ToolParser`` takes them."""
    parser = ToolParser(tools, format)
    parser.feed(text)
    parser.end()
    return parser.parsed


class ToolParser:
    """Finds calls in text that comes in pieces. Not thread-safe; one per reply. Cost: linear.

    ``tools``: the declared tools, in any shape that ``Memory.generate`` takes; None: every name is taken for declared,
    ``()``: none is. ``format``: one of ``FORMATS``; None: any of the JSON forms. ``reasoning``: its two marks, None
    for no such marks. ``in_reasoning``: the prompt ended inside them. ``max_calls``: text after so many calls is text.

    Raises UnsupportedParameterError for an unknown format or a tool of an unknown shape.
    """

    def __init__(
        self,
        tools: object = None,
        format: str | None = None,
        *,
        reasoning: tuple[str, str] | None = THINK,
        in_reasoning: bool = False,
        max_calls: int | None = None,
    ) -> None:
        self._tools = None if tools is None else as_tools(tools)
        names = None if self._tools is None else frozenset(tool.name for tool in self._tools)
        known = forms(format)
        self._output = Output(names, max_calls)
        self._held, self._nests = "", True
        self._home, self._phase = self._phases(format, known if names is None or names else (), reasoning, in_reasoning)

    @property
    def parsed(self) -> Parsed:
        """What was found so far; all of it after ``end``."""
        return self._output.parsed

    @property
    def is_done(self) -> bool:
        """True if ``max_calls`` calls are complete, and what closes the last one has been read."""
        return self._output.is_full and self._phase is self._home

    @property
    def in_call(self) -> bool:
        """True if a call is open."""
        return self._phase.is_call

    @property
    def opened(self) -> tuple[Form, str] | None:
        """The form of the call that is open, if there is no doubt that a call is meant, and what stands behind its
        start mark so far.
        """
        return self._phase.opened(self._held)

    def feed(self, chunk: str) -> list[Event]:
        """The events that became certain with ``chunk``. Of plain text no more is held back than may begin a mark."""
        self._read(self._held + chunk)
        return self._output.flush()

    def end(self) -> list[Event]:
        """The last events."""
        while True:
            held, self._held = self._held, ""
            rest, follows = self._phase.end(held)
            if follows is None:
                break
            self._nests = self._nests and getattr(follows, "nests", True)
            self._phase = follows
            self._read(rest)
        self._output.end()
        return self._output.flush()

    def _read(self, text: str) -> None:
        at = 0
        while at < len(text):
            stop, follows = self._phase.feed(text, at)
            if stop == at and follows is self._phase:
                break
            at, self._phase = stop, follows
        self._held = text[at:]

    def _phases(
        self, format: str | None, known: tuple[Form, ...], reasoning: tuple[str, str] | None, in_reasoning: bool
    ) -> tuple[Phase, Phase]:
        """The phase to which all others return, and the one that begins the reply."""
        output = self._output
        if format is not None and isinstance(forms(format)[0], ChannelForm):
            home = ChannelPhase(output, takes_calls=bool(known))
            return home, ReplyPhase(output, home)
        silent = format_of(format).silent if format is not None else ()
        marked = {form.start: self._opener(form) for form in known if form.start}
        text = TextPhase(output, marked, self._bare(known), silent)
        first: Phase = text
        if reasoning is not None:
            breaks = marked if format is not None and format_of(format).breaks_reasoning else {}
            thoughts = ReasoningPhase(reasoning[1], output, text, breaks)
            text.think(reasoning[0], thoughts)
            first = thoughts if in_reasoning else text
        form = forms(format)[0]
        if isinstance(form, FramedForm) and form.is_begun and first is text:
            texts = [mark.removeprefix(form.start) for mark in silent]
            first = BegunPhase(form if known else None, output, text, texts)
        return text, first

    def _opener(self, form: Form) -> Callable[[Phase], Phase]:
        """What reads a call of a form, behind its start mark."""
        if isinstance(form, ObjectForm):
            return lambda home: ObjectPhase([form], self._output, home, form.start)
        if isinstance(form, FramedForm):
            return lambda home: FramedPhase(form, self._output, home)
        assert isinstance(form, (ElementForm, LiteralForm))
        return lambda home: GroupPhase(form, self._output, home, self._tools, nests=self._nests)

    def _bare(self, known: tuple[Form, ...]) -> dict[str, Callable[[Phase], Phase]]:
        """What reads calls without a start mark, by their first character."""
        objects = [form for form in known if isinstance(form, ObjectForm) and not form.start]
        lists = [form for form in known if isinstance(form, LiteralForm) and not form.start]
        bare: dict[str, Callable[[Phase], Phase]] = {}
        if objects:
            bare["{"] = lambda home: ObjectPhase(objects, self._output, home)
        if lists:
            bare["["] = self._opener(lists[0])
        return bare

"""Tools, tool choice and schema of a request: checked before any work; how the reply is parsed and constrained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from attrs import field, frozen

from agent_memory.errors import MissingExtraError, UnsupportedParameterError, repr_of
from agent_memory.grammar import schemas
from agent_memory.grammar.constraint import Forced, HeldCalls
from agent_memory.grammar.grammar import Grammars, call_grammar, forced_format, value_grammar
from agent_memory.grammar.matcher import Matcher
from agent_memory.protocols import Constraint, Tokenizer
from agent_memory.requests.options import Settings
from agent_memory.scheduler.request import Outcome
from agent_memory.toolcall import ToolParser
from agent_memory.toolcall.formats import forms
from agent_memory.toolcall.forms import Form, FramedForm, ObjectForm
from agent_memory.toolcall.found import loads
from agent_memory.tools import as_tools
from agent_memory.types import Tool


@frozen(kw_only=True)
class Calling:
    """How a reply is parsed and constrained. ``offered`` tools are in the prompt, ``tools`` may be called."""

    offered: tuple[Tool, ...] = ()
    tools: tuple[Tool, ...] = ()
    max_calls: int | None = None  #: generation ends after so many calls
    is_raw: bool = False  #: no template: neither tools nor reasoning tags
    grammar: str | None = field(default=None, repr=False)  #: grammar of the whole reply
    held: tuple[Tool, ...] = ()  #: in place of ``grammar``: constrains a call, once the model opens one
    format: str | None = None  #: format of its calls; None: the model's template decides, or any JSON form
    is_value: bool = False  #: True if the reply is JSON, to be read
    build: Callable[[Any], Any] | None = None  #: the caller's class, which makes ``Reply.parsed`` of that JSON

    def parser(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> ToolParser:
        """Return a parser of the text that follows ``prompt``."""
        marks = None if self.is_raw else tokenizer.reasoning
        return ToolParser(
            self.tools,
            self.format or (None if self.is_raw else _own_format(tokenizer)),
            reasoning=marks,
            in_reasoning=marks is not None and _ends_inside(prompt, tokenizer, marks),
            max_calls=self.max_calls,
        )

    def shows_marks(self, tokenizer: Tokenizer) -> bool:
        """True if the parser needs the special tokens of a reply: for its calls, its reasoning or its channels."""
        if self.is_raw:
            return False
        return bool(self.tools or tokenizer.reasoning or _own_format(tokenizer) == "harmony")

    def constraint(self, grammars: Grammars, prompt: Sequence[int]) -> Constraint | None:
        """Return the constraint of the reply to ``prompt``; None if it is free. Compiles grammars.

        Raises UnsupportedParameterError or MissingExtraError.
        """
        tokenizer = grammars.tokenizer
        if self.held:
            parser, is_promised = self.parser(tokenizer, prompt), any(tool.strict for tool in self.held)
            return HeldCalls(parser, tokenizer, self._opened(grammars), is_promised=is_promised)
        if self.grammar is None:
            return None
        marks = None if self.is_raw else tokenizer.reasoning
        closing = marks[1] if marks and _ends_inside(prompt, tokenizer, marks) else ""
        return Forced(grammars.matcher(self.grammar, follows_text=bool(closing)), tokenizer, closing)

    def _opened(self, grammars: Grammars) -> Callable[[Form], Matcher | None]:
        """Return the matcher of a call that the model has opened in a form."""
        is_single = self.max_calls == 1

        def matcher(form: Form) -> Matcher | None:
            try:
                grammar = call_grammar(self.held, form, grammars.tokenizer, is_open=True, is_single=is_single)
                return grammars.matcher(grammar)
            except UnsupportedParameterError:  # JSON is constrained in any case; other forms may not be
                if isinstance(form, (ObjectForm, FramedForm)) or any(tool.strict for tool in self.held):
                    raise
                return None

        return matcher

    def value(self, outcome: Outcome) -> Any:
        """Return the reply's JSON; None without a schema, and if the reply was cut short.

        Raises UnsupportedParameterError for JSON that Python cannot read (a number of thousands of digits, say).
        """
        if not self.is_value or outcome.finish != "stop" or outcome.stopped is not None:
            return None
        try:
            return loads(outcome.parsed.text)
        except ValueError as error:
            raise UnsupportedParameterError(f"the reply fits its schema, but cannot be read: {error}") from None


def calling_of(settings: Settings, *, grammars: Grammars, kept: tuple[Tool, ...] = ()) -> Calling:
    """Return how a request's reply is parsed and constrained. ``kept``: the agent's own tools, if none are given.

    Raises UnsupportedParameterError, and MissingExtraError where they need constrained decoding and it is missing.
    """
    given, choice, schema = as_tools(settings.tools), settings.tool_choice, settings.schema
    if settings.raw and given:
        raise UnsupportedParameterError("raw=True takes no tools: they reach the model through the chat template")
    offered = () if settings.raw or choice == "none" else given or kept
    max_calls = None if settings.parallel_tool_calls else 1
    calling = Calling(offered=offered, tools=offered, max_calls=max_calls, is_raw=settings.raw)
    forced = _forced(choice, offered)
    if schema is not None:
        if forced or (given and choice != "none"):
            raise UnsupportedParameterError("schema= makes the reply a value, not a call: give no tools with it")
        described, build = schemas.of_value(schema)
        grammar = value_grammar(grammars.checked(described, "schema"))
        return attrs.evolve(calling, tools=(), grammar=grammar, is_value=True, build=build)
    if not forced:
        return _held(calling, grammars)
    tokenizer = grammars.tokenizer
    closed = [_closed(tool, grammars) for tool in forced]
    own, knows_tools = _own_format(tokenizer), tokenizer.has_template and tokenizer.knows_tools
    format = forced_format(own, knows_tools=knows_tools)
    try:
        grammar = call_grammar(closed, forms(format)[0], tokenizer)
        grammars.matcher(grammar)
    except UnsupportedParameterError:  # JSON can constrain schemas that this format cannot
        format = forced_format(None, knows_tools=knows_tools)
        grammar = call_grammar(closed, forms(format)[0], tokenizer)
    return attrs.evolve(calling, max_calls=1, grammar=grammar, format=format)


def _held(calling: Calling, grammars: Grammars) -> Calling:
    """Return ``calling`` with the compiled grammar of a call, which applies once the model opens one.

    A schema that no grammar expresses is refused if its tool is strict; else the arguments of that tool stay free.
    """
    if not calling.tools:
        return calling
    is_promised = any(tool.strict for tool in calling.tools)
    format = _own_format(grammars.tokenizer)
    own_forms = forms(format)
    try:
        held = attrs.evolve(calling, held=tuple(_closed_if_strict(tool, grammars) for tool in calling.tools))
        for form in own_forms:
            held._opened(grammars)(form)
    except (MissingExtraError, UnsupportedParameterError):
        if is_promised:
            raise
        return calling
    return held


def _closed_if_strict(tool: Tool, grammars: Grammars) -> Tool:
    """Return a tool for a grammar; with any object as arguments if its schema is not strict and not expressible."""
    try:
        return _closed(tool, grammars)
    except UnsupportedParameterError:
        if tool.strict:
            raise
        return attrs.evolve(tool, parameters={"type": "object"})


def _closed(tool: Tool, grammars: Grammars) -> Tool:
    return attrs.evolve(tool, parameters=grammars.checked(tool.parameters, f"{tool.name}.parameters"))


def _forced(choice: object, offered: tuple[Tool, ...]) -> tuple[Tool, ...]:
    """Return the tools of which one must be called: none, all, or the named one."""
    if choice in ("auto", "none"):
        return ()
    if choice in ("required", "any"):
        forced = offered
    elif isinstance(choice, Mapping) and choice.keys() == {"name"}:
        forced = tuple(tool for tool in offered if tool.name == choice["name"])
    else:
        known = "'auto', 'none', 'required', 'any', {'name': ...}"
        raise UnsupportedParameterError(f"tool_choice={repr_of(choice)} is not supported; known: {known}")
    if not forced:
        names = ", ".join(tool.name for tool in offered) or "none"
        raise UnsupportedParameterError(f"tool_choice={repr_of(choice)} needs such a tool; offered: {names}")
    return forced


def _own_format(tokenizer: Tokenizer) -> str | None:
    """Return the format in which the template writes calls; None if it has none."""
    return tokenizer.tool_format if tokenizer.has_template and tokenizer.knows_tools else None


def _ends_inside(prompt: Sequence[int], tokenizer: Tokenizer, marks: tuple[str, str]) -> bool:
    """True if the template opened the reasoning itself: the prompt ends with the opening tag."""
    opening = tokenizer.key(tokenizer.encode(marks[0]))
    tail = tokenizer.key(prompt[-len(opening) - 8 :])
    blanks = tokenizer.key(tokenizer.encode("\n")) + " \n"
    return tail.rstrip(blanks).endswith(opening)

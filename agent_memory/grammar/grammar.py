"""Grammars that hold a reply to a schema, as text; and what is kept of them between requests.

A grammar is rules in llguidance's syntax (https://github.com/guidance-ai/llguidance, docs/syntax.md); ``reply`` is the
first. A forced reply writes JSON as ``json.dumps`` does, which is how chat templates show calls: no other blanks, so
that none can go on for ever. A call that the model has opened itself keeps to the model's own way of spacing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from agent_memory.grammar import schemas
from agent_memory.grammar.matcher import Matcher, vocabulary_of
from agent_memory.grammar.plaincalls import element_calls, literal_calls
from agent_memory.grammar.writing import BLANKS, Writer, escaped, json_of, text
from agent_memory.protocols import Tokenizer
from agent_memory.toolcall.forms import ChannelForm, ElementForm, Form, FramedForm, ObjectForm
from agent_memory.toolcall.found import ARGUMENTS
from agent_memory.types import Tool

#: Members that some models write before a call's name, as the APIs' own objects have them; each once.
_TYPE = rf'"type"{BLANKS}:{BLANKS}"function"{BLANKS},{BLANKS}'
_ID = rf'"id"{BLANKS}:{BLANKS}"[A-Za-z0-9_.:-]{{1,40}}"{BLANKS},{BLANKS}'
_EXTRAS = {
    '"name"': rf"({_TYPE}({_ID})?|{_ID}({_TYPE})?)?",
    '"tool_name"': rf'("tool_call_id"{BLANKS}:{BLANKS}"[A-Za-z0-9_.:-]{{1,40}}"{BLANKS},{BLANKS})?',
}
_NUMBER = "/[0-9]{1,3}/"
_KEPT = 64  #: schemas, and compiled grammars, of a model; what was not used for longest goes first


def forced_format(format: str | None, *, knows_tools: bool) -> str:
    """The format of calls that a grammar writes for a model whose own is ``format``.

    That one where it is known; else ``<tool_call>`` around JSON or, where the template knows no tools, the line that
    the prompt asks for (prompt/toolprompt.py).
    """
    return format or ("json_tools" if knows_tools else "tool_use")


def value_grammar(schema: Mapping[str, Any]) -> str:
    """One JSON value."""
    return f"reply: {json_of(schema)}\n"


def call_grammar(
    tools: Sequence[Tool], form: Form, tokenizer: Tokenizer, *, is_open: bool = False, is_single: bool = True
) -> str:
    """A call of one of ``tools``, whose schemas ``schemas.checked`` gave, in a form.

    ``is_open``: the model has begun it, its start mark at least. ``is_single``: where a form groups calls, one. Raises
    UnsupportedParameterError for a schema that cannot be held in the form.
    """
    write = Writer(tokenizer, is_open)
    start, end = form.start, form.end
    if isinstance(form, ElementForm):
        calls = element_calls(tools, form, write, is_single)
    elif isinstance(form, ChannelForm):
        start = "" if is_open else f"{form.start}commentary to=functions."
        calls = _any_of([_addressed(tool, write) for tool in tools])
    elif isinstance(form, FramedForm):
        start = "" if form.is_begun else start
        calls = _framed(tools, form, write, is_single)
    elif isinstance(form, ObjectForm):
        calls = _objects(tools, form, write, is_single)
    else:
        calls = literal_calls(tools, form, write, is_single)
    opening = f"{write.fixed(start)} {write.blanks if _is_spaced(form) else ''}" if start and not is_open else ""
    closing = f"{write.blanks} {write.fixed(end)}" if end else ""
    lines = [f"reply: {opening} {calls} {closing}", *(f"{name}: {rule}" for name, rule in write.rules.items())]
    return "\n".join(lines) + "\n"


def _is_spaced(form: Form) -> bool:
    """True if a line break may follow the start mark."""
    return not isinstance(form, ChannelForm) and not form.start.endswith("=") and form.start != "functools"


def _any_of(some: Sequence[str]) -> str:
    return f"({' | '.join(some)})"


def _arguments(tool: Tool, write: Writer) -> str:
    return write.rule(write.json(tool.parameters))


def _objects(tools: Sequence[Tool], form: ObjectForm, write: Writer, is_single: bool) -> str:
    """Calls that are JSON objects, or an array of them."""
    call = write.rule(" | ".join(_object(tool.name, _arguments(tool, write), form, write) for tool in tools))
    if not form.is_array:
        return call
    more = "" if is_single else f"({_tokens(write, ',')} {call})*"
    return f"{_tokens(write, '[')} {call} {more} {_tokens(write, ']')}"


def _object(name: str, arguments: str, form: ObjectForm, write: Writer) -> str:
    """A call that is a JSON object; ``arguments``: the rule of them."""
    if form.is_keyed:
        return f"{_tokens(write, '{', text(name), ':')} {arguments} {_tokens(write, '}')}"
    head = ["{", f'"{form.wrapper}"', ":"] if form.wrapper else []
    keys = [form.arguments_key, *(key for key in ARGUMENTS if write.is_open and key != form.arguments_key)]
    named = f'"{form.name_key}"'
    one_of = [_tokens(write, *head, "{", named, ":", text(name), ",", f'"{key}"', ":") for key in keys]
    return f"{_any_of(one_of)} {arguments} {_tokens(write, '}', '}' if form.wrapper else '')}"


def _framed(tools: Sequence[Tool], form: FramedForm, write: Writer, is_single: bool) -> str:
    """Calls whose arguments alone are JSON."""
    blanks, ways = write.blanks if write.is_open else "", []
    before_name = "" if form.is_tight else blanks
    for tool in tools:
        before, number, rest = form.writes[0].replace("{name}", tool.name).partition("{number}")
        heads = [f"{write.fixed(before)} {_NUMBER} {write.fixed(rest)}" if number else write.fixed(before)]
        if write.is_open and "[ARGS]" in form.writes[0]:
            call_id = (
                f"{write.fixed(tool.name)} {write.fixed('[CALL_ID]')} /[A-Za-z0-9_-]{{1,40}}/ {write.fixed('[ARGS]')}"
            )
            heads += [call_id, write.fixed(tool.name)]
        behind = f"{blanks} {write.fixed(form.writes[1])}" if form.writes[1] else ""
        ways.append(f"{before_name} {_any_of(heads)} {before_name} {_arguments(tool, write)} {behind}")
    call = write.rule(" | ".join(ways))
    if form.list_form is not None:
        return f"({call} | {blanks} {_objects(tools, form.list_form, write, is_single)})"
    return call if is_single or not form.end else f"{call}+"


def _addressed(tool: Tool, write: Writer) -> str:
    """A message to a function, behind the beginning of its name."""
    message, constrain = write.fixed("<|message|>"), write.fixed("<|constrain|>")
    kinds = [f'" " {constrain} "json" {message}']
    if write.is_open:
        kinds += [f'{constrain} "json" {message}', f'" json" {message}', message]
        kinds += [f'{write.fixed("<|channel|>")} "commentary" {kind}' for kind in kinds]
    return write.rule(
        f"{text(tool.name)} {_any_of(kinds)} {write.blanks if write.is_open else ''} {_arguments(tool, write)}"
    )


def _tokens(write: Writer, *tokens: str) -> str:
    """Tokens of JSON in a row."""
    if not write.is_open:
        return text("".join(f"{token} " if token in (",", ":") else token for token in tokens))
    some = [token for token in tokens if token]
    pattern = "".join(BLANKS + _EXTRAS.get(token, "") + escaped(token) for token in some)
    return f"/{pattern}{BLANKS if some[-1] == ':' else ''}/"


class Grammars:
    """What is known of one tokenizer's vocabulary, and the newest schemas and grammars, compiled. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self._lock = tokenizer, threading.Lock()
        self._vocabulary: Any = None
        self._compiled = lru_cache(_KEPT)(self._compile)
        self._closed = lru_cache(_KEPT)(schemas.closed)

    def prepare(self) -> None:
        """Build now what is built on first use. Raises MissingExtraError or UnsupportedParameterError."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = vocabulary_of(self.tokenizer)

    def checked(self, schema: Mapping[str, Any], place: str) -> dict[str, Any]:
        """``schemas.checked``, remembered. Not to be changed."""
        return schemas.found(self._closed(schemas.written(schema, place), place))

    def matcher(self, grammar: str, *, follows_text: bool = False) -> Matcher:
        """A fresh matcher: microseconds for a grammar that is known, else about a millisecond a tool.

        ``follows_text``: line breaks may come first. Raises MissingExtraError, and UnsupportedParameterError for a
        grammar that does not compile.
        """
        start = '"\\n"~0..2 reply' if follows_text else "reply"
        return self._compiled(f"%llguidance {{}}\nstart: {start}\n{grammar}").copy()

    def _compile(self, grammar: str) -> Matcher:
        self.prepare()
        return Matcher.of(grammar, self._vocabulary)

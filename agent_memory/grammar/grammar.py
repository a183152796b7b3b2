"""Grammars that hold a reply to a schema, as text; and what is kept of them between requests.

A grammar is rules in llguidance's syntax (https://github.com/guidance-ai/llguidance, docs/syntax.md); ``reply`` is the
first. A forced reply writes JSON as ``json.dumps`` does, which is how chat templates show calls: no other blanks, so
that none can go on for ever. A call that the model has opened itself keeps to the model's own way of spacing.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from agent_memory.grammar import schemas
from agent_memory.grammar.matcher import Matcher, vocabulary_of
from agent_memory.protocols import Tokenizer
from agent_memory.toolcall.formats import Form, JSONForm, NativeForm, can_be_held, forms
from agent_memory.types import Tool

#: Escapes of single characters only: ``\ud800`` alone would be no text, and every character can be written as itself.
_ESCAPES = '\\"bfnrt'
#: Blanks as models write them in JSON: a space or two, or a new line with its indentation; or none.
_BLANKS = r"( {0,2}|\r?\n( {0,16}|\t{0,4}))"
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_SPACED = {"whitespace_pattern": _BLANKS}
#: Members that some models write before a call's name, as the APIs' own objects have them.
_MEMBER = rf'("type"{_BLANKS}:{_BLANKS}"function"|"id"{_BLANKS}:{_BLANKS}"[A-Za-z0-9_.:-]{{1,40}}")'
_EXTRAS = rf"({_MEMBER}{_BLANKS},{_BLANKS}){{0,2}}"
_NUMBER = "/[0-9]{1,3}/"
_FRAME_PARTS = re.compile(r"(<\|\w+\|>|\[ARGS\]|\{number\})")
_KEPT = 64  #: schemas, and compiled grammars, of a model; what was not used for longest goes first


def forced_format(format: str | None, *, knows_tools: bool) -> str:
    """The format of calls that a grammar writes for a model whose own is ``format``.

    That one where its arguments are JSON; else ``<tool_call>`` around JSON or, where the template knows no tools, the
    line that the prompt asks for (prompt/toolprompt.py).
    """
    if format is not None and can_be_held(forms(format)[0]):
        return format
    return "json_tools" if knows_tools else "tool_use"


def value_grammar(schema: Mapping[str, Any]) -> str:
    """One JSON value."""
    return f"reply: {_json(schema, _COMPACT)}\n"


def call_grammar(
    tools: Sequence[Tool], form: Form, tokenizer: Tokenizer, *, is_open: bool = False, is_single: bool = True
) -> str:
    """A call of one of ``tools``, whose schemas ``schemas.checked`` gave, in a form that ``can_be_held``.

    ``is_open``: the model has begun it, its start mark at least. ``is_single``: where a form groups calls, one.
    """
    write = _Writer(tokenizer, is_open)
    rules = {f"arguments{n}": [_json(tool.parameters, write.style)] for n, tool in enumerate(tools)}
    named = [(tool.name, rule) for tool, rule in zip(tools, rules, strict=True)]
    calls = "call"
    if isinstance(form, JSONForm):
        rules["call"] = [write.object(name, rule, form) for name, rule in named]
    else:
        # mlx-lm's parser of the form that has lists beside it reads names without dots.
        rules["call"] = [write.framed(name, rule, form) for name, rule in named if not (form.lists and "." in name)]
        calls = "call" if is_single or form.lists else "call+"
        if form.lists:
            more = "" if is_single else f"({write.tokens(',')} object)*"
            rules["object"] = [write.object(name, rule, JSONForm()) for name, rule in named]
            rules["list"] = [f'{write.blanks} "[" object {more} {write.tokens("]")}']
            calls = "(call | list)" if rules["call"] else "list"
    start = f"{write.mark(form.start)} {write.blanks}" if form.start and not is_open else ""
    end = f"{write.blanks} {write.mark(form.end)}" if form.end not in ("", ";") else ""  # ";" only parts calls
    lines = [f"reply: {start} {calls} {end}"]
    lines += [f"{name}: " + "\n    | ".join(written) for name, written in rules.items() if written]
    return "\n".join(lines) + "\n"


class _Writer:
    """Writes the pieces of a call: compact, or with blanks where the model may want them (``is_open``)."""

    def __init__(self, tokenizer: Tokenizer, is_open: bool) -> None:
        self._tokenizer, self._is_open = tokenizer, is_open
        self.style = _SPACED if is_open else _COMPACT
        self.blanks = r"/[ \t\r\n]{1,8}/?" if is_open else r'"\n"?'  #: around marks

    def object(self, name: str, arguments: str, form: JSONForm) -> str:
        """A call that is a JSON object; ``arguments``: the rule of them."""
        head = ["{", f'"{form.wrapper}"', ":"] if form.wrapper else []
        keys = form.arguments if self._is_open else form.arguments[:1]
        one_of = [self.tokens(*head, "{", '"name"', ":", f'"{name}"', ",", f'"{key}"', ":") for key in keys]
        return f"({' | '.join(one_of)}) {arguments} {self.tokens('}', '}' if form.wrapper else '')}"

    def framed(self, name: str, arguments: str, form: NativeForm) -> str:
        """A call in a native form."""
        assert form.around is not None
        before, behind = (self._frame(part.replace("{name}", name)) for part in form.around)
        blanks = self.blanks if self._is_open else ""
        return f"{blanks} {before} {blanks} {arguments} {f'{blanks} {behind}' if behind else ''}"

    def tokens(self, *tokens: str) -> str:
        """Tokens of JSON in a row."""
        if not self._is_open:
            return _text("".join(f"{token} " if token in (",", ":") else token for token in tokens))
        some = [token for token in tokens if token]
        pattern = "".join(_BLANKS + _EXTRAS * (token == '"name"') + re.escape(token) for token in some)
        return f"/{pattern}{_BLANKS if some[-1] == ':' else ''}/"

    def mark(self, mark: str) -> str:
        """A mark is its own id where the vocabulary has one: spelled out in letters, the model would not know it."""
        ids = self._tokenizer.encode(mark)
        return f"<[{ids[0]}]>" if len(ids) == 1 else _text(mark)

    def _frame(self, text: str) -> str:
        """What a native form has on one side of the arguments."""
        out = []
        for number, part in enumerate(_FRAME_PARTS.split(text)):
            if part == "{number}":
                out.append(_NUMBER)
            elif part:
                out.append(self.mark(part) if number % 2 else _text(part))
        return " ".join(out)


def _json(schema: Mapping[str, Any], style: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": {**style, "json_allowed_escapes": _ESCAPES}})


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


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

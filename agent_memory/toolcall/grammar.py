"""Grammars that hold a reply to a schema, and the matcher that says which ids may come next: llguidance's, an extra.

A grammar is rules in llguidance's syntax (https://github.com/guidance-ai/llguidance, docs/syntax.md); ``reply`` is the
first. JSON is written as ``json.dumps`` writes it, which is how chat templates show calls: no other blanks, so none can
go on for ever.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from agent_memory.errors import MissingExtraError, UnsupportedParameterError
from agent_memory.protocols import Tokenizer
from agent_memory.toolcall.formats import JSONForm, forms
from agent_memory.types import Tool

#: Escapes of single characters only: ``\ud800`` alone would be no text, and every character can be written as itself.
_JSON = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": '\\"bfnrt',
}


def llguidance() -> ModuleType:
    """The package. Raises MissingExtraError."""
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError(
            "forced tool choices, strict tools and schema= need an extra: pip install 'agent-memory[grammar]'"
        ) from error
    return llguidance


def json_form(format: str) -> JSONForm:
    """How a call in a JSON ``format`` is written."""
    form = forms(format)[0]
    assert isinstance(form, JSONForm)
    return form


def forced_format(format: str | None, *, knows_tools: bool) -> str:
    """The format of calls that a grammar writes for a model whose own is ``format``.

    That one where it is JSON; else ``<tool_call>`` around JSON or, where the template knows no tools, the line that the
    prompt asks for (prompt/toolprompt.py).
    """
    if format is not None and isinstance(forms(format)[0], JSONForm):
        return format
    return "json_tools" if knows_tools else "tool_use"


def call_grammar(tools: Sequence[Tool], form: JSONForm, tokenizer: Tokenizer, *, is_open: bool = False) -> str:
    """A call of one of ``tools``, whose schemas ``schemas.checked`` gave. ``is_open``: its start mark is written."""
    opening = f'{{"{form.wrapper}": ' if form.wrapper else ""
    calls = []
    for tool in tools:
        head = _text(f'{opening}{{"name": {json.dumps(tool.name)}, "{form.arguments[0]}": ')
        calls.append(f"{head} {_json(tool.parameters)} {_text('}}' if opening else '}')}")
    start = _mark(form.start, tokenizer) if form.start and not is_open else ""
    inside = f'{start} "\\n"? call' if form.start else "call"
    if form.start and form.end != ";":  # which only parts calls
        inside += f' "\\n"? {_mark(form.end, tokenizer)}'
    return f"reply: {inside}\ncall: " + "\n    | ".join(calls) + "\n"


def value_grammar(schema: Mapping[str, Any]) -> str:
    """One JSON value."""
    return f"reply: {_json(schema)}\n"


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": _JSON})


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _mark(mark: str, tokenizer: Tokenizer) -> str:
    """A mark is its own id where the vocabulary has one: spelled out in letters, the model would not know it."""
    ids = tokenizer.encode(mark)
    return f"<[{ids[0]}]>" if len(ids) == 1 else _text(mark)


class Grammars:
    """What llguidance knows of one tokenizer, built on first use (some 0.3 s for 50,000 ids) and kept. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._lock = tokenizer, threading.Lock()
        self._vocabulary: Any = None

    def prepare(self) -> None:
        """Build now what is built on first use. Raises MissingExtraError or UnsupportedParameterError."""
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer)

    def matcher(self, grammar: str, *, follows_text: bool = False) -> Matcher:
        """A fresh matcher; compiles, about a millisecond a tool. ``follows_text``: line breaks may come first.

        Raises MissingExtraError, and UnsupportedParameterError for a grammar that does not compile.
        """
        self.prepare()
        start = '"\\n"~0..2 reply' if follows_text else "reply"
        return Matcher(self._vocabulary, f"%llguidance {{}}\nstart: {start}\n{grammar}")


class Matcher:
    """Follows one reply through a grammar, id by id. Not thread-safe."""

    def __init__(self, vocabulary: Any, grammar: str) -> None:
        self._vocabulary = vocabulary
        self._matcher = llguidance().LLMatcher(vocabulary, grammar, log_level=0)
        self._words = np.zeros((vocabulary.vocab_size + 31) // 32, np.uint32)
        self._check()

    @property
    def n_words(self) -> int:
        """How many words a mask has."""
        return len(self._words)

    def accept(self, token: int) -> None:
        """Go on by one id. Raises UnsupportedParameterError where it is not one that the mask allowed.

        Behind the end anything goes: a batch computes one id more than a row is read for.
        """
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    def skip(self, text: str) -> bool:
        """Go on by a text that is written already; False, and unchanged, where the grammar has no such beginning."""
        ids = self._vocabulary.tokenize_str(text)
        return self._matcher.validate_tokens(ids) == len(ids) and bool(self._matcher.consume_tokens(ids))

    def mask(self) -> np.ndarray[Any, Any]:
        """A bit for each id that may come next, lowest bit first, as u32 words; the same array every time."""
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check()
        return self._words

    @property
    def is_accepting(self) -> bool:
        """Whether the reply may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def is_stopped(self) -> bool:
        """Whether it can only end here."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            error = str(self._matcher.get_error()).partition("\n")[0]
            raise UnsupportedParameterError(f"this reply cannot be held to its schema: {error}")


def _vocabulary(tokenizer: Tokenizer) -> Any:
    vocabulary, ends = tokenizer.vocabulary, sorted(tokenizer.eos_ids)
    if isinstance(vocabulary, str):
        return llguidance().LLTokenizer(vocabulary, eos_token=ends or None)
    return llguidance().LLTokenizer(_Bytes(tokenizer, vocabulary), eos_token=ends)


class _Bytes:
    """A tokenizer given as the bytes of its ids, with the attributes that llguidance looks for."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[bytes]) -> None:
        self.eos_token_id, self.bos_token_id = min(tokenizer.eos_ids), tokenizer.bos_id
        self.tokens, self.special_token_ids = list(pieces), sorted(tokenizer.special_ids)
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)

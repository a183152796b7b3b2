"""Values and calls that are written as literals: Python's, and Gemma's with quotes of its own. All become JSON text.

Nothing is computed: a literal's numbers keep their digits, its strings their characters, and what is no literal is
refused. Cost: linear.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from attrs import frozen

from agent_memory.errors import repr_of
from agent_memory.toolcall.found import Found, from_mapping, from_members, loads

_MAX_DEPTH = 64
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])", re.ASCII)
_NAME = re.compile(r"[A-Za-z_$][\w$-]*(?:\.[A-Za-z_$][\w$-]*)*")
_KEY = re.compile(r"[^\s:{}\[\],<\"']+")
_BLANKS = re.compile(r"\s*")
_CONSTANTS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_ESCAPES = {"\n": "", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
            "v": "\v", "0": "\0", "/": "/"}  # fmt: skip
_CODES = {"x": 2, "u": 4, "U": 8}


@frozen
class Dialect:
    """How literals are written. ``quotes``: what encloses a string, longest first; ``escapes``: backslashes count in
    strings. ``bare_keys``: an object's keys may stand without quotes.
    """

    quotes: tuple[str, ...]
    escapes: bool
    bare_keys: bool = False


PYTHON = Dialect(('"""', "'''", '"', "'"), escapes=True)
GEMMA = Dialect(('<|"|>', "<escape>", '"'), escapes=False, bare_keys=True)


def literal(text: str, dialect: Dialect) -> str:
    """The JSON text of a literal that is all of ``text``. Raises ValueError in words for anything else."""
    reader = _Reader(text, dialect)
    source = reader.value()
    reader.end()
    return source


def python_calls(text: str) -> list[Found]:
    """The calls in a Python list of calls, or in a JSON array of them. Raises ValueError in words."""
    if re.match(r"\s*\[\s*\{", text):
        return [from_mapping(row) for row in loads(text.strip())]
    reader = _Reader(text, PYTHON)
    reader.expect("[")
    calls = [reader.call()]
    while reader.take(","):
        if reader.comes("]"):
            break
        calls.append(reader.call())
    reader.expect("]")
    reader.end()
    return calls


def gemma_calls(text: str) -> list[Found]:
    """The calls ``call:name{key:value,...}`` in a text. Raises ValueError in words."""
    reader = _Reader(text, GEMMA)
    calls: list[Found] = []
    while not calls or not reader.is_at_end:
        reader.expect("call:")
        name = reader.name()
        calls.append(from_members(name, reader.members()))
        reader.take(",")
    return calls


class _Reader:
    """Reads literals from one text, from its beginning on. Raises ValueError in words where there is none."""

    def __init__(self, text: str, dialect: Dialect) -> None:
        self._text, self._dialect, self._at, self._depth = text, dialect, 0, 0

    @property
    def is_at_end(self) -> bool:
        """True if only blanks follow."""
        self._skip()
        return self._at == len(self._text)

    def end(self) -> None:
        """Raises ValueError if more than blanks follow."""
        if not self.is_at_end:
            raise ValueError(f"{repr_of(self._text[self._at : self._at + 20])} stands where it should end")

    def comes(self, mark: str) -> bool:
        """True if this mark is next, behind blanks."""
        self._skip()
        return self._text.startswith(mark, self._at)

    def take(self, mark: str) -> bool:
        """Read this mark, if it is next."""
        is_next = self.comes(mark)
        self._at += len(mark) if is_next else 0
        return is_next

    def expect(self, mark: str) -> None:
        """Read this mark. Raises ValueError where another text is next."""
        if not self.take(mark):
            raise ValueError(f"{repr_of(self._text[self._at : self._at + 20])} stands where {repr_of(mark)} should")

    def name(self) -> str:
        """Read a name."""
        self._skip()
        return self._read(_NAME, "a name")

    def call(self) -> Found:
        """Read ``name(key=value, ...)``."""
        return from_members(self.name(), self._pairs("(", self.name, "=", ")"))

    def members(self) -> list[tuple[str, str]]:
        """Read an object: its keys, and the JSON text of each value."""
        members = self._pairs("{", self._key, ":", "}")
        if len({key for key, _ in members}) < len(members):
            raise ValueError("an object has a key twice")
        return members

    def _pairs(self, start: str, read_key: Callable[[], str], between: str, end: str) -> list[tuple[str, str]]:
        """Read keys and values with commas between them; one comma may stand behind the last value."""
        pairs: list[tuple[str, str]] = []
        self.expect(start)
        while not self.take(end):
            if pairs:
                self.expect(",")
                if self.take(end):
                    break
            key = read_key()
            self.expect(between)
            pairs.append((key, self.value()))
        return pairs

    def value(self) -> str:
        """Read a value; its JSON text."""
        self._skip()
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        source = self._value()
        self._depth -= 1
        return source

    def _value(self) -> str:
        if (quote := self._quote()) is not None:
            return json.dumps(self._string(quote), ensure_ascii=False)
        if self.comes("{"):
            return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)}: {v}" for k, v in self.members()) + "}"
        for opening, closing in ("[]", "()"):
            if self.take(opening):
                return self._items(closing)
        if (found := _NUMBER.match(self._text, self._at)) is not None:
            self._at = found.end()
            return _number(found.group())
        name = self._read(_NAME, "a value")
        if name not in _CONSTANTS:
            raise ValueError(f"{repr_of(name[:20])} is no literal")
        return _CONSTANTS[name]

    def _items(self, closing: str) -> str:
        items: list[str] = []
        while not self.take(closing):
            if items:
                self.expect(",")
                if self.take(closing):
                    break
            items.append(self.value())
        return f"[{', '.join(items)}]"

    def _key(self) -> str:
        if (quote := self._quote()) is not None:
            return self._string(quote)
        if not self._dialect.bare_keys:
            raise ValueError(f"{repr_of(self._text[self._at : self._at + 20])} stands where a key should")
        return self._read(_KEY, "a key")

    def _quote(self) -> str | None:
        self._skip()
        return next((quote for quote in self._dialect.quotes if self._text.startswith(quote, self._at)), None)

    def _string(self, quote: str) -> str:
        self._at += len(quote)
        escapes = self._dialect.escapes or (quote == '"')  # a plain quote is JSON's, whose escapes count
        parts, mark = [], re.compile(re.escape(quote) + (r"|\\" if escapes else ""))
        while (found := mark.search(self._text, self._at)) is not None:
            parts.append(self._text[self._at : found.start()])
            self._at = found.end()
            if found.group() == quote:
                return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16")  # pairs of escapes
            parts.append(self._escape())
        raise ValueError("a string does not end")

    def _escape(self) -> str:
        mark = self._text[self._at : self._at + 1]
        self._at += 1
        if mark in _ESCAPES:
            return _ESCAPES[mark]
        if mark in _CODES:
            digits = self._text[self._at : self._at + _CODES[mark]]
            if len(digits) == _CODES[mark] and re.fullmatch("[0-9a-fA-F]+", digits):
                self._at += len(digits)
                return chr(int(digits, 16))
        return "\\" + mark

    def _read(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise ValueError(f"{repr_of(self._text[self._at : self._at + 20])} stands where {what} should")
        self._at = found.end()
        return found.group()

    def _skip(self) -> None:
        found = _BLANKS.match(self._text, self._at)
        assert found is not None
        self._at = found.end()


def _number(text: str) -> str:
    """A number's JSON text: the same digits."""
    text = text.removeprefix("+")
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    digits = re.sub(r"^\.", "0.", digits)
    return sign + re.sub(r"\.(?=$|[eE])", ".0", digits)

"""The pieces of a grammar: marks, fixed texts, JSON, and free texts that a mark ends."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from agent_memory.protocols import Tokenizer

#: Escapes of single characters only: ``\ud800`` alone would be no text, and every character can be written as itself.
_ESCAPES = '\\"bfnrt'
#: Blanks as models write them in JSON: a space or two, or a new line with its indentation; or none.
BLANKS = r"( {0,2}|\r?\n( {0,16}|\t{0,4}))"
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_SPACED = {"whitespace_pattern": BLANKS}
#: What may be one token of a vocabulary: a mark in brackets, an element's tag.
_MARKS = re.compile(r'(<\|"\|>|<[|｜][^<>|｜]*[|｜]>|<\|\w+>|<\w+\|>|</?[\w:]+>|\[[A-Z_]+\])')


class Writer:
    """Writes pieces: compact, or with blanks where the model may want them (``is_open``)."""

    def __init__(self, tokenizer: Tokenizer, is_open: bool) -> None:
        self._tokenizer, self.is_open = tokenizer, is_open
        self.style = _SPACED if is_open else _COMPACT
        self.blanks = r"/[ \t\r\n]{1,8}/?" if is_open else r'"\n"?'  #: around marks
        self.rules: dict[str, str] = {}

    def rule(self, expression: str) -> str:
        """The name of a rule for an expression; equal ones share it."""
        return self._named("rule", expression)

    def json(self, schema: Mapping[str, Any]) -> str:
        """JSON that fits a schema."""
        return json_of(schema, self.style)

    def mark(self, mark: str) -> str:
        """A mark is its own id where the vocabulary has one: spelled out in letters, the model would not know it."""
        ids = self._tokenizer.encode(mark) if _MARKS.fullmatch(mark) else []
        return f"<[{ids[0]}]>" if len(ids) == 1 else text(mark)

    def fixed(self, written: str) -> str:
        """A fixed text with marks in it; "" for none."""
        if _MARKS.match(written) and len(ids := self._tokenizer.encode(written)) == 1:
            return f"<[{ids[0]}]>"
        out, plain = [], ""
        for part in filter(None, _MARKS.split(written)):
            mark = self.mark(part)
            if not mark.startswith("<["):
                plain += part  # one literal: of two that begin alike, the shorter one would be taken for a whole
                continue
            out += [text(plain)] if plain else []
            out.append(mark)
            plain = ""
        return " ".join(out + ([text(plain)] if plain else []))

    def free(self, end: str, pattern: str = "(?s:.*)", *others: str) -> str:
        """A text that matches a pattern, and the mark that ends it; ``others``: patterns that it must not match.

        The mark is the first one there is. Where it begins with an id of its own no text can hold it; elsewhere it is
        part of one expression with the text, which takes as little as it can.
        """
        lead, mark, _ = [*_MARKS.split(end, maxsplit=1), "", ""][:3]
        if mark and self.mark(mark).startswith("<["):
            lead = escaped(lead)
            word = self._named("TEXT", f"/{pattern}{lead}/ " + " ".join(f"& ~/{other}{lead}/" for other in others))
            return f"{word} {self.fixed(end[len(_MARKS.split(end, maxsplit=1)[0]) :])}"
        closing = escaped(end)
        without = [f"(?s:.*){closing}(?s:.+)", *(f"{other}{closing}" for other in others)]
        return self._named("text", f"/{pattern}{closing}/ " + " ".join(f"& ~/{one}/" for one in without), "[lazy]")

    def _named(self, kind: str, expression: str, how: str = "") -> str:
        known = next((name for name, one in self.rules.items() if one == expression), None)
        if known is not None:
            return known.removesuffix("[lazy]")
        name = f"{kind}{len(self.rules)}"
        self.rules[name + how] = expression
        return name


def json_of(schema: Mapping[str, Any], style: Mapping[str, Any] = _COMPACT) -> str:
    """JSON that fits a schema."""
    return "%json " + json.dumps({**schema, "x-guidance": {**style, "json_allowed_escapes": _ESCAPES}})


def text(text: str) -> str:
    """A fixed text."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """A fixed text within a regular expression between slashes."""
    return re.sub(r"([\\^$.|?*+()\[\]{}/])", r"\\\1", text).replace("\n", "\\n")

"""Volatile text across prompts, found before it costs a cache miss. Pure: no model, no store."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from attrs import frozen

from agent_memory.prompt.volatile import Volatile, volatile_spans
from agent_memory.types import Message
from agent_memory.usage import AsDict, Role

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
_ALIKE = 0.8  #: share of equal words from which two messages are one text with spans that differ
_MOST_WORDS = 4_000  #: of one message that are aligned word by word
#: Kinds that are volatile wherever they stand in a prompt that there is nothing to compare with.
_BY_LOOKS = frozenset({"uuid", "timestamp"})


@frozen
class LintSpan(AsDict):
    """A span that differs in each prompt, or looks as if it would.

    ``texts``, ``starts``: in each prompt that has the message, in order; characters of its content.
    """

    message: int  #: index in the prompts' messages
    role: Role
    kind: str  #: uuid, timestamp, date, clock, hash, identifier, number, counter, or text where it looks like none
    texts: tuple[str, ...]
    starts: tuple[int, ...]
    prompts: tuple[int, ...]  #: which of the prompts these are

    @property
    def advice(self) -> str:
        """What to do about it, in one sentence."""
        return "Leave it out of this message, or put it at the end of the newest one."


@frozen
class LintReport(AsDict):
    """What ``Memory.lint`` found. Holds text of prompts: treat it as confidential."""

    spans: tuple[LintSpan, ...]
    n_prompts: int

    @property
    def ok(self) -> bool:
        """True if nothing volatile was found."""
        return not self.spans

    def rows(self) -> list[tuple[str, str, str]]:
        """(place, kind, texts) of every span."""
        return [
            (f"message {one.message} ({one.role})", one.kind, " | ".join(dict.fromkeys(one.texts))) for one in self.spans
        ]

    def __str__(self) -> str:
        if self.ok:
            return f"{self.n_prompts} prompts: nothing volatile"
        return "\n".join(f"{place}: {kind}: {texts}" for place, kind, texts in self.rows())

    def _repr_html_(self) -> str:
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows())
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def lint(prompts: Sequence[Sequence[Message]]) -> LintReport:
    """Find volatile spans: those that differ between prompts that are otherwise equal there, message by message.

    Of a single prompt: what looks volatile beyond doubt. A message that differs in more than spans is another message.
    """
    found: list[LintSpan] = []
    for index in range(max(map(len, prompts), default=0)):
        having = [(n, prompt[index]) for n, prompt in enumerate(prompts) if index < len(prompt)]
        if len(having) == 1 and len(prompts) == 1:
            found += _by_looks(index, having[0][1])
            continue
        groups: list[list[tuple[int, Message, list[str]]]] = []
        for n, message in having:
            words = _words(message.content)
            home = next((g for g in groups if g[0][1].role == message.role and _are_versions(g[0][2], words)), None)
            if home is None:
                groups.append([(n, message, words)])
            else:
                home.append((n, message, words))
        is_last = all(index == len(prompt) - 1 for prompt in prompts if index < len(prompt))
        for group in groups:
            found += _differing(index, group, is_last=is_last)
    return LintReport(tuple(found), len(prompts))


def _by_looks(index: int, message: Message) -> list[LintSpan]:
    text = message.content
    return [
        LintSpan(index, message.role, one.kind, (text[one.start : one.stop],), (one.start,), (0,))
        for one in volatile_spans(text)
        if one.kind in _BY_LOOKS
    ]


def _words(text: str) -> list[str]:
    """The text in words, signs and blanks, each volatile span a word of its own."""
    out, at = [], 0
    for one in volatile_spans(text):
        out += [*_WORD.findall(text[at : one.start]), text[one.start : one.stop]]
        at = one.stop
    return [*out, *_WORD.findall(text[at:])]


def _are_versions(one: Sequence[str], other: Sequence[str]) -> bool:
    """True if two texts are equal but for short spans."""
    if one == other:
        return True
    longest = max(len(one), len(other))
    if longest > _MOST_WORDS or min(len(one), len(other)) < _ALIKE * longest:
        return False
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return matcher.quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE


def _differing(index: int, group: Sequence[tuple[int, Message, list[str]]], *, is_last: bool) -> list[LintSpan]:
    """The spans in which versions of one message differ."""
    _, first, words = group[0]
    spans: dict[tuple[int, int], dict[int, tuple[int, str]]] = {}
    for n, message, others in group[1:]:
        if message.content == first.content:
            continue
        for tag, i, j, k, stop in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
            if tag != "equal":
                mine, theirs = (len("".join(words[:i])), "".join(words[i:j])), (len("".join(others[:k])), "".join(others[k:stop]))
                spans.setdefault((i, j), {group[0][0]: mine})[n] = theirs
    found = []
    for _, texts in sorted(spans.items()):
        kinds = {_kind(text) for _, text in texts.values()}
        kind = next((one for one in kinds if one is not None), None)
        if None in kinds and (is_last or kind is None and not _is_one_word(texts.values())):
            continue
        prompts = tuple(sorted(texts))
        found.append(
            LintSpan(
                index, first.role, kind or "text",
                tuple(texts[n][1] for n in prompts), tuple(texts[n][0] for n in prompts), prompts,
            )
        )  # fmt: skip
    return found


def _kind(text: str) -> str | None:
    """What a whole text looks like; None where it is not one volatile span."""
    found: list[Volatile] = volatile_spans(text)
    if len(found) == 1 and (found[0].start, found[0].stop) == (0, len(text)):
        return found[0].kind
    return "number" if re.fullmatch(r"\d+(?:\.\d+)?", text) else None


def _is_one_word(texts: object) -> bool:
    return all(re.fullmatch(r"\w+", text) for _, text in texts)  # type: ignore[attr-defined]

"""Volatile text across prompts, found before it costs a cache miss. Pure: no model, no store."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from attrs import frozen

from agent_memory.prompt.volatile import volatile_spans
from agent_memory.types import Message
from agent_memory.usage import AsDict, Role

_WORD = re.compile(r"\s+|[A-Za-z0-9_]+|\w|[^\w\s]")
_ALIKE = 0.8  #: share of equal words from which two messages are versions of one text
_MOST_WORDS = 4_000  #: of one message that are aligned word by word
#: What a prompt calls the time of asking, or an identifier of the request, right before it.
_NAMED = re.compile(
    r"(?i)\b(?:now|current|today|time|date|as of|session|request|trace|conversation|thread|nonce|run)\b[^.!?\n]{0,24}$"
)
_BY_LOOKS = frozenset({"uuid", "timestamp", "hash", "clock"})  #: kinds that are told by their looks and their name


@frozen
class LintSpan(AsDict):
    """A span of one message that differs in each prompt, or looks as if it would.

    ``texts``, ``starts``: what stands there in each of ``prompts``, and at which character of the message's content.
    """

    message: int  #: index in the prompts' messages
    role: Role
    kind: str  #: as in ``prompt.volatile.Kind``; "text" where it differs and looks like none of them
    texts: tuple[str, ...]
    starts: tuple[int, ...]
    prompts: tuple[int, ...]  #: indices of the prompts

    def __str__(self) -> str:
        texts = ", ".join(dict.fromkeys(json.dumps(text, ensure_ascii=False) for text in self.texts))
        return f"message {self.message} ({self.role}): {self.kind}: {texts}"


@frozen
class LintReport(AsDict):
    """What ``Memory.lint`` found. It holds text of prompts: treat it as confidential."""

    spans: tuple[LintSpan, ...]
    n_prompts: int

    @property
    def ok(self) -> bool:
        """True if nothing volatile was found."""
        return not self.spans

    @property
    def advice(self) -> str:
        """What to do, in one sentence."""
        return "" if self.ok else "Leave these out, or put them at the end of the newest message: all before is reused."

    def __str__(self) -> str:
        lines = [f"{len(self.spans)} volatile spans in {self.n_prompts} prompts", *map(str, self.spans), self.advice]
        return "\n".join(line for line in lines if line)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(str(span))}</li>" for span in self.spans)
        return f"<p>{len(self.spans)} volatile spans in {self.n_prompts} prompts</p><ul>{items}</ul>"


@frozen
class _Version:
    """One prompt's version of a message, in words."""

    prompt: int
    message: Message
    words: tuple[str, ...]


@frozen
class _Change:
    """Words ``[start, stop)`` of the first version, and what stands there in another one, at which character."""

    start: int
    stop: int
    text: str
    at: int


def lint(prompts: Sequence[Sequence[Message]]) -> LintReport:
    """Find the spans in which messages differ that are equal otherwise, at the same place of several prompts.

    - Volatile spans count wherever they stand; other text only before the newest message, one word at a time.
    - A message that differs in more than a few words is another message, not a version.
    - Of a single prompt: what looks volatile in the system message, and is called so.
    """
    if len(prompts) == 1:
        return LintReport(tuple(_by_looks(prompts[0])), 1)
    found: list[LintSpan] = []
    for index in range(max(map(len, prompts), default=0)):
        having = [n for n, prompt in enumerate(prompts) if index < len(prompt)]
        is_newest = all(index == len(prompts[n]) - 1 for n in having)
        for versions in _versions([(n, prompts[n][index]) for n in having]):
            found += _differing(index, versions, is_newest=is_newest)
    return LintReport(tuple(found), len(prompts))


def _by_looks(messages: Sequence[Message]) -> list[LintSpan]:
    first = messages[0] if messages else None
    if first is None or first.role != "system":
        return []
    text = first.content
    return [
        LintSpan(0, "system", one.kind, (text[one.start : one.stop],), (one.start,), (0,))
        for one in volatile_spans(text)
        if one.kind in _BY_LOOKS and _NAMED.search(text[: one.start])
    ]


def _versions(messages: Sequence[tuple[int, Message]]) -> list[list[_Version]]:
    """Messages in groups of those that are versions of one text."""
    groups: list[list[_Version]] = []
    for n, message in messages:
        one = _Version(n, message, _words(message.content))
        home = next((group for group in groups if _are_versions(group[0], one)), None)
        if home is None:
            groups.append([one])
        else:
            home.append(one)
    return groups


def _words(text: str) -> tuple[str, ...]:
    """The text in words, signs and blanks, each volatile span a word of its own."""
    out: list[str] = []
    at = 0
    for one in volatile_spans(text):
        out += [*_WORD.findall(text[at : one.start]), text[one.start : one.stop]]
        at = one.stop
    return (*out, *_WORD.findall(text[at:]))


def _are_versions(one: _Version, other: _Version) -> bool:
    if one.message.role != other.message.role:
        return False
    if one.words == other.words:
        return True
    shortest, longest = sorted((len(one.words), len(other.words)))
    if longest > _MOST_WORDS or shortest < _ALIKE * longest:
        return False
    differ = sum(mine != theirs for mine, theirs in zip(one.words, other.words, strict=False))
    if shortest == longest and differ <= (1 - _ALIKE) * longest:
        return True
    matcher = SequenceMatcher(None, one.words, other.words, autojunk=False)
    return matcher.quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE


def _differing(index: int, versions: Sequence[_Version], *, is_newest: bool) -> list[LintSpan]:
    """The spans in which versions of one message differ."""
    first = versions[0]
    changes = {one.prompt: _changes(first.words, one.words) for one in versions[1:]}
    places = sorted({(change.start, change.stop) for found in changes.values() for change in found})
    spans = []
    for start, stop in places:
        shown = {first.prompt: (len("".join(first.words[:start])), "".join(first.words[start:stop]))}
        for prompt, found in changes.items():
            shown[prompt] = _shown(first.words, found, start, stop)
        kinds = [_kind(text) for _, text in shown.values()]
        is_text = None in kinds
        if is_text and (is_newest or not all(re.fullmatch(r"\w+", text) for _, text in shown.values())):
            continue
        texts, starts = tuple(text for _, text in shown.values()), tuple(at for at, _ in shown.values())
        spans.append(
            LintSpan(index, first.message.role, "text" if is_text else kinds[0] or "text", texts, starts, tuple(shown))
        )
    return spans


def _changes(words: Sequence[str], others: Sequence[str]) -> list[_Change]:
    """What differs between two versions. Of equal length they are compared word by word."""
    if len(words) == len(others):
        blocks = [(n, n + 1, n, n + 1) for n, word in enumerate(words) if word != others[n]]
    else:
        codes = SequenceMatcher(None, words, others, autojunk=False).get_opcodes()
        blocks = [(i, j, k, stop) for tag, i, j, k, stop in codes if tag != "equal"]
    return [_Change(i, j, "".join(others[k:stop]), len("".join(others[:k]))) for i, j, k, stop in blocks]


def _shown(words: Sequence[str], changes: Sequence[_Change], start: int, stop: int) -> tuple[int, str]:
    """(character, text) of a place in a version that differs from the first one by ``changes``."""
    shift = 0
    for change in changes:
        if (change.start, change.stop) == (start, stop):
            return change.at, change.text
        if change.start < start:
            shift += len(change.text) - len("".join(words[change.start : change.stop]))
    return len("".join(words[:start])) + shift, "".join(words[start:stop])


def _kind(text: str) -> str | None:
    """What a whole text looks like; None where it is not one volatile span."""
    found = volatile_spans(text)
    if len(found) == 1 and (found[0].start, found[0].stop) == (0, len(text)):
        return found[0].kind
    return "number" if re.fullmatch(r"\d+(?:\.\d+)?", text) else None

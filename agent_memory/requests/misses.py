"""Why a prompt leaves the ids that were computed before it, and in which message. Nothing here runs without a miss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from attrs import frozen

from agent_memory.errors import UnsupportedParameterError
from agent_memory.log.facts import Facts
from agent_memory.prompt.jsontexts import differ_in_key_order_alone
from agent_memory.prompt.tokens import n_common
from agent_memory.prompt.volatile import Kind, differ_in_volatile_alone
from agent_memory.prompt.written import written
from agent_memory.requests.outline import Outline, Place
from agent_memory.scheduler.request import Texts, Why
from agent_memory.types import DivergedAt, Message, MissCause, Tool

Ids = np.ndarray[Any, Any]

_TAIL = 2_048  #: ids behind the divergence that are read, at most
_SPLIT = 64  #: ids in front of the divergence whose text a report shows
_SHOWN = 400  #: characters of either text that a report shows
_AGREE = 24  #: characters that a rendering must share with what was computed, to tell the cause
_NEAR = 8  #: characters of a content that the template's text may share by chance
_ALIKE = 0.6  #: share of equal text from which two texts are versions of one
_READ = 4_000  #: characters compared for it
#: Days that differ from one another, and from any other day, in all that a template may write of them.
_OTHER_DAYS = (datetime(2001, 9, 9, 1, 46, 40), datetime(1987, 11, 28, 13, 5, 59), datetime(2033, 5, 16, 22, 37, 2))
_DROPPED = (
    "the chat template leaves the reasoning of an earlier reply out of later prompts, which keep_reasoning=True of an "
    "agent prevents,"
)
_DAY: tuple[Kind, ...] = ("date",)
#: Causes that are told by what the template writes, however little the prompts share.
_SHOWN_BY_TEMPLATE = frozenset({"tools_changed", "key_order", "template_moved", "date_moved"})
_FOUND_BY = 48  #: characters of a reply by which it is found behind its reasoning
_REASONING = ("<think", "analysis", "thought", "reasoning")


@frozen
class Before:
    """What the agent's log says of its newest turn."""

    messages: tuple[Message, ...]
    n_same: int  #: how many leading messages of the new prompt are the log's
    facts: Facts
    dates: tuple[datetime, ...]  #: that the newest turn's template may have been told


class Difference:
    """Two texts around the token at which one prompt leaves what was computed of another."""

    def __init__(self, outline: Outline, ids: Sequence[int], other: Ids, at: int) -> None:
        self.outline = outline
        tokenizer, before = outline.tokenizer, list(ids[max(0, at - _SPLIT) : at])
        known = written(tokenizer, before)
        n_clean = len(known.rstrip("\ufffd"))  # a character may be split between tokens: its bytes are read again
        self._mine, self._theirs = list(ids[at : at + _TAIL]), other[:_TAIL].tolist()
        mine, theirs = (written(tokenizer, before + after)[n_clean:] for after in (self._mine, self._theirs))
        same = n_common(mine, theirs)
        #: text from the first character that differs on, special tokens as written
        self.here, self.there = mine[same:], theirs[same:]
        self.shared = known[:n_clean] + mine[:same]
        is_plain = same <= len(self._plain(self._mine, mine)) and same <= len(self._plain(self._theirs, theirs))
        #: characters by which the texts part behind the place: those of a special token, or of other tokens
        self.n_behind = 0 if is_plain else same
        begin = mine[:same] if is_plain else ""
        self.place: Place = outline.place(ids, at, begin) if at < len(ids) else Place(_at_end(outline, at))

    def _plain(self, ids: Sequence[int], text: str) -> str:
        """The text up to the first special token."""
        specials = self.outline.tokenizer.special_ids
        special = next((token for token in ids if token in specials), None)
        return text if special is None else text.split(self.outline.tokenizer.key([special]), 1)[0]

    @cached_property
    def segments(self) -> tuple[str, str]:
        """Both texts from the special token before the place to the next one."""
        behind = self.shared[len(self.shared) - self.n_behind :] if self.n_behind else ""
        begin = self.place.before + behind
        return begin + self._plain(self._mine, self.here), begin + self._plain(self._theirs, self.there)

    @property
    def is_open(self) -> bool:
        """True if one of the segments is not known to its end."""
        specials = self.outline.tokenizer.special_ids
        return specials.isdisjoint(self._mine) or specials.isdisjoint(self._theirs)

    @property
    def texts(self) -> Texts:
        """What a report shows of both."""
        return Texts(self.shared[-_SHOWN:], self.here[:_SHOWN], self.there[:_SHOWN])

    def goes_on_as(self, outline: str, messages: Sequence[Message] | None = None) -> bool:
        """True if another outline leaves this prompt's where the computed text does, and goes on as that does."""
        place = self.place
        if not self.is_templates or outline == (mine := self.outline.text):
            return False
        left = n_common(mine, outline)
        left = min(self.outline.mark_start(mine, left), self.outline.mark_start(outline, left))
        if left != place.outline_at + (0 if place.is_content else self.n_behind):
            return False
        n_known = place.within + self.n_behind if place.is_content else 0
        theirs = (self.shared[len(self.shared) - n_known :] if n_known else "") + self.there
        following = self.outline.resolved(outline[left:], messages)
        return n_common(following, theirs) >= min(n_known + _AGREE, len(following), len(theirs)) > n_known

    @property
    def is_templates(self) -> bool:
        """True if the place is the template's own text, or so near to a content's beginning that its text may be."""
        return self.place.outline_at >= 0 and self.place.within <= _NEAR

    @cached_property
    def is_volatile(self) -> bool:
        """True if the two parts differ in volatile spans alone."""
        return differ_in_volatile_alone(*self.segments, is_open=self.is_open)

    @cached_property
    def is_another_day(self) -> bool:
        """True if the two parts differ in dates alone."""
        return differ_in_volatile_alone(*self.segments, kinds=_DAY, is_open=self.is_open)

    @cached_property
    def is_key_order(self) -> bool:
        """True if the two parts differ in the order of JSON keys alone."""
        return differ_in_key_order_alone(*self.segments)

    @cached_property
    def is_alike(self) -> bool:
        """True if the two parts read as versions of one text."""
        mine, theirs = (text[:_READ] for text in self.segments)
        if not mine or not theirs:
            return False
        shorter = min(len(mine), len(theirs))
        if n_common(mine, theirs) + n_common(mine[::-1], theirs[::-1]) >= _ALIKE * shorter:
            return True
        words, others = Counter(mine.split()), Counter(theirs.split())
        return (words & others).total() >= _ALIKE * max(words.total(), others.total())


def _at_end(outline: Outline, at: int) -> DivergedAt:
    n = len(outline.messages) - 1
    return DivergedAt(at, n if n >= 0 else None, outline.messages[n].role if n >= 0 else None, "template")


def explain(
    outline: Outline,
    ids: Sequence[int],
    other: Ids,
    at: int,
    *,
    before: Before | None,
    facts: Facts,
) -> Why:
    """Why ``ids`` leave ``other`` (ids from ``at`` on) there. ``before``: of an agent's log, where there is one.

    ``facts``: of the new prompt.
    """
    found = Difference(outline, ids, other, at)
    place = found.place.diverged
    lost = f"{len(other):,} tokens that were computed before are not reused"
    if at >= len(ids):
        detail = f"the prompt ends at token {at:,}, before what was computed ends; {lost}"
        return Why("edited_history", detail, place, found.texts)
    cause, what = _cause(found, before, facts)
    if cause == "template_changed":  # whatever message the template's text stands in front of
        place = DivergedAt(at, None, None, "template")
    where = f"token {at:,}" + ("" if place.message is None else f", in message {place.message} ({place.role})")
    where += "" if place.tool is None else f", in the tool {place.tool}"
    is_alike = cause in _SHOWN_BY_TEMPLATE or found.is_alike
    return Why(cause, f"{what} at {where}; {lost}", place, found.texts, is_alike)


def _cause(found: Difference, before: Before | None, facts: Facts) -> tuple[MissCause, str]:
    try:
        return _by_template(found, before, facts) or _by_message(found, before)
    except UnsupportedParameterError:  # the template refuses the outline: what is left are the messages
        return _by_message(found, before)


def _by_template(found: Difference, before: Before | None, facts: Facts) -> tuple[MissCause, str] | None:
    """The cause where the template wrote something else than before: of the day, the tools, variables, or a turn."""
    near, dropped = found.place.near, found.outline.composed.dropped
    if near is not None and (near in dropped or near + 1 in dropped):
        return "reasoning_dropped", _DROPPED
    if _is_dated(found):
        return "date_moved", "the chat template writes today's date, and it has moved,"
    if (why := _by_tools(found, before, facts)) is not None:
        return why
    if _is_reasoning_dropped(found):
        return "reasoning_dropped", _DROPPED
    if before is not None:
        return _by_facts(found, before, facts)
    if not found.is_templates:
        return None
    if _has_other_variables(found):
        return "template_changed", "the chat template was given other variables, which shows"
    if _has_moved(found):
        return "template_moved", "the chat template writes the earlier turns otherwise now that a turn was added,"
    if _is_system(found):
        return "system_changed", "a system message was added or is gone"
    if _is_templates_own(found):
        return "template_changed", "the chat template writes something else than before, by other variables,"
    return None


def _by_facts(found: Difference, before: Before, facts: Facts) -> tuple[MissCause, str] | None:
    """Of an agent whose messages are the log's up to that place."""
    near = found.place.near
    if before.n_same < len(before.messages) and near is not None and near >= before.n_same:
        return None
    if before.facts.tools != facts.tools:
        return "tools_changed", "the tools differ from those of the turn before"
    if before.facts.variables != facts.variables:
        return "template_changed", "the chat template was given other variables, which shows"
    return "template_moved", "the chat template writes the earlier turns otherwise now that a turn was added,"


def _is_dated(found: Difference) -> bool:
    """True if the template would have written another date there."""
    outline, at = found.outline, found.place.outline_at
    if at < 0 or found.place.is_content:
        return False
    others = (outline.render(now=day) for day in _OTHER_DAYS)
    spans = [_differing(outline.text, other) for other in others if other != outline.text]
    return bool(spans) and min(spans)[0] <= at + found.n_behind < max(stop for _, stop in spans)


def _has_other_variables(found: Difference) -> bool:
    """True if the template, with a variable left out or turned, goes on as what was computed."""
    variables = found.outline.variables
    others: list[dict[str, Any]] = [{}] if variables else []
    for name, value in variables.items():
        others.append({one: v for one, v in variables.items() if one != name})
        if isinstance(value, bool):
            others.append({**variables, name: not value})
    return any(found.goes_on_as(found.outline.render(variables=one)) for one in others)


def _by_tools(found: Difference, before: Before | None, facts: Facts) -> tuple[MissCause, str] | None:
    if before is not None and before.facts.tools == facts.tools:
        return None
    place, outline = found.place.diverged, found.outline
    is_there = place.part == "tools"
    if not is_there and found.is_templates:
        others: list[tuple[Tool, ...]] = [(*outline.tools, Tool("probe")), *([()] if outline.tools else [])]
        is_there = any(found.goes_on_as(outline.render(tools=tools)) for tools in others)
    if not is_there:
        return None
    if found.is_another_day:
        return "date_moved", "a date differs in the tools"
    if found.is_volatile:
        return "volatile_text", "a time, an identifier or a number differs in the tools"
    is_order = found.is_key_order if before is None else before.facts.tools_sorted == facts.tools_sorted
    if is_order:
        return "key_order", "the tools are the same with their keys in another order, which differs"
    return "tools_changed", "the tools differ from those that were computed before"


def _is_reasoning_dropped(found: Difference) -> bool:
    """True if the computed reply goes on with reasoning, and then with what this prompt has there."""
    index, piece = found.place.near, found.place.piece
    if index is None or piece is None or found.outline.messages[index].role != "assistant":
        return False
    n_before = found.place.within if piece.is_content else 0  # of the content, in front of the place
    mine, theirs = found.segments[0][len(found.place.before) - n_before :], found.there
    begins = found.shared[len(found.shared) - n_before :] if n_before else ""
    mine, theirs = mine[:_FOUND_BY], begins + theirs
    at = theirs.find(mine, 1) if mine else -1
    marks = found.outline.tokenizer.reasoning
    tags = (*_REASONING, *([marks[0]] if marks else []))
    return at > 0 and any(tag in theirs[:at] and tag not in mine for tag in tags)


def _has_moved(found: Difference) -> bool:
    """True if the template wrote the first messages as they were computed as long as no later ones followed."""
    outline, messages = found.outline, found.outline.messages
    for n in range(len(messages) - 1, 0, -1):
        if messages[n - 1].role in ("user", "tool"):
            try:
                if found.goes_on_as(outline.render(messages[:n]), messages[:n]):
                    return True
            except UnsupportedParameterError:
                continue
    return False


def _is_system(found: Difference) -> bool:
    """True if one of the prompts has a system message and the other has none."""
    outline, messages = found.outline, found.outline.messages
    if not messages:
        return False
    if messages[0].role == "system":
        return len(messages) > 1 and found.goes_on_as(outline.render(messages[1:]), messages[1:])
    added = (Message("system", "?"), *messages)
    text = outline.render(added)
    at = found.place.outline_at
    left = n_common(outline.text, text)
    following = text[left : text.find("qz", left)]
    return left == at + found.n_behind and bool(following) and found.there.startswith(following)


def _is_templates_own(found: Difference) -> bool:
    """True if the template's text before the first message or behind the last one differs."""
    piece, outline = found.place.piece, found.outline
    if piece is None or piece.is_content:
        return False
    first, last = outline.text.find("m0qz"), outline.text.rfind(f"m{len(outline.messages) - 1}qz")
    return piece.at < first or piece.at > last


def _by_message(found: Difference, before: Before | None) -> tuple[MissCause, str]:
    place = found.place.diverged
    if _is_volatile(found, before, _DAY):
        return "date_moved", "a date in the text has moved,"
    if _is_volatile(found, before):
        return "volatile_text", "a time, an identifier or a number differs"
    if before is None:
        return _anonymous(found)
    if before.n_same < len(before.messages):
        is_first = not before.n_same and (before.messages[0].role, place.role).count("system")
        if is_first:
            return "system_changed", "the system prompt differs from the log's"
        n_opening = 1 if before.messages[0].role == "system" else 0
        known = {(message.role, message.content) for message in before.messages[n_opening:]}
        shares = any((message.role, message.content) in known for message in found.outline.messages)
        if before.n_same <= n_opening and not shares:
            return "replaced_history", "the list shares no message with the agent's log and differs"
        return "edited_history", f"message {before.n_same} differs from the agent's log, which shows"
    return "template_moved", "the chat template writes the earlier turns otherwise now that a turn was added,"


def _is_volatile(found: Difference, before: Before | None, kinds: Sequence[Kind] = ()) -> bool:
    """True if both sides differ in volatile spans alone: of an agent the whole messages, else their texts.

    ``kinds``: in no others but those.
    """
    if before is None or before.n_same >= len(before.messages):
        return found.is_another_day if kinds else found.is_volatile
    messages = found.outline.messages
    if before.n_same >= len(messages):
        return False
    logged, given = before.messages[before.n_same], messages[before.n_same]
    return logged.role == given.role and differ_in_volatile_alone(logged.content, given.content, kinds=kinds)


def _anonymous(found: Difference) -> tuple[MissCause, str]:
    near, messages = found.place.near, found.outline.messages
    if found.is_key_order:
        return "key_order", "the same JSON stands there with its keys in another order, which differs"
    if near is not None and messages[near].role == "system":
        return "system_changed", "the system prompt differs from the one that was computed before"
    if near is not None and near < len(messages) - 1:
        if found.segments[0] == found.segments[1]:
            return "never_seen", "the same text stands there in tokens that the model did not write, which differ"
        return "edited_history", "an earlier message differs from the one that was computed before"
    return "never_seen", "the text from there on was never computed before"


def _differing(text: str, other: str) -> tuple[int, int]:
    """The characters from the first that differs to the end of the word with the last."""
    start = n_common(text, other)
    stop = len(text) - n_common(text[start:][::-1], other[start:][::-1])
    while stop < len(text) and text[stop].isalnum():
        stop += 1
    return start, stop

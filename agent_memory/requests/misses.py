"""Explain a miss: why a prompt differs from ids computed before, and in which message. Runs only after a miss."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
from attrs import frozen

from agent_memory.log.facts import Facts
from agent_memory.prefix.chunks import common_prefix
from agent_memory.prompt.own_words import Composed, Part
from agent_memory.protocols import Tokenizer
from agent_memory.scheduler.request import Why
from agent_memory.types import DivergedAt, Message, MissCause

_AROUND = 40  #: ids on each side of a difference that are searched for volatile text
_SNIPPET = 200  #: characters by which a message is found in the rendered text
_SLACK = 16  #: ids by which a date may differ earlier than in the rendering it is compared with
_DATE = 40  #: characters of a date, at most
#: Volatile text: times, dates, UUIDs, long numbers and digests.
_VOLATILE = re.compile(
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:[T ]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?|\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?"
    r"|[0-9a-fA-F]{8}-[0-9a-fA-F-]{4,27}|[0-9a-fA-F]{16,}|\d{7,}"
)


@frozen
class Planned:
    """A planned prompt, with all that is needed to find the message of a token."""

    tokenizer: Tokenizer
    messages: tuple[Message, ...]
    composed: Composed
    closings: tuple[str, ...]  #: texts that end a message

    def locate(self, token: int) -> DivergedAt:
        """Return the message that contains a token. Renders nothing; encodes O(log messages) prefixes of the text."""
        parts = self.composed.parts
        at = max(0, bisect.bisect_right([part.start for part in parts], token) - 1)
        index = parts[at].message if parts else None
        if parts and index is None:
            index = self._in_text(parts, at, token)
        return DivergedAt(token, index, None if index is None else self.messages[index].role)

    def _in_text(self, parts: Sequence[Part], at: int, token: int) -> int | None:
        """Return the message whose text contains a token that the template wrote; None before the first one."""
        replies = [index for part in parts[:at] if (index := part.message) is not None]
        later = [index for part in parts[at:] if (index := part.message) is not None]
        first, stop = (replies[-1] + 1 if replies else 0), (later[0] if later else len(self.messages))
        text, begins = parts[at].text, self._begins(parts[at].text, range(first, stop))
        n_before = bisect.bisect_right(
            begins, token - parts[at].start, key=lambda begin: len(self.tokenizer.encode(text[: begin[0]]))
        )
        return begins[n_before - 1][1] if n_before else (replies[-1] if replies else None)

    def _begins(self, text: str, indices: range) -> list[tuple[int, int]]:
        """Yield (character, message) where each message begins in a text: after the end marker of the one before."""
        begins, cursor = [], 0
        for index in indices:
            message = self.messages[index]
            snippet = message.content.strip()[:_SNIPPET] or "".join(call.name for call in message.tool_calls[:1])
            found = text.find(snippet, cursor) if snippet else -1
            if found >= 0:
                ends = [end + len(one) for one in self.closings if (end := text.rfind(one, cursor, found)) >= 0]
                is_first = not index and self.messages[0].role == "system"
                begins.append((0 if is_first else max(ends, default=cursor), index))
                cursor = found + len(snippet)
        return begins


@frozen
class Before:
    """The newest turn of the agent's log."""

    messages: tuple[Message, ...]
    n_same: int  #: leading messages of the new prompt that are the log's
    facts: Facts
    dates: tuple[datetime, ...]  #: dates that the newest turn's template may have had


def explain(
    planned: Planned,
    ids: Sequence[int],
    other: Sequence[int],
    at: int,
    *,
    before: Before | None,
    facts: Facts,
    moved_by_date: Callable[[Sequence[datetime]], range | None],
) -> Why:
    """Explain why ``ids`` differ from ``other`` (ids from ``at`` on). ``before``: the log's newest turn, if any.

    ``facts``: the new prompt's. ``moved_by_date``: returns the tokens that would differ at other dates.
    """
    place = planned.locate(at)
    lost = f"{len(other):,} tokens that were computed before are not reused"
    if place.token >= len(ids):
        return Why("edited_history", f"the prompt ends at token {at:,}, before what was computed ends; {lost}", place)
    where = f"token {at:,}" + ("" if place.message is None else f", in message {place.message} ({place.role})")
    if place.message in planned.composed.dropped or _drops(planned, place):
        detail = (
            f"the chat template leaves the reasoning of an earlier reply out of later prompts, from {where}; {lost}"
        )
        return Why("reasoning_dropped", f"{detail}. keep_reasoning=True keeps it", place)
    dated = moved_by_date(before.dates if before is not None else ())
    if dated is not None and dated.start - _SLACK <= at < dated.stop:
        return Why("date_moved", f"the chat template writes today's date, and it has moved, at {where}; {lost}", place)
    cause, what = _cause(planned, ids, other, at, place, before, facts)
    return Why(cause, f"{what} at {where}; {lost}", place)


def _drops(planned: Planned, place: DivergedAt) -> bool:
    """True if the difference is where a reply without its reasoning begins."""
    return place.message is not None and place.message + 1 in planned.composed.dropped


def _cause(
    planned: Planned,
    ids: Sequence[int],
    other: Sequence[int],
    at: int,
    place: DivergedAt,
    before: Before | None,
    facts: Facts,
) -> tuple[MissCause, str]:
    index = place.message
    if before is not None and before.facts.tools != facts.tools:
        if before.facts.tools_sorted == facts.tools_sorted:
            return "key_order", "the tools are the same with their keys in another order, which differs"
        n_before = before.n_same + bool(before.facts.tools)  # messages in which new tools may show
        if before.n_same >= len(before.messages) or (index or 0) < n_before:
            return "tools_changed", "the tools differ from those of the turn before"
    if _is_volatile(planned.tokenizer, ids, other, at):
        return "volatile_text", "a time, an identifier or a long number differs"
    if before is None:
        if place.role == "system":
            return "system_changed", "the system prompt differs from the one that was computed before"
        if index is not None and index < len(planned.messages) - 1:
            return "edited_history", "an earlier message differs from the one that was computed before"
        return "never_seen", "the text from there on was never computed before"
    if before.n_same < len(before.messages):
        if place.role == "system" or (not before.n_same and before.messages[0].role == "system"):
            return "system_changed", "the system prompt differs from the log's"
        n_opening = 1 if before.messages[0].role == "system" else 0
        known = {(message.role, message.content) for message in before.messages[n_opening:]}
        shares = any((message.role, message.content) in known for message in planned.messages)
        if before.n_same <= n_opening and not shares:
            return "replaced_history", "the list shares no message with the agent's log and differs"
        return "edited_history", f"message {before.n_same} differs from the agent's log, which shows"
    if before.facts.variables != facts.variables:
        return "template_changed", "the chat template was given other variables, which shows"
    return "template_moved", "the chat template writes the earlier turns otherwise now that a turn was added,"


def _is_volatile(tokenizer: Tokenizer, ids: Sequence[int], other: Sequence[int], at: int) -> bool:
    """True if both texts are volatile where they differ."""
    shared = tokenizer.decode(ids[max(0, at - _AROUND) : at])
    texts = (shared + tokenizer.decode(ids[at : at + _AROUND]), shared + tokenizer.decode(other[:_AROUND]))
    found = [any(match.start() <= len(shared) <= match.end() for match in _VOLATILE.finditer(text)) for text in texts]
    return all(found) and texts[0] != texts[1]


def first_difference(tokenizer: Tokenizer, text: str, others: Sequence[str]) -> range | None:
    """Return the tokens in which the text first differs from any of the others; None if it does not."""
    found = [_differing(text, one) for one in others if one != text]
    if not found:
        return None
    start, stop = min(found)
    return range(len(tokenizer.encode(text[:start])), len(tokenizer.encode(text[:stop])))


def _differing(text: str, other: str) -> tuple[int, int]:
    """Return the span of differing characters, to the end of the last word in it, a date's length at most."""
    codes, others = (np.frombuffer(one.encode("utf-32-le"), np.uint32) for one in (text, other))
    start = common_prefix(codes, others)
    stop = min(len(text) - common_prefix(codes[start:][::-1], others[start:][::-1]), start + _DATE)
    while stop < len(text) and text[stop].isalnum():
        stop += 1
    return start, stop

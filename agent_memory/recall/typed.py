"""Typed items: which spans of a text are decisions, tasks, preferences, facts, errors ...; by rules alone.

A sentence gives at most one item: of what somebody wants or decided, else a fact or an event. Questions give none. What
an assistant says gives none: its proposals are no decisions. Each item cites the sentence that it was read from.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator

from attrs import frozen

from agent_memory.recall import diffs, facts, logs
from agent_memory.recall.dates import read_date
from agent_memory.recall.passages import Span, listed, sentences
from agent_memory.recall.types import Status

_MOST_ITEMS = 2_000  #: of one text


@frozen(kw_only=True)
class Typed:
    """An item that a rule found in a text."""

    kind: str
    start: int  #: in characters, inclusive
    stop: int  #: exclusive
    slot: str | None = None
    value: str | None = None
    status: Status = "asserted"
    at: float | None = None  #: of an event: its own date
    is_standing: bool = False  #: said of whatever is asked later: "always ...", "I prefer ..."


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


_DAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)day"
_WHEN = rf"(?:{_DAY}|tomorrow|tonight|noon|eod|eow|(?:the )?end of|next|month-end|year-end|\w+ \d+(?:st|nd|rd|th)?)"

_INSTRUCTION = _any(
    r"^(?:please )?(?:always|never|don['’]t ever|do not ever)\b",
    r"^(?:from now on|going forward|in (?:the )?future|as a rule)\b",
    r"^please (?:avoid|make sure|use|include|keep|remember to|don['’]t|do not)\b",
    r"\bwhen(?:ever)? I ask\b",
    r"^(?:make sure|be sure) (?:to|you|that)\b",
)
_CHOICE = re.compile(r"\b(?:prefer|prefers|would rather|wants? me to)\b|['’]d rather\b", re.IGNORECASE)
_PREFERENCE = _any(
    r"\b(?:prefer|prefers|preferred|preference is)\b",
    r"\bwould rather\b|['’]d rather\b",
    r"\bfavou?rites?\b",
    r"\bwants? me to\b",
    r"\b(?:I|we|she|he|they|[A-Z]\w+) (?:really |absolutely )?"
    r"(?:likes?|loves?|enjoys?|hates?|dislikes?|can['’]t stand) ",
)
_DECISION = _any(
    r"\b(?:decided|decision|decisions|deciding) (?!whether|if\b|not yet)",
    r"\b(?:we|I|they|team|she|he)(?:['’](?:re|ve|m)| are| have| has| am)? "
    r"(?:settled on|chose|chosen|opted|agreed|picked|selected|going with|gone with|"
    r"standardi[sz](?:ed|ing) on|adopted|adopting|switching|switched|migrat(?:ed|ing))\b",
    r"^(?:switching|adopting|going with|dropping|replacing|moving to|migrating|approved|agreed|settled on|opted)\b",
    r"\blet['’]s (?:go with|use|stick with|switch|adopt|keep)\b",
    r"\b(?:we|I)(?:['’]ll| will) (?:go with|use|stick with|switch to|adopt|standardi[sz]e on)\b",
    r"^will (?:route|use|switch|adopt|standardi[sz]e)\b",
    r"\b(?:has been|was|is) (?:approved|rejected|chosen|selected)\b",
)
_TASK = _any(
    r"\bpromis(?:e|ed|ing)\b",
    r"\bcommit(?:s|ted|ting)? (?:to|me)\b|\bcommitment\b",
    r"\b(?:I|we)(?:['’]ll| will|['’]m going to| am going to|['’]re going to| are going to) "
    r"(?!be able|never|always)\w+",
    r"^(?:will|updating|scheduling|preparing|sending|working on) "
    r"(?:the|a|an|my|our|her|his|their|all|up|out|back|[a-z]+ )",
    r"\b(?:todo|to-do|action item|follow[- ]up)\b",
    r"\b(?:remind me|don['’]t forget) to\b",
    rf"\b(?:I|we) (?:need|have|must) (?:to )?\w+.* (?:by|before|until) {_WHEN}",
    rf"\b(?:assigned to|due (?:on|by)?|deadline is) ?{_WHEN}",
    r"\bconfirmed I['’]ll\b|\bsaid yes\b|\bagreed to (?:do|send|review|write|attend|help|finish|deliver)\b",
)
_CONSTRAINT = _any(
    r"\b(?:must|may|can|should|shall) ?(?:not|never)\b",
    r"\b(?:cannot|can['’]t|mustn['’]t|shouldn['’]t) (?:exceed|use|be|have|go|change|deploy|run)\b",
    r"\b(?:at most|at least|no more than|no less than|not more than|up to|maximum of|minimum of|limited to|within) \d",
    r"\b(?:hard limit|upper limit|not allowed|forbidden|prohibited|without (?:using|exceeding|changing))\b",
    r"^(?:never|no) \w+",
    r"\bonly (?:\w+ ){1,4}(?:are|is) allowed\b",
)
_REQUIREMENT = _any(
    r"\b(?:must|shall)\b(?! not)",
    r"\b(?:needs|has|have) to (?:support|handle|be|work|run|provide|allow|include|accept|return|comply)\b",
    r"\b(?:requires?|required|requirements?|mandatory|is needed)\b",
    r"\bshould (?:support|handle|provide|allow|accept|return|always)\b",
)
_MAYBE = _any(
    r"^(?:if|maybe|perhaps|suppose|what if|imagine|assuming|in case)\b",
    r"\b(?:might|could|considering|thinking about|not sure|wondering|possibly|hypothetically|would it)\b",
)
_DENIED = _any(
    r"\b(?:no longer|not anymore|didn['’]t decide|haven['’]t decided|never (?:decided|agreed|promised)|cancel(?:l?ed)|"
    r"scrapped|changed (?:my|our) minds?|did not (?:decide|agree|promise))\b"
)
_PAST = re.compile(
    r"\b(?:\w{2,}ed|went|was|were|had|got|met|saw|took|made|began|came|gave|left|won|lost|bought|ran|held|spoke|told)\b",
    re.IGNORECASE,
)
_STATED = _any(r"^(?:just )?confirmed\b(?! I['’]ll)", r"^(?:fact|fyi|note):", r"\bit turns out\b")

#: Asked in this order; a sentence is what the first one finds.
_WANTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("instruction", _INSTRUCTION),
    ("task", re.compile(r"\b(?:promis(?:e|ed|ing)|commit(?:ted|ting) to|committed)\b", re.IGNORECASE)),
    ("decision", _DECISION),
    ("preference", _PREFERENCE),
    ("task", _TASK),
    ("constraint", _CONSTRAINT),
    ("requirement", _REQUIREMENT),
)


def find(text: str, *, kind: str, role: str, speaker: str | None, at: float) -> list[Typed]:
    """Return the typed items of a text, in order of their spans. O(len(text))."""
    if kind == "diff":
        found = [Typed(kind="change", start=a, stop=b) for a, b in diffs.changes(text)]
    elif kind == "log":
        found = [Typed(kind=name, start=a, stop=b) for name, a, b in logs.entries(text)]
    elif role in ("assistant", "tool"):
        found = []
    else:
        found = list(_spoken(text, kind, speaker, at))
    return sorted(found[:_MOST_ITEMS], key=lambda typed: (typed.start, typed.stop))


def _spoken(text: str, kind: str, speaker: str | None, at: float) -> Iterator[Typed]:
    pasted = logs.pasted(text)
    for name, start, stop in pasted:
        yield Typed(kind=name, start=start, stop=stop)
    starts = [start for _, start, _ in pasted]
    for span in listed(text) or sentences(text):
        place = bisect_left(starts, span[1])  # the last entry that begins before the sentence ends
        if not place or pasted[place - 1][2] <= span[0]:
            yield from _of_sentence(text, span, kind, speaker, at)


def _of_sentence(text: str, span: Span, kind: str, speaker: str | None, at: float) -> Iterator[Typed]:
    start, stop = span
    sentence = text[start:stop]
    if sentence.endswith("?") or len(sentence) > 1_000:
        return
    wanted = _wanted(sentence, kind)
    status: Status = "asserted"
    if _DENIED.search(sentence) or _MAYBE.search(sentence):
        status = "refuted" if _DENIED.search(sentence) else "hypothetical"
    fact = facts.read(sentence, speaker, is_talk=kind == "chat") if status == "asserted" else None
    if wanted or fact:
        yield Typed(
            kind=wanted or "fact",
            start=start,
            stop=stop,
            slot=fact.slot if fact else None,
            value=fact.value if fact else None,
            status=status,
            is_standing=status == "asserted" and (wanted == "instruction" or bool(_CHOICE.search(sentence))),
        )
    elif (date := read_date(sentence, at)) is not None and _PAST.search(sentence):
        yield Typed(kind="event", start=start, stop=stop, at=date)
    elif _STATED.search(sentence):
        yield Typed(kind="fact", start=start, stop=stop)


def _wanted(sentence: str, kind: str) -> str | None:
    for name, pattern in _WANTS:
        if pattern.search(sentence):
            # A note speaks to nobody: what must always or never be done there is a constraint of the matter.
            return "constraint" if name == "instruction" and kind == "note" else name
    return None

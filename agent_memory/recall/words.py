"""Text to the words that are indexed, and questions to the words that are looked for.

The index keeps the words of each workspace apart: ``w7zship`` is "ship" in a passage of workspace 7, ``t7zship`` the
same word in a typed item. When ``terms`` changes, ``WORDS_VERSION`` does: files are then indexed anew.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from agent_memory.recall.stem import stem

WORDS_VERSION = 1

_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
#: Scripts written without blanks: each character is a word of its own.
_UNSPACED = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]")
_MAX_WORD = 40

#: Words that say nothing about a topic.
_COMMON = frozenset(
    """a about above after again against all also am an and any are aren as at be because been before being below
    between both but by can cannot could couldn d did didn do does doesn doing don down during each few for from
    further had hadn has hasn have haven having he her here hers herself him himself his how i if im in into is isn it
    its itself ive let ll m may me might more most must mustn my myself no nor not of off on once only or other ought
    our ours ourselves out over own re s same shall shan she should shouldn so some such t than that the their theirs
    them themselves then there these they this those through to too under until up us ve very was wasn we were weren
    what when where which while who whom why will with won would wouldn you your yours yourself yourselves""".split()
)
#: Words with which one asks about a conversation, whatever it was about.
_ASKING = frozenset(
    """across ask asked asking aspect aspects based bring brought chat chats comprehensive conversation conversations
    could describe detail detailed details different discussed discussion discussions ever explain far get give help
    item items know like list many mention mentioned much need order overview please provide recap request requests
    session sessions show summarise summarize summary talk talked tell throughout topics walk want""".split()
)
_COURSE = re.compile(r"\b(?:summar\w+|overview|recap|in order|the order|throughout|across)\b", re.IGNORECASE)
_ABOUT_REPLIES = re.compile(
    r"\b(?:did|had|have|were|would) you\b"
    r"|\byou (?:said|recommend(?:ed)?|suggested|told|gave|explained|mentioned|proposed|described|advised|listed)\b",
    re.IGNORECASE,
)
_MONTHS = "january february march april may june july august september october november december".split()


def terms(text: str) -> list[str]:
    """Return the stems of the words of ``text``, in order, repeats included."""
    if text.isascii() and not _CAMEL.search(text):
        return [stem(word[:_MAX_WORD]) for word in _WORD.findall(text.lower())]
    found: list[str] = []
    for word in _WORD.findall(text):
        parts = [word, *_CAMEL.split(word)] if _CAMEL.search(word) else [word]
        for part in parts:
            if _UNSPACED.search(part):
                found.extend(_UNSPACED.findall(part))
            else:
                found.append(stem(part.lower()[:_MAX_WORD]))
    return found


def question_terms(question: str) -> list[str]:
    """Return the distinct stems that a question is about.

    Words that only ask, and common words, are left out unless nothing else is there.
    """
    words = [word.lower() for word in _WORD.findall(question)]
    for left_out in (_COMMON | _ASKING, _COMMON, frozenset[str]()):
        if kept := [word for word in words if word not in left_out]:
            return list(dict.fromkeys(term for word in kept for term in terms(word)))
    return []


def asks_for_course(question: str) -> bool:
    """True if a question asks for the course of something: a summary, an order, all of a topic."""
    return bool(_COURSE.search(question))


def asks_about_replies(question: str) -> bool:
    """True if a question asks what the assistant said."""
    return bool(_ABOUT_REPLIES.search(question))


def date_terms(at: float) -> list[str]:
    """Return the words of a date, UTC: day, month, year."""
    day = time.gmtime(at)
    return [str(day.tm_mday), stem(_MONTHS[day.tm_mon - 1]), str(day.tm_year)]


def indexed(workspace: int, is_passage: bool, words: Sequence[str]) -> str:
    """Return what the index is given for an item: each word with its workspace in front."""
    prefix = prefix_of(workspace, is_passage)
    return " ".join([prefix + word for word in words])


def prefix_of(workspace: int, is_passage: bool) -> str:
    """Return what stands in front of every indexed word of a workspace."""
    return f"{'w' if is_passage else 't'}{workspace}z"

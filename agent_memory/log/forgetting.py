"""A log without forgotten cards: the one change of turns, and of results for them, that have been written. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from agent_memory.log.turns import Turn
from agent_memory.types import Card, Message

MARK = "[forgotten]"
FORGOTTEN = Card(0, f"- {MARK}\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_FEWEST_WORDS, _FEWEST_CHARS = 3, 12  #: of a text that is looked for; either is enough


def without_cards(
    turns: Sequence[Turn], is_forgotten: Callable[[Card], bool], texts: Collection[str] = ()
) -> tuple[int, tuple[Turn, ...]] | None:
    """Return the number of the first turn that shows a forgotten card, and all turns from there on without such cards.

    ``texts``: what was forgotten. A tool's result that holds one shows it too. From there on sentences of it that
    stand word for word in replies, calls and results are marked as forgotten; what the user wrote stays. The turns keep
    no ids of their own: these are made anew when the conversation goes on. None where no turn shows any of it.
    """
    first = next((n for n, turn in enumerate(turns) if _shows(turn, is_forgotten, texts)), None)
    if first is None:
        return None
    n_ids = 0
    for turn in turns[:first]:
        n_ids = min(n_ids, turn.keep) + len(turn.ids)
    phrases = phrases_of(texts)
    out = []
    for turn in turns[first:]:
        n_ids = min(n_ids, turn.keep)
        messages = tuple(_without_phrases(_without(message, is_forgotten), phrases) for message in turn.messages)
        n_kv = min(turn.n_kv, n_ids)
        out.append(attrs.evolve(turn, messages=messages, keep=n_ids, ids=turn.ids[:0], n_kv=n_kv, n_reply=None))
    return first, tuple(out)


def without_texts(
    answered: Sequence[tuple[str, str]], texts: Collection[str], *, is_behind: bool
) -> tuple[tuple[str, str], ...]:
    """Return results that wait for those of other calls, marked as a turn's are.

    ``is_behind``: they follow a turn that shows what was forgotten. Else they are as they were, unless one shows it.
    """
    if not (is_behind or any(_holds(text, texts) for _, text in answered)):
        return tuple(answered)
    phrases = phrases_of(texts)
    return tuple((id, marked(text, phrases)) for id, text in answered)


def shows_cards(turns: Sequence[Turn]) -> bool:
    """True if a turn shows any card."""
    return any(_cards(turn) for turn in turns)


def bodies(turns: Iterable[Turn], is_forgotten: Callable[[Card], bool]) -> set[str]:
    """Return the texts of the forgotten cards that ``turns`` show, without dash and head."""
    cards = [card for turn in turns for card in _cards(turn)]
    return {card.text.partition(") ")[2].strip() for card in cards if is_forgotten(card)}


def _shows(turn: Turn, is_forgotten: Callable[[Card], bool], texts: Collection[str]) -> bool:
    if any(map(is_forgotten, _cards(turn))):
        return True
    return any(_holds(message.content, texts) for message in turn.messages if message.role == "tool")


def _holds(result: str, texts: Collection[str]) -> bool:
    return any(text in result for text in texts if says_enough(text))


def _cards(turn: Turn) -> list[Card]:
    return [card for message in turn.messages for card in message.recalled]


def _without(message: Message, is_forgotten: Callable[[Card], bool]) -> Message:
    if not any(map(is_forgotten, message.recalled)):
        return message
    cards = tuple(FORGOTTEN if is_forgotten(card) else card for card in message.recalled)
    return attrs.evolve(message, recalled=cards)


def phrases_of(texts: Iterable[str]) -> list[str]:
    """Return texts and their sentences, without what ends them; long ones first, for they hold the others."""
    found = {part for text in texts for part in _parts(text.strip())}
    return sorted(found, key=lambda part: (-len(part), part))


def _parts(text: str) -> Iterator[str]:
    for part in (text, *_SENTENCE_END.split(text)):
        bare = part.strip().rstrip(".!?")
        if says_enough(bare):
            yield bare


def says_enough(text: str) -> bool:
    """True if a text is not anybody's: "Yes." in a reply is no copy of a forgotten "Yes."."""
    return len(text.split()) >= _FEWEST_WORDS or len(text) >= _FEWEST_CHARS


def _without_phrases(message: Message, phrases: Sequence[str]) -> Message:
    if message.role not in ("assistant", "tool"):
        return message

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return marked(value, phrases)
        if isinstance(value, Mapping):
            return {key: clean(one) for key, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, (list, tuple)) else value

    calls = tuple(attrs.evolve(call, arguments=clean(call.arguments), source="") for call in message.tool_calls)
    changed = attrs.evolve(
        message, content=clean(message.content), reasoning=clean(message.reasoning), tool_calls=calls
    )
    is_same = (changed.content, changed.reasoning) == (message.content, message.reasoning) and [
        call.arguments for call in calls
    ] == [call.arguments for call in message.tool_calls]
    return message if is_same else attrs.evolve(changed, source="")


def marked(text: str, phrases: Sequence[str]) -> str:
    """Return a text with a mark in place of each phrase."""
    for phrase in phrases:
        text = text.replace(phrase, MARK)
    return text

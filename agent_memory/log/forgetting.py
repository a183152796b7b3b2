"""A log without forgotten cards: the one change of turns that have been written. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from agent_memory.log.turns import Turn
from agent_memory.types import Card, Message

FORGOTTEN = Card(0, "- [forgotten]\n")


def without_cards(turns: Sequence[Turn], is_forgotten: Callable[[Card], bool]) -> tuple[int, tuple[Turn, ...]] | None:
    """Return the number of the first turn that shows a forgotten card, and all turns from there on without such cards.

    They keep no ids of their own: these are made anew when the conversation goes on. None where no turn shows one.
    """
    first = next((n for n, turn in enumerate(turns) if any(map(is_forgotten, _cards(turn)))), None)
    if first is None:
        return None
    n_ids = 0
    for turn in turns[:first]:
        n_ids = min(n_ids, turn.keep) + len(turn.ids)
    out = []
    for turn in turns[first:]:
        n_ids = min(n_ids, turn.keep)
        messages = tuple(_without(message, is_forgotten) for message in turn.messages)
        n_kv = min(turn.n_kv, n_ids)
        out.append(attrs.evolve(turn, messages=messages, keep=n_ids, ids=turn.ids[:0], n_kv=n_kv, n_reply=None))
    return first, tuple(out)


def shows_cards(turns: Sequence[Turn]) -> bool:
    """True if a turn shows any card."""
    return any(_cards(turn) for turn in turns)


def _cards(turn: Turn) -> list[Card]:
    return [card for message in turn.messages for card in message.recalled]


def _without(message: Message, is_forgotten: Callable[[Card], bool]) -> Message:
    if not any(map(is_forgotten, message.recalled)):
        return message
    cards = tuple(FORGOTTEN if is_forgotten(card) else card for card in message.recalled)
    return attrs.evolve(message, recalled=cards)

"""Recalled cards, where the model reads them: in front of a message's text, between a head and a blank line.

A card cannot leave its frame: its first line begins with a dash, further ones are indented, and none is blank
(``recall/cards.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from agent_memory.types import Message

HEAD = "Recalled from memory; may be incomplete or outdated:\n"
END = "\n"  #: the blank line between the last card and the message


def with_cards(messages: Sequence[Message]) -> Sequence[Message]:
    """Return messages whose content begins with their cards."""
    if not any(message.recalled for message in messages):
        return messages
    return [
        attrs.evolve(message, content=_framed(message), recalled=()) if message.recalled else message
        for message in messages
    ]


def _framed(message: Message) -> str:
    return "".join((HEAD, *(card.text for card in message.recalled), END, message.content))

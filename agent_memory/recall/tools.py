"""Context memory as tools of a model: two typed functions for ``run_tools``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from agent_memory.recall.cards import card, without_marks_of

if TYPE_CHECKING:
    from agent_memory.recall.context import ContextMemory


def functions(context: ContextMemory, tokenizer: object) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """Return ``recall`` and ``remember``, bound to one workspace."""
    style = without_marks_of(tokenizer, card)

    def recall(query: str) -> str:
        """Look up what was remembered earlier. Give the words that it would contain."""
        return "".join(style(hit.item) for hit in context.recall(query, k=5)) or "nothing is remembered of that"

    def remember(text: str) -> str:
        """Keep one fact for later conversations, in a full sentence."""
        report = context.remember(text, source="tool:remember")
        return "remembered" if report.n_texts else "this was remembered before"

    return recall, remember

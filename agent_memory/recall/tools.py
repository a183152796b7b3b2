"""Context memory as tools of a model: two typed functions for ``run_tools``."""

from __future__ import annotations

from collections.abc import Callable

from agent_memory.prompt.escaping import without_marks_of
from agent_memory.recall.cards import card
from agent_memory.recall.types import Hit, IngestReport

Functions = tuple[Callable[[str], str], Callable[[str], str]]


def functions(find: Callable[[str], list[Hit]], keep: Callable[[str], IngestReport], tokenizer: object) -> Functions:
    """Return ``recall`` and ``remember``. ``find`` and ``keep``: those of one workspace."""
    style = without_marks_of(tokenizer, card)

    def recall(query: str) -> str:
        """Look up what was remembered earlier. Give the words that it would contain."""
        return "".join(style(hit.item) for hit in find(query)) or "nothing is remembered of that"

    def remember(text: str) -> str:
        """Keep one fact for later conversations, in a full sentence."""
        report = keep(text)
        return "remembered" if report.n_texts else "this was remembered before"

    return recall, remember

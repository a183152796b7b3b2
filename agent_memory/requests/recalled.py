"""What a turn recalls, as callers say it, and which cards it adds: those that the conversation does not show yet."""

from __future__ import annotations

from collections.abc import Sequence, Set

from attrs import field, frozen

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.prompt.escaping import unbroken
from agent_memory.types import Card, Message, Recall

_PLACEHOLDER = "[REDACTED:"  #: a text that contains it was redacted, so it differs from the message it was taken from


@frozen
class Candidate:
    """An item that a question recalled. ``text``: as it was remembered."""

    card: Card
    text: str
    n_tokens: int  #: of the card
    is_own: bool  #: True if it was said in the same agent's conversation


@frozen
class Candidates:
    """What one question recalled, best first, and how much of it a turn takes."""

    found: tuple[Candidate, ...]
    k: int
    budget_tokens: int  #: tokens for the cards of one turn, less their frame
    #: (workspace, item) of items forgotten since, also while a request waits; grows
    forgotten: Set[tuple[str, int]] = field(default=frozenset(), repr=False)

    def fresh(self, messages: Sequence[Message]) -> tuple[Card, ...]:
        """Return the cards to add to a conversation: of the ``k`` best answers, those that it does not show.

        An answer that stands word for word in one of the messages is skipped: the model reads it there.
        """
        shown = [unbroken(card.text) for message in messages for card in message.recalled]
        said = "\n".join(message.content for message in messages)
        added: list[Card] = []
        n_answers, left = 0, self.budget_tokens
        for one in self.found:
            if n_answers == self.k:
                break
            if (one.card.workspace, one.card.id) in self.forgotten:
                continue
            if one.text in said or (one.is_own and _PLACEHOLDER in one.text):
                continue
            n_answers += 1
            # Not by ids: in a log that was imported they may be those of another store's items.
            body = unbroken(one.card.text).partition(") ")[2].strip()
            if not any(body in text for text in shown) and one.n_tokens <= left:
                added.append(one.card)
                shown.append(unbroken(one.card.text))
                left -= one.n_tokens
        return tuple(added)


NOTHING = Candidates((), 0, 0)


def checked_recall(recall: object) -> bool | Recall | None:
    """Return what ``recall=`` says, or raise UnsupportedParameterError, also for kinds that no item has."""
    if isinstance(recall, Recall) and recall.kinds:
        from agent_memory.recall.types import TEXT_KINDS, TYPED_KINDS

        if unknown := sorted(set(recall.kinds) - {*TEXT_KINDS, *TYPED_KINDS}):
            known = ", ".join((*TEXT_KINDS, *TYPED_KINDS))
            raise UnsupportedParameterError(f"kinds has {repr_of(unknown[0])}; known: {known}")
    if recall is None or isinstance(recall, (bool, Recall)):
        return recall
    raise UnsupportedParameterError(f"recall must be a bool, a Recall or None, got {repr_of(recall)}")


def chosen(recall: bool | Recall | None, kept: Recall | None) -> Recall | None:
    """Return what a turn recalls: what is asked for, else what is ``kept`` with the agent; None: nothing."""
    if isinstance(recall, Recall):
        return recall
    return (kept or Recall()) if recall or (recall is None and kept is not None) else None

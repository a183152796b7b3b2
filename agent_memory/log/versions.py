"""States of a log: what an agent's conversation was at a moment, and the versions that are kept of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
import numpy as np
from attrs import field, frozen

from agent_memory.log.facts import Facts
from agent_memory.log.turns import Turn
from agent_memory.types import Message

#: Why a version is kept: a named one, or what a rewind, a list, a compaction or a transaction that failed left behind.
Reason = Literal["checkpoint", "rewind", "replaced", "compacted", "rolled_back"]
REASONS: tuple[Reason, ...] = ("checkpoint", "rewind", "replaced", "compacted", "rolled_back")


@frozen(kw_only=True)
class Version:
    """One earlier state of an agent, as ``Agent.history()`` lists it."""

    number: int  #: counts up from 1 for each agent
    n_turns: int
    created_s: float  #: Unix time
    label: str | None = None  #: of a checkpoint
    reason: Reason = "checkpoint"


@frozen
class Span:
    """Turns from number ``start`` on, up to the next span's start, that one branch holds.

    A branch is a run of turns that only grows. An agent's first branch has the agent's number.
    """

    branch: int
    start: int


@frozen(kw_only=True)
class State:
    """An agent's log at one moment, and the branches that its turns are stored in.

    ``spans``: by start, the first at 0; the last one is the branch that the next turn is added to.
    """

    turns: tuple[Turn, ...] = field(repr=lambda turns: f"<{len(turns)} turns>")
    spans: tuple[Span, ...]
    system: str | None  #: the system prompt before the first turn
    facts: Facts

    def first(self, n_turns: int) -> State:
        """The state after the first ``n_turns``, whose branch may hold more of them."""
        spans = tuple(one for one in self.spans if one.start < n_turns) or self.spans[:1]
        return attrs.evolve(self, turns=self.turns[:n_turns], spans=spans)

    def is_same(self, other: State) -> bool:
        """True if another state has the same turns, as they are stored."""
        return (self.spans, len(self.turns), self.system) == (other.spans, len(other.turns), other.system)

    def on(self, branch: int) -> State:
        """The same turns, with a new branch for those that follow."""
        n_turns = len(self.turns)
        return attrs.evolve(self, spans=(*(one for one in self.spans if one.start < n_turns), Span(branch, n_turns)))


@frozen
class Kept:
    """A version with the state that it keeps."""

    version: Version
    state: State = field(repr=False)


def squashed(turns: Sequence[Turn], system: str | None) -> tuple[Turn, ...]:
    """Return the turns that the conversation consists of: without messages that a later turn replaced.

    ``system``: the system prompt before the first turn.
    """
    messages: tuple[Message, ...] = () if system is None else (Message("system", system),)
    ids = np.zeros(0, np.uint32)
    kept: list[Turn] = []
    ends = [(len(messages), ids)]  # messages and ids before the first turn, then after each kept one
    for turn in turns:
        messages = messages[: turn.n_messages_kept] + turn.messages
        ids = np.concatenate([ids[: turn.keep], turn.ids])
        while kept and ends[-1][0] > turn.n_messages_kept:
            kept.pop()
            ends.pop()
        n_messages, keep = min(ends[-1][0], turn.n_messages_kept), n_same_ids(ends[-1][1], ids)
        own = ids[keep:].copy()
        kept.append(attrs.evolve(turn, messages=messages[n_messages:], n_messages_kept=n_messages, keep=keep, ids=own))
        ends.append((len(messages), ids))
    return tuple(kept)


def n_same_ids(before: np.ndarray[Any, Any], now: np.ndarray[Any, Any]) -> int:
    """Return how many leading ids two logs share."""
    n = min(len(before), len(now))
    differs = before[:n] != now[:n]
    return int(differs.argmax()) if differs.any() else n

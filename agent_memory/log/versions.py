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
from agent_memory.views.page import Note, Page, Shown
from agent_memory.views.units import ago, count

#: Why a version is kept: a named one, or what a rewind, a list, a compaction or a transaction that failed left behind.
Reason = Literal["checkpoint", "rewind", "replaced", "compacted", "rolled_back"]
REASONS: tuple[Reason, ...] = ("checkpoint", "rewind", "replaced", "compacted", "rolled_back")


@frozen(kw_only=True)
class Version(Shown):
    """One earlier state of an agent, as ``Agent.history()`` lists it."""

    number: int  #: counts up from 1 for each agent
    n_turns: int
    created_s: float  #: Unix time
    label: str | None = None  #: of a checkpoint
    reason: Reason = "checkpoint"

    def _page(self) -> Page:
        named = "" if self.label is None else f" {self.label}"
        facts = f"{self.reason.replace('_', ' ')}, {count(self.n_turns, 'turn')}, {ago(self.created_s)}"
        return Page(f"Version {self.number}{named}", [Note(facts)])


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

    def branch_of(self, number: int) -> int:
        """The branch that holds a turn."""
        return next(span.branch for span in reversed(self.spans) if span.start <= number)

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
    """A version with the state that it keeps. ``holder``: the number that its KV is held under; 0: none is."""

    version: Version
    state: State = field(repr=False)
    holder: int = 0

    def on_branch(self, number: int) -> Kept:
        """The same version, its turns in a branch that holds them all."""
        return attrs.evolve(self, state=attrs.evolve(self.state, spans=(Span(number, 0),)))


@frozen
class AgentRecord:
    """An agent and its whole log."""

    agent_id: int
    name: str
    system: str | None
    tools: str  #: JSON
    turns: tuple[Turn, ...]
    created_s: float
    used_s: float
    is_pinned: bool = False
    facts: str | None = None  #: JSON: how its turns are rendered (``log.facts``); None: nothing is kept
    spans: tuple[Span, ...] = ()  #: where the turns are stored; (): all in the branch of the agent's own number
    kept: tuple[Kept, ...] = ()  #: its versions, the oldest first

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages after the last turn."""
        found: tuple[Message, ...] = ()
        for turn in self.turns:
            found = found[: turn.n_messages_kept] + turn.messages
        return found

    @property
    def ids(self) -> np.ndarray[Any, Any]:
        """The ids after the last turn (u32)."""
        return ids_of(self.turns)


@frozen(kw_only=True)
class Change:
    """One change of an agent's log, beside a turn that is added: committed whole or not at all.

    ``branch``: the one that turns are added to from now on; None: as it was. It begins with the turns up to ``base``,
    where there is one, and ``turns`` after them.
    """

    agent_id: int
    branch: int | None = None
    base: Span | None = None  #: the branch that holds the turn before number ``start``
    turns: tuple[Turn, ...] = ()
    system: str | None = None  #: before the first turn; with ``facts`` what the agent has from now on
    facts: str | None = None
    kept: tuple[Kept, ...] = ()  #: new versions
    dropped: tuple[int, ...] = ()  #: numbers of versions that end
    #: branches that only versions need: number, base, and turns after those up to the base
    branches: tuple[tuple[int, Span | None, tuple[Turn, ...]], ...] = ()


_HIDDEN = "\ud800"  # no agent's name has it: it is no valid Unicode


def hidden_name(number: int, name: str) -> str:
    """Return the name of a fork without a public name, of the agent ``name``."""
    return f"{_HIDDEN}{number} of {name}"


def shown_name(name: str | None) -> str | None:
    """Return the name to show for a log's: the agent's own for a fork without a public name."""
    if name is None or not name.startswith(_HIDDEN):
        return name
    return name.split(" of ", 1)[1]


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


@frozen
class Rewritten:
    """A log without what lists replaced: its turns, and the versions whose turns are among them; spans as before."""

    turns: tuple[Turn, ...]
    moved: tuple[Kept, ...]


def without_replaced(now: State, kept: Sequence[Kept]) -> Rewritten | None:
    """Return a log without what lists replaced in it and none of its versions ``kept`` has; None: as it is.

    Where versions have some of it, what none has stays until it is half of the turns: rewritten now and then, the log
    of a caller that replaces its list each turn does not grow.
    """
    own = [one for one in kept if one.state.is_same(now.first(one.version.n_turns))]
    needed = [one.version.n_turns for one in own if one.version.reason == "replaced"]
    n_before = min(needed, default=len(now.turns))
    if needed and 2 * n_before < len(now.turns):
        return None
    first = squashed(now.turns[:n_before], now.system)
    n_gone = n_before - len(first)
    if not n_gone or (needed and 2 * n_gone < len(now.turns)):
        return None
    turns = (*first, *now.turns[n_before:])
    moved = [_among(one, turns, n_gone) for one in own if one.version.n_turns >= n_before]
    return Rewritten(turns, tuple(moved))


def _among(kept: Kept, turns: tuple[Turn, ...], n_gone: int) -> Kept:
    """Return a version with the same conversation in other turns."""
    n_turns = kept.version.n_turns - n_gone
    version, state = attrs.evolve(kept.version, n_turns=n_turns), attrs.evolve(kept.state, turns=turns[:n_turns])
    return attrs.evolve(kept, version=version, state=state)


def ids_of(turns: Sequence[Turn]) -> np.ndarray[Any, Any]:
    """Return the ids (u32) of a conversation after its last turn."""
    ids = np.zeros(max((turn.keep + len(turn.ids) for turn in turns), default=0), np.uint32)
    n_ids = 0
    for turn in turns:
        n_ids = min(turn.keep, n_ids) + len(turn.ids)
        ids[n_ids - len(turn.ids) : n_ids] = turn.ids
    return ids[:n_ids]


def n_same_ids(before: np.ndarray[Any, Any], now: np.ndarray[Any, Any]) -> int:
    """Return how many leading ids two logs share."""
    n = min(len(before), len(now))
    differs = before[:n] != now[:n]
    return int(differs.argmax()) if differs.any() else n

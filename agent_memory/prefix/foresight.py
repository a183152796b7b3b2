"""Which agents' turns come next, and when: learned from the turns so far, or told by a plan. Pure."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from types import MappingProxyType

from attrs import define, field, frozen

from agent_memory.prefix.followers import Followers
from agent_memory.prefix.rehearsal import Rehearsal

MOST_AGENTS = 512
MOST_TOOLS = 256
_GAPS = 8  #: newest numbers of turns between two turns of an agent
_PAUSES = 32  #: newest pauses of a tool
_TURNS = 16  #: newest times between two turns, of whatever agents, and newest rests
_REST_S = 3600.0  #: how long an agent that waits for nothing rests, until that was measured
_ANY = ("",)  #: pauses of all tools together: what is known of a tool that was not measured yet
#: An agent in the middle of its work counts as so many times nearer than the measured pauses say.
_NEARER = 2.0
_LIKELY = 0.3  #: least chance at which an agent's KV is restored ahead of its turn
_SURE = 0.6  #: the same while the learned order is not followed, or few restores ahead were of use
_USEFUL = 0.3  #: least share of restores ahead that were of use, for ``_LIKELY`` to do
_TRUSTED = 0.5  #: least share of sure handovers that came, for them to count by themselves
_NEWS = 0.1  #: weight of one turn, or one restore ahead, in such a share
_SOON = 16.0  #: turns within which an agent that waits for tools must be expected, for a restore ahead of its turn
_MOST_PLANNED = 64


@frozen
class Likely:
    """An agent whose turn is expected."""

    owner: str
    wait_s: float


@frozen
class Outlook:
    """What is expected of an agent. ``next_s``: seconds until its next turn; None where nothing is known."""

    next_s: float | None = None
    why: str = ""


@define(eq=False)
class _Agent:
    """What is known of one agent."""

    turn: int  #: number of its newest turn
    agent_id: int | None
    n_bytes: int = 0  #: of its KV after its newest turn
    gaps: deque[int] = field(factory=lambda: deque(maxlen=_GAPS))
    tools: tuple[str, ...] = ()  #: those whose results it waits for
    since_s: float = field(kw_only=True)  #: the end of its newest turn that has ended, or the start of the first


class Foresight:
    """Expects turns of agents. Engine thread only; ``waits`` on any.

    - A turn is an agent's, and another agent's than the one before: handovers are learned, not repetitions.
    - ``wait_s``: from the plan; else, while an agent waits for tools, from the pauses of these tools; else from who
      follows whom (``Followers``) and from the turns between its own turns; else it is the time since its last use.
    - While some agent waits for tools, the wait of one that waits for none is the time since its last use plus the
      usual rest: among themselves these stay in the order of last use.
    - The last two are followed only while they would have restored fewer bytes than the order of last use
      (``Rehearsal``): where turns come in no order, nothing changes. A handover whose chance is ``_SURE`` counts by
      itself, while such handovers come true.
    - A plan ends with its last turn, or when turns of other agents outnumber those that it has left by more than four.
    - Bounded: ``MOST_AGENTS``, ``MOST_TOOLS`` and what ``Followers`` says; the longest unused is dropped. Nothing is
      stored: it is learned anew within a few turns, and holds names alone.
    """

    def __init__(self, *, is_on: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_on, self._clock = is_on, clock
        self._agents: OrderedDict[str, _Agent] = OrderedDict()
        self._ids: dict[int, str] = {}  # agent_id -> name
        self._followers = Followers()
        self._rehearsal = Rehearsal(self._in_turns, self._learned)
        self._pauses: OrderedDict[tuple[str, ...], deque[float]] = OrderedDict()
        self._seconds: deque[float] = deque(maxlen=_TURNS)
        self._rests: deque[float] = deque(maxlen=_TURNS)  # from the end of an agent's turn to its next one, no tools
        self._paused: set[str] = set()
        self._turn, self._began_s = 0, 0.0
        self._current: str | None = None
        self.plan: tuple[str, ...] = ()
        self._planned: dict[int, str] = {}  # agent_id -> name, of the plan: some had no turn yet
        self._n_astray = 0  # turns of agents that are not in the plan
        self._share_useful, self._share_sure = 0.5, 0.0
        self.n_useful = self.n_wasted = 0
        self.waits: dict[int, float] = {}  #: agent_id -> seconds until a turn that is near; replaced, never changed

    # noting turns

    def began(self, owner: str | None, agent_id: int | None, room_bytes: int) -> None:
        """Note that a turn has begun. ``room_bytes``: what KV of other agents may take in hot."""
        if owner is None or not self.is_on:
            return
        now = self._clock()
        agent = self._agents.get(owner)
        if agent is not None and agent.tools:
            self._note_pause(agent, now)
        elif agent is not None and owner != self._current:
            self._rests.append(now - agent.since_s)
        if owner != self._current:
            self._judge(owner)
            self._rehearsal.turn(owner, agent.n_bytes if agent is not None else 0, room_bytes)
            self._note_turn(owner, agent_id, now)
        self._paused.discard(owner)
        self._follow_plan(owner)
        self._publish()

    def ended(self, owner: str | None, tools: Sequence[str], n_bytes: int) -> None:
        """Note that a turn has ended. ``tools``: those that it called; ``n_bytes``: of the agent's KV."""
        agent = self._agents.get(owner) if owner is not None else None
        if agent is None or owner is None:
            return
        agent.tools, agent.since_s, agent.n_bytes = tuple(sorted(set(tools)))[:4], self._clock(), n_bytes
        (self._paused.add if tools else self._paused.discard)(owner)
        self._rehearsal.resize(owner, n_bytes)
        self._publish()

    def expect(self, owners: Sequence[str], numbers: Mapping[str, int | None] = MappingProxyType({})) -> None:
        """Replace the plan: the turns that come next, in order. ``numbers``: of the agents, by name."""
        self.plan, self._n_astray = tuple(owners[:_MOST_PLANNED]) if self.is_on else (), 0
        self._planned = {number: name for name, number in numbers.items() if number is not None}
        self._publish()

    def restored(self, *, is_useful: bool) -> None:
        """Note what became of a restore ahead of need: a turn used it, or it was evicted or replaced before one did."""
        self.n_useful += is_useful
        self.n_wasted += not is_useful
        self._share_useful += _NEWS * (is_useful - self._share_useful)

    def forget(self, owner: str) -> None:
        """Drop what is known of an agent. O(contexts)."""
        self._drop(owner)
        self._followers.forget(owner)
        self.plan = tuple(name for name in self.plan if name != owner)
        self._current = None if self._current == owner else self._current
        self._publish()

    def _drop(self, owner: str) -> None:
        agent = self._agents.pop(owner, None)
        if agent is not None and agent.agent_id is not None:
            self._ids.pop(agent.agent_id, None)
        self._rehearsal.forget(owner)
        self._paused.discard(owner)

    def _judge(self, owner: str) -> None:
        """Note if the handover that was the most likely one, and sure, has come."""
        chance, name = max(((chance, name) for name, chance in self._followers.following.items()), default=(0.0, ""))
        if chance >= _SURE:
            self._share_sure += _NEWS * ((name == owner) - self._share_sure)

    def _note_pause(self, agent: _Agent, now: float) -> None:
        for tools in (agent.tools, _ANY):
            self._pauses.setdefault(tools, deque(maxlen=_PAUSES)).append(now - agent.since_s)
            self._pauses.move_to_end(tools)
        if len(self._pauses) > MOST_TOOLS:
            self._pauses.popitem(last=False)
        agent.tools = ()

    def _note_turn(self, owner: str, agent_id: int | None, now: float) -> None:
        if self._turn:
            self._seconds.append(now - self._began_s)
        self._turn, self._began_s, self._current = self._turn + 1, now, owner
        agent = self._agents.get(owner)
        if agent is None:
            agent = self._agents[owner] = _Agent(self._turn, agent_id, since_s=now)
        else:
            agent.gaps.append(self._turn - agent.turn)
            agent.turn, agent.agent_id = self._turn, agent_id
        if agent_id is not None:
            self._ids[agent_id] = owner
        self._agents.move_to_end(owner)
        self._followers.note(owner)
        if len(self._agents) > MOST_AGENTS:
            self._drop(next(iter(self._agents)))

    def _follow_plan(self, owner: str) -> None:
        if owner in self.plan:
            self.plan, self._n_astray = self.plan[self.plan.index(owner) + 1 :], 0
        elif self.plan:
            self._n_astray += 1
            if self._n_astray > len(self.plan) + 4:
                self.plan = ()

    def _publish(self) -> None:
        self._planned = {number: name for number, name in self._planned.items() if name in self.plan}
        found = {name: self._known_s(name) for name in {*self.plan, *self._paused, *self._near(0.0)}}
        known = {number: name for number, name in self._ids.items() if name in found} | self._planned
        self.waits = {number: wait for number, name in known.items() if (wait := found[name]) is not None}

    # expecting turns

    @property
    def is_followed(self) -> bool:
        """True while the learned order would have restored fewer bytes than the order of last use."""
        return self.is_on and self._rehearsal.is_learned_better

    @property
    def turn_s(self) -> float:
        """Seconds from one turn to the next, as a rule."""
        return median(self._seconds) if self._seconds else 1.0

    def wait_s(self, owner: str | None, idle_s: float) -> float:
        """Return the seconds until an agent's next turn, as expected; ``idle_s``: those since its last use."""
        known = self._known_s(owner) if owner is not None and self.is_on else None
        if known is not None:
            return known
        rest_s = median(self._rests) if self._rests else _REST_S
        return idle_s + rest_s if self._paused else idle_s

    def wait_of(self, agent_id: int | None, idle_s: float) -> float:
        """Return the same by an agent's number."""
        return (
            idle_s if agent_id is None else self.wait_s(self._ids.get(agent_id) or self._planned.get(agent_id), idle_s)
        )

    def likely(self) -> list[Likely]:
        """Return the agents whose KV should be in hot soon, the nearest first."""
        if not self.is_on:
            return []
        near = self._near(_LIKELY if self._share_useful >= _USEFUL else _SURE)
        soon_s = _SOON * self.turn_s / _NEARER
        paused = {name for name in self._paused if (self._known_s(name) or 0.0) <= soon_s}
        found = {name: self._known_s(name) for name in {*self.plan, *paused, *near}}
        ahead = [Likely(name, self.turn_s if wait is None else wait) for name, wait in found.items()]
        return sorted(ahead, key=lambda one: (one.wait_s, one.owner))

    def _near(self, least: float) -> set[str]:
        """Return agents whose turn is near with a chance of ``least``, as far as what was learned counts."""
        if not self.is_followed:
            least = _SURE if self._share_sure >= _TRUSTED else math.inf
        return {name for name, (chance, _) in self._followers.near.items() if chance >= least}

    def outlook(self, owner: str) -> Outlook:
        """Return what is expected of an agent, and why, in words."""
        agent, wait = self._agents.get(owner), self._known_s(owner)
        if owner in self.plan:
            return Outlook(wait, f"turn {self.plan.index(owner) + 1} of the {len(self.plan)} that expect() told")
        if agent is None:
            return Outlook()
        if agent.tools and wait is not None:
            n = len(self._pauses.get(agent.tools, ()))
            measured = f"{n} pauses of {', '.join(agent.tools)}" if n else "the pauses of other tools"
            return Outlook(wait, f"it waits for tools; measured by {measured}")
        if wait is None:
            return Outlook()
        chance, _ = self._followers.near.get(owner, (0.0, 0.0))
        why = f"a turn of it within two has a chance of {chance:.0%}" if chance else "by the turns between its own"
        return Outlook(wait, why)

    def _known_s(self, owner: str) -> float | None:
        """Return the seconds until an agent's next turn; None where only its last use tells."""
        if owner in self.plan:
            return self.plan.index(owner) * self.turn_s
        agent = self._agents.get(owner)
        if agent is None:
            return None
        if agent.tools and (paused_s := self._paused_s(agent)) is not None:
            return paused_s
        is_counted = self.is_followed or owner in self._near(_SURE)
        return self._learned_turns(owner) * self.turn_s if is_counted else None

    def _paused_s(self, agent: _Agent) -> float | None:
        """Return the mean of what is left of the measured pauses that were longer than this one is, over ``_NEARER``.

        Longer than all of them: what it has lasted, over ``_NEARER``. None while no pause was measured.
        """
        so_far = self._clock() - agent.since_s
        measured = self._pauses.get(agent.tools) or self._pauses.get(_ANY) or ()
        left = [pause - so_far for pause in measured if pause > so_far]
        return (fmean(left) if left else so_far) / _NEARER if measured else None

    def _learned_turns(self, owner: str) -> float:
        """Return the turns until an agent's next one."""
        agent = self._agents[owner]
        so_far = self._turn - agent.turn
        left = [gap - so_far for gap in agent.gaps if gap > so_far]
        far = fmean(left) if left else float(so_far)
        chance, steps = self._followers.near.get(owner, (0.0, 0.0))
        return steps + (1 - chance) * max(far, self._followers.depth) if chance else far

    # the two orders that are rehearsed, in seconds

    def _in_turns(self, owner: str) -> float:
        agent = self._agents.get(owner)
        if agent is None:
            return float("inf")
        paused = self._paused_s(agent) if agent.tools else None
        return (self._turn - agent.turn) * self.turn_s if paused is None else paused

    def _learned(self, owner: str) -> float:
        agent = self._agents.get(owner)
        if agent is None:
            return float("inf")
        paused = self._paused_s(agent) if agent.tools else None
        return self._learned_turns(owner) * self.turn_s if paused is None else paused

    def check(self) -> list[str]:
        """Return the invariants that do not hold, in words."""
        found = {
            f"{len(self._agents)} agents are known": len(self._agents) > MOST_AGENTS,
            f"{len(self._pauses)} sets of tools are known": len(self._pauses) > MOST_TOOLS,
            "numbers of agents that are not known": not set(self._ids.values()) <= self._agents.keys(),
            "other agents wait for tools than called them": self._paused
            != {name for name, agent in self._agents.items() if agent.tools},
            "a plan that is too long": len(self.plan) > _MOST_PLANNED,
            "numbers of agents that are not planned": not set(self._planned.values()) <= {*self.plan},
        }
        return [*(text for text, is_wrong in found.items() if is_wrong), *self._followers.check()]

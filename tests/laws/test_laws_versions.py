"""Laws 1, 2, 3, 7 and 12 after any sequence of turns, forks, rewinds and what else changes an agent's state.

A twin of each agent holds what its conversation must be, after each of its turns and in each of its versions. What a
reply computed is compared with a fresh model that is fed the agent's log.
"""

from __future__ import annotations

import shutil
import string
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent_memory import (
    Agent,
    Config,
    ConfigError,
    EchoRunner,
    Memory,
    Reply,
    Tool,
    ToolResult,
    UnsupportedParameterError,
    Version,
)  # fmt: skip
from agent_memory.prefix.authors import authors_in
from agent_memory.prefix.chunks import common_prefix
from tests.parts import tiny

SYSTEM = "Be brief. " * 3
CONFIG = Config(chunk_tokens=16, prefill_tokens=16, keep_versions=3)
TAG = Tool("tag", "Tags.", {"type": "object", "properties": {"word": {"type": "string"}}})
CALL = '<tool_call>{"name": "tag", "arguments": {"word": "x"}}</tool_call>'
LASTING, TEMPORARY = ("a", "b", "c"), ("s", "t")
LETTERS = [ord(letter) - 33 for letter in string.ascii_letters]  #: as tinytokenizer.py numbers them

#: What a turn may have lost without a fault: by a change of its history, a compaction, another model, KV that no disk
#: has, and states of layers that were not kept at a position.
MISSES = {
    None, "edited_history", "replaced_history", "compacted", "other_model", "evicted", "not_stored", "never_seen",
    "template_moved",
}  # fmt: skip

Said = tuple[tuple[str, str], ...]


@define
class Twin:
    """What an agent must be: its messages after each turn, the first state before any."""

    states: list[Said]
    is_temporary: bool = False
    versions: dict[int, list[Said]] = field(factory=dict)
    alive: set[int] = field(factory=set)  #: versions that were there when it was last looked at

    @property
    def now(self) -> Said:
        return self.states[-1]

    def squashed(self) -> list[Said]:
        """The states without those that a list replaced."""
        kept = self.states[:1]
        for state in self.states[1:]:
            while len(kept) > 1 and (kept[-1] != state[: len(kept[-1])] or len(kept[-1]) == len(state)):
                kept.pop()
            kept.append(state)
        return kept

    def let_go(self, own: set[int], replaced: set[int]) -> None:
        """Drop what lists replaced before the oldest version that has it, where that is half of the turns or more.

        ``own``: versions in the agent's own past; ``replaced``: those that a list left behind.
        """
        needed = [len(self.versions[number]) - 1 for number in own & replaced]
        n_turns = len(self.states) - 1
        n_before = min(needed, default=n_turns)
        first = Twin(self.states[: n_before + 1]).squashed()
        n_gone = n_before + 1 - len(first)
        if needed and 2 * min(n_before, n_gone) < n_turns:
            return
        self.states = first + self.states[n_before + 1 :]
        for number in own:
            states = self.versions[number]
            if len(states) - 1 >= n_before:
                self.versions[number] = first + states[n_before + 1 :]

    def compacted(self, keep_turns: int) -> list[Said]:
        """The states after ``compact``: the newest turns alone, from one that a user began."""
        kept = self.squashed()
        starts = [n for n in range(1, len(kept) - keep_turns + 1) if kept[n][len(kept[n - 1]) :][0][0] == "user"]
        if not starts or starts[-1] == 1:
            return self.states
        system, left_out = self.now[:1], len(kept[starts[-1] - 1])
        return [system, *(system + state[left_out:] for state in kept[starts[-1] :])]


class World:
    """A Memory whose replies are compared with a model that never saw a cache.

    ``model``: 0 or 1, the model that is loaded: both have the same tokenizer.
    """

    max_tokens = 12

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = 0
        self.memory = self.open()

    def runner(self) -> Any:
        return EchoRunner(identity=f"echo {self.model}")

    def open(self, folder: Path | None = None) -> Memory:
        return Memory(self.runner(), folder or self.folder, config=CONFIG)

    def swap(self) -> None:
        """Load the other model."""
        self.model = 1 - self.model
        self.memory.swap_model(self.runner())

    def text(self, draw: int) -> str:
        return ("one", "two words", "a believable thing", CALL, "the end of it all")[draw % 5]

    def ask(self, ask: Callable[..., Reply], get: Callable[[], Agent], **how: Any) -> Reply:
        """Take a turn, and compare what it said."""
        reply = ask(max_tokens=40, **how)
        messages = [m for m in get().messages[:-1] if m.role != "assistant" or not m.tool_calls]
        if "temperature" not in how and all(m.role != "tool" for m in messages):
            with Memory(self.runner(), ":memory:", config=CONFIG) as fresh:
                assert fresh.generate(list(messages), max_tokens=40, tools=[TAG]).text == reply.text
        return reply

    def first_logits(self, agent: Agent, text: str) -> tuple[Reply, Any]:
        """Say something, and return the reply with the logits of its first token, where there are any."""
        return agent.say(text, max_tokens=1), None


@cache
def models(name: str, seed: int) -> tuple[Any, Any]:
    """Two copies of one tiny model, built once: one that Memories share, and one that never sees a cache."""
    return tiny.model(name, seed), tiny.model(name, seed)


@cache
def tokenizer() -> Any:
    from tests.parts.tinytokenizer import tokenizer

    return tokenizer()


class TinyWorld(World):
    """The same over one tiny architecture: its logits are compared."""

    name = "llama"

    def runner(self) -> Any:
        from agent_memory import MLXRunner

        return MLXRunner(models(self.name, self.model)[0], tokenizer(), name=f"{self.name} {self.model}")

    def first_logits(self, agent: Agent, text: str) -> tuple[Reply, Any]:
        seen: list[Any] = []

        def note(ids: Any, logits: Any) -> Any:
            seen.append(np.array(logits))
            return logits

        return agent.say(text, max_tokens=1, logits_processors=[note]), seen[0]

    def text(self, draw: int) -> str:
        return string.ascii_letters[draw % 20 :][: (3, 17, 30, 1, 9)[draw % 5]]

    def ask(self, ask: Callable[..., Reply], get: Callable[[], Agent], **how: Any) -> Reply:
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        seen: list[Any] = []

        def note(ids: Any, logits: Any) -> Any:
            seen.append(np.array(logits))
            masked = np.full_like(logits, -1e9)
            masked[LETTERS] = logits[LETTERS]
            return masked

        reply = ask(max_tokens=5, logits_processors=[note], **how)
        if "temperature" in how:
            return reply
        log = get()._log
        n_reply = log.turns[-1].n_reply
        seen = seen[:n_reply]  # the step behind the last token may have begun
        assert n_reply == len(seen)
        fresh = models(self.name, self.model)[1]
        cache = make_prompt_cache(fresh) if self.name == "gemma3n" else None  # without one, its layers share nothing
        logits = np.array(fresh(mx.array([log.ids.tolist()]), cache=cache)[0].astype(mx.float32))
        wanted = logits[len(log.ids) - n_reply - 1 : -1]
        gap = np.abs(np.array(seen) - wanted).max()
        assert gap < 1e-3, gap
        return reply


class Versions(RuleBasedStateMachine):
    """Everything that changes an agent, in any order."""

    world_class: type[World] = World
    edit_faults: list[str]  #: what was out of step after an Edit of the store
    draws = st.integers(0, 99)

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.world = self.world_class(self.folder / "store")
        self.twins: dict[str, Twin] = {}
        self.make("a")

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.restart()
            assert self.memory.verify().ok
            assert self.memory.stats().damage == 0
            for info in self.memory.agents():
                self.memory.delete(info.name)
            assert list(self.folder.glob("store/kv/*/*")) == [], "whoever is gone has no KV"
            self.is_in_step()
        finally:
            self.memory.close()
            shutil.rmtree(self.folder)

    @invariant()
    def is_in_step(self) -> None:
        """Fail at the step at which it is found: the next run begins without it. Does not wait for the disk."""
        faults, self.edit_faults[:] = self.edit_faults[:], []
        assert faults == []

    # parts

    @property
    def memory(self) -> Memory:
        return self.world.memory

    def make(self, name: str) -> None:
        self.memory.agent(name, system=SYSTEM, tools=[TAG])
        self.twins[name] = Twin([(("system", SYSTEM),)])

    def one(self, draw: int) -> tuple[str, Twin, Agent]:
        """An agent that exists; ``a`` is made anew where there is none."""
        if not self.twins:
            self.make("a")
        name = sorted(self.twins)[draw % len(self.twins)]
        return name, self.twins[name], self.memory.agent(name)

    def is_open(self, name: str) -> bool:
        messages = self.memory.agent(name).messages
        return bool(messages and messages[-1].tool_calls)

    def said(self, agent: Agent) -> Said:
        return tuple((m.role, m.content) for m in agent.messages)

    def check(
        self, name: str, *, left: list[Said] | None = None, is_labelled: bool = False, is_pruned: bool = False
    ) -> None:
        """Compare an agent with its twin. ``left``: the states that a new version must have.

        ``is_labelled``: a checkpoint may have taken the place of another.
        """
        twin, agent = self.twins[name], self.memory.agent(name)
        versions = agent.history()
        alive = {version.number for version in versions}
        for number in alive - twin.versions.keys():
            assert left is not None, number
            twin.versions[number] = list(left)
        if is_pruned or (twin.alive - alive and not is_labelled):
            log, state = agent._log, agent._log.state
            own = {one.version.number for one in log.kept if one.state.is_same(state.first(one.version.n_turns))}
            twin.let_go(own, {version.number for version in versions if version.reason == "replaced"})
        twin.alive = alive
        assert self.said(agent) == twin.now
        assert agent.info.n_turns == len(twin.states) - 1
        for version in versions:
            assert self.said(agent.at(version)) == twin.versions[version.number][-1]
            assert version.n_turns == len(twin.versions[version.number]) - 1
        assert len([v for v in versions if v.reason != "checkpoint"]) <= 3
        self.memory._engine.call(self.memory._engine._loop.check)

    def turn(self, name: str, ask: Callable[..., Reply], said: Said, *, known: Any = None, **how: Any) -> None:
        """A turn after the messages ``said``. ``known``: ids that were computed before."""
        twin = self.twins[name]
        before = list(twin.states)
        reply = self.world.ask(ask, lambda: self.memory.agent(name), **how)
        usage = reply.usage
        assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
        assert usage.miss in MISSES, usage.miss_detail
        if known is not None and usage.miss is None:
            same = common_prefix(known, self.memory.agent(name)._log.ids[: usage.prompt_tokens - 1])
            assert usage.cached_tokens >= same, "a turn computes only what is new"
        twin.states.append((*said, ("assistant", reply.message.content)))
        self.check(name, left=before)

    # turns

    @rule(who=draws, what=draws)
    def say(self, who: int, what: int) -> None:
        name, twin, agent = self.one(who)
        if self.is_open(name):
            call = agent.messages[-1].tool_calls[0]
            result = ToolResult(call.id, self.world.text(0))
            self.turn(name, lambda **how: agent.give(result, **how), (*twin.now, ("tool", self.world.text(0))))
            return
        text = self.world.text(what)
        known = agent._log.ids[: agent._log.n_kv]
        self.turn(name, lambda **how: agent.say(text, **how), (*twin.now, ("user", text)), known=known)

    @rule(who=draws, what=draws, n=draws)
    def list(self, who: int, what: int, n: int) -> None:
        name, twin, _ = self.one(who)
        if any(role == "tool" for role, _ in twin.now) or self.is_open(name):
            return
        users = [0, *(i + 1 for i, (role, _) in enumerate(twin.now) if role == "assistant")]
        kept = twin.now[: max(1, users[n % len(users)])]
        said = (*kept, ("user", self.world.text(what)))
        messages = [{"role": role, "content": content} for role, content in said]
        self.turn(name, lambda **how: self.memory.generate(messages, agent=name, **how), said)

    @rule(who=draws, what=draws)
    def best_of(self, who: int, what: int) -> None:
        name, twin, _ = self.one(who)
        if self.is_open(name):
            return
        text = self.world.text(what % 3)
        self.turn(
            name,
            lambda **how: self.memory.best_of(name, text, 3, lambda reply: reply.text, seed=what, **how),
            (*twin.now, ("user", text)),
            temperature=1.0,
        )

    # versions

    @rule(who=draws, to=st.sampled_from([*LASTING, *TEMPORARY]), at=draws)
    def fork(self, who: int, to: str, at: int) -> None:
        name, twin, agent = self.one(who)
        if to in self.twins:
            with pytest.raises(ConfigError):
                agent.fork(to)
            return
        hot = self.memory.stats().hot_bytes
        choices: list[tuple[Any, list[Said]]] = [(None, twin.states), (at % len(twin.states), [])]
        choices[1] = (choices[1][0], twin.states[: choices[1][0] + 1])
        choices += [(version, twin.versions[version.number]) for version in agent.history()]
        place, states = choices[at % len(choices)]
        agent.fork(to, at=place, temporary=to in TEMPORARY)
        assert self.memory.stats().hot_bytes == hot
        self.twins[to] = Twin(list(states), to in TEMPORARY)
        for version in self.memory.agent(to).history():
            self.twins[to].versions[version.number] = list(states[: version.n_turns + 1])
        self.check(to)
        self.check(name)

    @rule(who=draws, what=draws)
    def restored(self, who: int, what: int) -> None:
        """Law 2, and law 7 of forks: the KV of one run gives the same bits from memory and from disk.

        Where another run of the same tokens was stored first, the agent goes on with its bits (docs/exactness.md).
        """
        name, twin, agent = self.one(who)
        if twin.is_temporary or self.is_open(name):
            return
        self.memory.flush()
        n_bytes = self.kv_bytes()
        hot = agent.fork("live", temporary=True)
        cold = agent.fork("restored")
        self.memory.flush()
        assert self.kv_bytes() == n_bytes, "a fork writes no KV"
        first, wanted = self.world.first_logits(hot, self.world.text(what % 3))
        of_live = self.authors("live", first)
        hot.delete()
        self.memory.evict()
        again, found = self.world.first_logits(cold, self.world.text(what % 3))
        is_exact = first.usage.exactness == again.usage.exactness == "exact"
        if is_exact and np.array_equal(of_live, self.authors("restored", again)):
            assert np.array_equal(wanted, found), "the same run, and other bits"
        elif wanted is not None:  # two runs, or one chain of both: equal up to rounding
            assert np.abs(wanted - found).max() < 1e-3
        cold.delete()
        self.check(name)

    def authors(self, name: str, reply: Reply) -> Any:
        """Return which run computed the KV of each token that an agent's newest reply began with."""
        lineage = self.memory._engine.call(lambda: self.memory._engine._loop.hot.of(name))
        return authors_in(lineage.made[: reply.usage.cached_tokens])

    def kv_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.glob("store/kv/*/*"))

    @rule(who=draws, is_log_only=st.booleans())
    def carry(self, who: int, is_log_only: bool) -> None:
        """An agent goes into a file, from there into a second store, and back under another name."""
        name, twin, agent = self.one(who)
        file = self.folder / "a.agent"
        if twin.is_temporary:
            with pytest.raises(UnsupportedParameterError):
                agent.export(file)
            return
        to = next((one for one in LASTING if one not in self.twins), None)
        agent.export(file, log_only=is_log_only)
        with pytest.raises(ConfigError):
            self.memory.import_agent(file)
        with self.world.open(self.folder / "second") as second:
            there = second.import_agent(file, name="there")
            assert self.said(there) == twin.now
            assert [self.said(there.at(v)) for v in there.history()] == [
                twin.versions[v.number][-1] for v in agent.history()
            ]
            second.flush()
            there.export(file)
            second._engine.call(second._engine._loop.check)
            assert second.verify().ok
            if who % 2:
                there.delete()
            else:
                second.agent("there").fork(f"kept {len(second.agents())}")
                there.delete()
        if to is not None:
            self.memory.import_agent(file, name=to)
            self.twins[to] = Twin(list(twin.states), versions={n: list(v) for n, v in twin.versions.items()})
            self.check(to)
        self.check(name)

    @rule()
    def swap(self) -> None:
        self.world.swap()
        for name in self.twins:
            self.check(name)

    @rule(who=draws, n=draws)
    def rewind(self, who: int, n: int) -> None:
        name, twin, agent = self.one(who)
        if len(twin.states) == 1:
            with pytest.raises(UnsupportedParameterError):
                agent.rewind()
            return
        before, turns = list(twin.states), n % (len(twin.states) - 1) + 1
        agent.rewind(turns)
        del twin.states[-turns:]
        self.check(name, left=before)

    @rule(who=draws, which=draws)
    def rewind_to(self, who: int, which: int) -> None:
        name, twin, agent = self.one(who)
        versions: list[Version] = agent.history()  # type: ignore[valid-type]
        if not versions:
            return
        before, version = list(twin.states), versions[which % len(versions)]
        agent.rewind(to=version.label or version)
        number = [v.number for v in versions if v.label == version.label][-1] if version.label else version.number
        twin.states = list(twin.versions[number])
        self.check(name, left=before)

    @rule(who=draws, label=st.sampled_from(["x", "y"]))
    def checkpoint(self, who: int, label: str) -> None:
        name, twin, agent = self.one(who)
        agent.checkpoint(label)
        assert [v.label for v in agent.history()].count(label) == 1
        self.check(name, left=twin.states, is_labelled=True)

    @rule(who=draws, what=draws, fails=st.booleans())
    def transaction(self, who: int, what: int, fails: bool) -> None:
        name, twin, agent = self.one(who)
        before = list(twin.states)
        try:
            with agent.transaction():
                self.say(sorted(self.twins).index(name), what)
                if what % 2:
                    self.rewind(sorted(self.twins).index(name), what)
                done = list(twin.states)
                if fails:
                    raise KeyError
        except KeyError:
            twin.states = before
            self.check(name, left=done)

    @rule(who=draws, keep=st.integers(1, 3))
    def compact(self, who: int, keep: int) -> None:
        name, twin, agent = self.one(who)
        before = list(twin.states)
        agent.compact(keep)
        twin.states = twin.compacted(keep)
        self.check(name, left=before)

    @rule(who=draws, keep=st.integers(0, 1))
    def prune(self, who: int, keep: int) -> None:
        name, _, agent = self.one(who)
        agent.prune(keep, checkpoints=bool(who % 2))
        self.check(name, is_pruned=True)

    # tiers and processes

    @precondition(lambda self: len(self.twins) > 1)
    @rule(who=draws)
    def delete(self, who: int) -> None:
        name, _, agent = self.one(who)
        agent.delete()
        del self.twins[name]

    @rule(who=draws, is_all=st.booleans())
    def evict(self, who: int, is_all: bool) -> None:
        name, _, _ = self.one(who)
        self.memory.evict(None if is_all else name)

    @rule()
    def restart(self) -> None:
        self.memory.close()
        self.world.memory = self.world.open()
        self.twins = {name: twin for name, twin in self.twins.items() if not twin.is_temporary}
        assert sorted(info.name for info in self.memory.agents()) == sorted(self.twins)
        for name in self.twins:
            self.check(name)

    @precondition(lambda self: len(self.twins) < 3)
    @rule(name=st.sampled_from(LASTING))
    def open(self, name: str) -> None:
        if name not in self.twins:
            self.make(name)


def run(world: type[World], n_runs: int, n_steps: int, edit_faults: list[str]) -> None:
    machine = type("Machine", (Versions,), {"world_class": world, "edit_faults": edit_faults})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=n_runs, stateful_step_count=n_steps, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_agents_are_what_was_done_to_them(edit_faults: list[str]) -> None:
    run(World, 8, 20, edit_faults)


@pytest.mark.mlx
def test_agents_of_a_tiny_model_compute_what_a_fresh_one_computes_of_their_logs(edit_faults: list[str]) -> None:
    run(type("Windows", (TinyWorld,), {"name": "llama_windows"}), 3, 12, edit_faults)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_agents_are_what_was_done_to_them_in_many_runs(part: int, edit_faults: list[str]) -> None:
    run(World, 100, 30, edit_faults)


@pytest.mark.slow
@pytest.mark.mlx
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("name", [*tiny.SHAPES, *tiny.MORE])
def test_agents_of_every_architecture_compute_what_a_fresh_one_computes_of_their_logs(
    name: str, part: int, edit_faults: list[str]
) -> None:
    """500 runs together: 42 of each, in parts that fit a time limit."""
    run(type("Tiny", (TinyWorld,), {"name": name}), 14, 25, edit_faults)

"""A kill between any two changes of the disk: nothing acknowledged is lost, nothing wrong is served, no byte leaks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from attrs import define, field

from agent_memory.errors import AgentMemoryError
from agent_memory.kvcache.layout import Layout
from agent_memory.log.turns import Turn
from agent_memory.store.store import Store
from agent_memory.types import Message
from tests.parts.breaking import Dying, Killed
from tests.parts.kvmodel import (
    IDENTITY,
    MIXED,
    SMALL,
    draw,
    held_bytes,
    is_right,
    load,
    load_beside,
    rewind,
    save,
)

CHUNK = 16


@define
class Play:
    """What a process did until it died, and what it was told lasts."""

    path: Path
    files: Dying
    layout: Layout
    budget: int
    store: Store | None = None
    agents: dict[str, int] = field(factory=dict)
    ids: dict[str, np.ndarray] = field(factory=dict)
    turns: dict[str, list[tuple[str, ...]]] = field(factory=dict)  #: each state that an agent's log had, in order
    lasting: dict[str, int] = field(factory=dict)  #: the state of each log that was acknowledged
    stored: list[np.ndarray] = field(factory=list)
    stats: dict[str, object] = field(factory=dict)

    def open(self) -> None:
        self.store = Store(self.path, disk_bytes=self.budget, chunk_tokens=CHUNK, files=self.files)
        self.store.attach(IDENTITY, self.layout, "h", {"model": "plain"})

    def flush(self) -> None:
        """Acknowledge."""
        self.store.flush()
        self.lasting = {name: len(states) - 1 for name, states in self.turns.items()}

    def create(self, name: str) -> None:
        self.turns[name] = []
        self.agents[name] = self.store.create_agent("", name, system=None, tools="[]").agent_id
        self.turns[name].append(())
        self.lasting[name] = 0
        self.ids[name] = np.zeros(0, np.uint32)

    def turn(self, name: str, n: int, seed: int, keep: int | None = None) -> None:
        """One turn; ``keep``: after the first so many ids, as a fork or a rewind does."""
        before = self.ids[name] if keep is None else self.ids[name][:keep]
        new = draw(np.random.default_rng(seed), n)
        log = self.turns[name][-1]
        text = f"{name} {seed}"
        self.turns[name].append((*log, text))
        turn = Turn((Message("user", text),), len(before), new, "t", "stop", 0.0, len(log))
        self.store.append_turn(self.agents[name], len(log), turn)
        self.ids[name] = np.concatenate([before, new])
        self.stored.append(self.ids[name])
        save(self.store, self.ids[name], layout=self.layout, agent_id=self.agents[name])
        self.flush()

    def rewind(self, name: str, n_turns: int) -> None:
        self.turns[name].append(self.turns[name][-1][:n_turns])
        rewind(self.store, self.agents[name], n_turns)
        self.flush()

    def delete(self, name: str) -> None:
        self.turns[name].append(None)
        self.store.delete_agent(self.agents[name])
        self.lasting[name] = len(self.turns[name]) - 1


def life(play: Play) -> None:
    """Turns, forks, a rewind, deletions, compaction, eviction, and two openings."""
    play.open()
    play.create("a")
    for number, n in enumerate((20, 30, 9, 50)):
        play.turn("a", n, number)
    play.create("b")
    play.ids["b"] = play.ids["a"][:70]
    play.turn("b", 40, 10)
    play.rewind("a", 3)
    play.turn("a", 25, 11, keep=59)
    play.store.compact()
    play.flush()
    play.store.close()
    play.open()
    play.turn("b", 7, 12)
    play.delete("b")
    play.create("c")
    play.turn("c", 90, 13)
    play.turn("c", 90, 14)
    play.store.compact()
    play.stats = play.store.stats()
    play.store.close()


def look(play: Play, folder: Path) -> None:
    """Open what was left and check it."""
    store = Store(folder, disk_bytes=play.budget, chunk_tokens=CHUNK)
    try:
        assert store.stats()["damage"] == 0
        store.attach(IDENTITY, play.layout, "h", {"model": "plain"})
        for name, states in play.turns.items():
            found = store.load_agent("", name)
            log = None if found is None else tuple(m.content for m in found.messages)
            allowed = states[play.lasting[name] :] if name in play.lasting else [None, *states]
            assert log in allowed, f"{name}: {log} of {allowed}"
        for ids in play.stored:
            match = store.match(ids)
            if play.layout is SMALL:
                kv, sound = load(store, match)
                assert is_right(kv, ids[: match.n_tokens])
            else:
                sound = not match.n_tokens or load_beside(store, match, ids[: match.n_tokens], play.layout)
            assert sound
        store.flush()
        assert store.stats()["disk_bytes"] == held_bytes(folder) <= play.budget
        named = {segment.file for segment in store._manifest.segments()}
        assert {f"{f.parent.name}/{f.name}" for f in folder.glob("kv/*/*")} == named
        assert store.stats()["damage"] == 0
        assert store.verify().ok
    finally:
        store.close()


def play_until(tmp_path: Path, at: int | None, layout: Layout, budget: int, story: Callable[[Play], None]) -> Play:
    play = Play(tmp_path / "store", Dying(at), layout, budget)
    try:
        story(play)
    except (Killed, AgentMemoryError):
        assert play.files.is_dead
    return play


def pinned_to_its_end(play: Play) -> None:
    """A pinned agent, and its deletion."""
    play.open()
    play.create("a")
    play.turn("a", 40, 0)
    play.store.pin(play.agents["a"], True)
    play.stats["pinned"] = True
    play.store.delete_agent(play.agents["a"])
    play.store.close()


def test_a_kill_in_a_deletion_leaves_the_agent_pinned_or_gone_with_its_pin(tmp_path):
    n_calls = len(play_until(tmp_path, None, SMALL, 1_000_000, pinned_to_its_end).files.calls)
    shutil.rmtree(tmp_path / "store")
    found = []
    for at in range(n_calls):
        play = play_until(tmp_path, at, SMALL, 1_000_000, pinned_to_its_end)
        if play.stats.get("pinned"):
            play.files.leave(play.path, left := tmp_path / f"left {at}", power_cut=False)
            store = Store(left, disk_bytes=None, chunk_tokens=CHUNK)
            agent = store.load_agent("", "a")
            assert store.pins == set() if agent is None else agent.is_pinned
            found.append(agent is not None)
            store.close()
        bury(play)
    assert found[0]
    assert not found[-1]


def die_everywhere(tmp_path: Path, layout: Layout, budget: int, step: int) -> int:
    play = play_until(tmp_path, None, layout, budget, life)
    assert play.stats["save_failures"] == 0
    n_calls = len(play.files.calls)
    shutil.rmtree(play.path)
    for at in range(0, n_calls, step):
        play = play_until(tmp_path, at, layout, budget, life)
        assert play.files.is_dead
        for power_cut in (False, True):
            left = tmp_path / "left"
            if play.path.exists():
                play.files.leave(play.path, left, power_cut=power_cut)
                look(play, left)
                shutil.rmtree(left)
        bury(play)
    return n_calls


def bury(play: Play) -> None:
    """End the threads of a dead process, and its folder."""
    play.files.is_dead, play.files.at = False, None
    if play.store is not None:
        play.store.close()
    shutil.rmtree(play.path, ignore_errors=True)


@pytest.mark.parametrize("layout", [SMALL, MIXED], ids=["full attention", "windows and states"])
def test_a_kill_at_every_19th_change_of_the_disk_loses_nothing_and_leaks_nothing(tmp_path, layout):
    assert die_everywhere(tmp_path, layout, 190_000, 19) > 200


@pytest.mark.slow
@pytest.mark.parametrize("layout", [SMALL, MIXED], ids=["full attention", "windows and states"])
@pytest.mark.parametrize("budget", [190_000, 1_000_000], ids=["evicting", "roomy"])
def test_a_kill_before_every_change_of_the_disk_loses_nothing_and_leaks_nothing(tmp_path, layout, budget):
    assert die_everywhere(tmp_path, layout, budget, 1) > 200

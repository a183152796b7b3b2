"""kill -9 at any moment: the store opens, flushed turns are whole, others whole or absent."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.parts.kvmodel import draw, held_bytes, is_right, kv_files, load, opened, save

CHILD = """
import sys
import numpy as np
from pathlib import Path
from agent_memory.log.turns import Turn
from agent_memory.types import Message
from tests.parts.kvmodel import draw, opened, save

path, seed = Path(sys.argv[1]), int(sys.argv[2])
with opened(path, disk_bytes=600_000) as store:
    found = store.load_agent("", "a") or store.create_agent("", "a", system=None, tools="[]")
    ids, number = found.ids, len(found.turns)
    rng = np.random.default_rng(seed)
    while True:
        new = draw(rng, int(rng.integers(1, 40)))
        message = Message("user", str(number))
        store.append_turn(found.agent_id, number, Turn((message,), len(ids), new, "t", "stop", 0.0, number))
        ids, number = np.concatenate([ids, new]), number + 1
        save(store, ids, agent_id=found.agent_id)
        if rng.random() < 0.5:
            store.flush()
            print(number, len(ids), flush=True)
"""


def rounds(path, n: int) -> None:
    flushed = 0
    moments = random.Random(0)
    for seed in range(n):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(seed)], stdout=subprocess.PIPE, text=True)
        lines = [child.stdout.readline()]
        time.sleep(moments.random() * 0.3)
        child.send_signal(signal.SIGKILL)
        lines += child.communicate()[0].splitlines()
        last = [line.split() for line in lines if len(line.split()) == 2][-1]
        flushed = max(flushed, int(last[0]))
        with opened(path, disk_bytes=600_000) as store:
            agent = store.load_agent("", "a")
            assert len(agent.turns) >= flushed
            assert [m.content for m in agent.messages] == [str(i) for i in range(len(agent.turns))]
            match = store.match(agent.ids)
            assert match.n_tokens >= int(last[1]) or store.stats()["disk_bytes"] > 400_000  # else the budget evicted it
            kv, sound = load(store, match)
            assert sound
            assert is_right(kv, agent.ids[: match.n_tokens])
            assert store.stats()["damage"] == 0
            store.flush()
            assert held_bytes(path) == store.stats()["disk_bytes"] <= 600_000
            assert store.verify().ok
            if seed % 25 == 24:  # logs are always written: one that grew for ever would fill the budget
                store.delete_agent(agent.agent_id)
                flushed = 0


def test_eight_kills_lose_nothing_that_was_flushed(tmp_path):
    rounds(tmp_path / "store", 8)


@pytest.mark.slow
def test_300_kills_lose_nothing_that_was_flushed(tmp_path):
    rounds(tmp_path / "store", 300)


def test_a_save_given_up_leaves_nothing_and_what_was_to_follow_it_goes_too(tmp_path):
    ids = draw(np.random.default_rng(0), 100)
    with opened(tmp_path) as store:
        given_up = store.begin_save(ids[:64], 64, np.ones(64, np.uint8), "exact", agent_id=None)
        save(store, ids)  # relies on the one being saved
        given_up.abandon()
        store.flush()
        assert store.match(ids).n_tokens == 0
        assert kv_files(tmp_path) == []
        save(store, ids)
        store.flush()
        assert is_right(load(store, store.match(ids))[0], ids)

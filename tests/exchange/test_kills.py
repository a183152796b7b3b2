"""kill -9 while a host publishes, and while it fetches: no half object is visible, and its store is whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agent_memory import EchoRunner, Memory
from agent_memory.remote.names import remote_keys
from agent_memory.remote.objects import read_object
from tests.parts.hosts import KEY, config, objects
from tests.parts.killing import killed

CHILD = """
import sys
from pathlib import Path
from agent_memory import EchoRunner, Memory
from tests.parts.hosts import config

bucket, path, start = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with Memory(EchoRunner(), path, config=config(bucket)) as memory:
    print("open", flush=True)
    for number in range(start, start + 1000):
        agent = memory.agent(f"agent {number % 7}", system="You are brief. " * 20)
        agent.say(f"{agent.name} says turn {agent.info.n_turns}: " + "so it is. " * 10, max_tokens=40)
        memory.flush()
        print("acknowledged:", number % 7, agent.info.n_turns, flush=True)
"""


@pytest.mark.parametrize("n_kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_host_that_is_killed_leaves_whole_objects_and_a_whole_store(n_kills: int, tmp_path: Path) -> None:
    bucket, rng = tmp_path / "bucket", random.Random(n_kills)
    acknowledged: dict[str, dict[int, int]] = {"a": {}, "b": {}}
    n_seen = 0
    for number in range(n_kills):
        host = "ab"[number % 2]
        lines = killed(CHILD, str(bucket), str(tmp_path / host), str(number), after_s=rng.uniform(0.0, 0.3))
        for line in lines:
            words = line.split()
            if words[:1] == ["acknowledged:"] and len(words) == 3:
                acknowledged[host][int(words[1])] = int(words[2])
        n_seen = max(n_seen, _whole(bucket))
    assert n_seen or n_kills < 10
    for host, turns in acknowledged.items():
        with Memory(EchoRunner(), tmp_path / host, config=config(bucket)) as memory:
            assert memory.verify().damaged == ()
            for agent, n_turns in turns.items():
                assert memory.agent(f"agent {agent}").info.n_turns >= n_turns
            usage = memory.agent("one more", system="You are brief. " * 20).say("Yes?").usage
            assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens


def _whole(bucket: Path) -> int:
    """Assert that every object that can be seen is genuine; return how many there are."""
    found = [path for path in objects(bucket) if not path.name.startswith(".")]
    for path in found:
        one = read_object(str(path.relative_to(bucket)), remote_keys(KEY), path.read_bytes())
        assert len(one.parts()) == one.n_parts
    return len(found)

"""exact=True: no bit of a reply depends on what else runs, or has run."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from agent_memory import Config, EchoRunner, Generation, Memory, UnsupportedParameterError
from tests.parts import tiny
from tests.parts.tinyrunner import endless
from tests.parts.waiting import outcome, wait_for

SMALL = Config(chunk_tokens=16, prefill_tokens=64, max_batch=6)
TEXT = (
    "The lamp is lit at dusk and put out at dawn, the lens is wiped every morning, and the log notes wind, sea and "
    "every ship that passes. Strangers may climb the stair on Sundays; they are given tea and asked for news. "
)
PROMPT = TEXT + "What is noted?"
N_OUT = 12


class _Watch:
    """A logits processor that changes nothing and keeps the bytes that it saw."""

    def __init__(self) -> None:
        self.steps: list[bytes] = []

    def __call__(self, ids: Any, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.steps.append(logits.tobytes())
        return logits


def _bits(memory: Memory, prompt: str = PROMPT, *, agent: str | None = None, exact: bool = True) -> list[bytes]:
    """The bytes of every step's logits of one reply."""
    watch = _Watch()
    memory.generate(prompt, agent=agent, max_tokens=N_OUT, logits_processors=[watch], exact=exact)
    return watch.steps[:N_OUT]  # one more may have been computed ahead


def _load(memory: Memory, random_: random.Random, names: list[str]) -> list[Generation]:
    """Other requests at random: some share a prefix with ``PROMPT``, of any length."""
    handles = []
    for _ in range(random_.randint(1, 4)):
        shared = random_.choice([0, random_.randint(1, len(TEXT)), len(TEXT)])
        text = PROMPT[:shared] + TEXT[random_.randint(0, 90) :][: random_.randint(1, 150)]
        agent = random_.choice([None, *names])
        handles.append(memory.stream(text, agent=agent, max_tokens=random_.randint(1, 30), priority=1))
    if random_.random() < 0.3:
        random_.choice(handles).cancel()
    if random_.random() < 0.5:  # the exact one joins rows that decode
        wait_for(lambda: any(one.state not in ("queued", "prefill") for one in handles), "a row that decodes", 60)
    return handles


def _n_differing(kind: str, n_loads: int, folder: Any, seed: int = 0) -> int:
    """Under how many of ``n_loads`` random loads any bit of the logits differs from those of the lone request."""
    random_ = random.Random(seed)
    with Memory(endless(kind), ":memory:", config=SMALL) as alone:
        wanted = _bits(alone)
    assert len(wanted) == N_OUT
    n_differing = 0
    with Memory(endless(kind), folder, config=SMALL) as memory:
        for number in range(n_loads):
            handles = _load(memory, random_, [f"agent {i}" for i in range(3)])
            n_differing += _bits(memory) != wanted
            for handle in handles:
                handle.cancel()
                outcome(handle)
            if number % 5 == 4:
                memory.evict()
            if number % 10 == 9:
                for info in memory.agents():
                    memory.delete(info.name)
    return n_differing


KINDS = ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in tiny.SHAPES if kind != "llama")]


@pytest.mark.mlx
@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_of_an_exact_reply_differs_under_30_random_loads(kind: str, tmp_path: Any) -> None:
    assert _n_differing(kind, 30, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.mlx
def test_no_bit_of_an_exact_reply_differs_under_1000_random_loads(tmp_path: Any) -> None:
    assert _n_differing("llama", 1000, tmp_path, seed=1) == 0


@pytest.mark.mlx
def test_bits_of_other_replies_differ_by_what_ran_before_so_that_these_tests_can_fail(tmp_path: Any) -> None:
    with Memory(endless("llama"), ":memory:", config=SMALL) as memory:
        wanted = _bits(memory, exact=False)
    with Memory(endless("llama"), ":memory:", config=SMALL) as memory:
        memory.generate(PROMPT[:100], max_tokens=4)  # the prompt begins in the middle of a prefill chunk now
        assert _bits(memory, exact=False) != wanted
        assert _bits(memory) == wanted


@pytest.mark.mlx
def test_an_exact_turn_of_an_agent_has_the_same_bits_hot_evicted_and_after_a_restart(tmp_path: Any) -> None:
    found = []
    for way in ("hot", "evicted", "restarted"):
        folder = tmp_path / way
        memory = Memory(endless("llama"), folder, config=SMALL)
        memory.agent("ann").say(TEXT * 2, max_tokens=5, exact=True)
        if way == "evicted":
            memory.evict("ann")
        elif way == "restarted":
            memory.close()
            memory = Memory(endless("llama"), folder, config=SMALL)
        found.append(_bits(memory, "And who may climb?", agent="ann"))
        memory.close()
    assert found[0] == found[1] == found[2]


def test_an_exact_turn_reuses_the_whole_prefill_chunks_that_live() -> None:
    with Memory(EchoRunner(), ":memory:", config=SMALL) as memory:
        first = memory.agent("ann").say(TEXT, exact=True)
        second = memory.agent("ann").say("two", exact=True)
        third = memory.agent("ann").say("three", exact=True)
        for before, after in ((first, second), (second, third)):
            assert after.usage.cached_tokens == (before.usage.prompt_tokens - 1) // 64 * 64 > 0
        assert (third.usage.exactness, third.usage.miss) == ("exact", None)
        assert third.usage.cached_tokens + third.usage.computed_tokens == third.usage.prompt_tokens
        report = memory.explain("four", agent="ann", exact=True)
        assert sum(report.reusable.values()) % 64 == 0
        assert sum(memory.explain("four", agent="ann").reusable.values()) % 64 != 0


def test_no_row_joins_the_batch_of_an_exact_one() -> None:
    runner = EchoRunner(lambda asked, _: asked * 20, delay_s=0.001)
    with Memory(runner, ":memory:", config=SMALL) as memory:
        handles = [memory.stream("one", max_tokens=60, exact=i == 1) for i in range(4)]
        wait_for(lambda: all(one.state == "decode" for one in handles), "four rows that decode")
        rows = list(memory._engine._loop.running)
        assert [sum(other.group == row.group for other in rows) for row in sorted(rows, key=_age)] == [3, 1, 3, 3]


def _age(row: Any) -> float:
    return float(row.request.created)


def test_exact_must_be_a_bool() -> None:
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(UnsupportedParameterError, match="exact must be"):
        memory.generate("one", exact="yes")  # type: ignore[arg-type]

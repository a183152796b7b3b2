"""Law 2 on every kind of cache: what is restored, wherever it is cut, computes the bits of what never stopped."""

from __future__ import annotations

import hashlib
import json
import random
import string
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_memory import Config, Memory
from tests.parts import tiny
from tests.parts.logits import answer

pytestmark = pytest.mark.mlx

CHUNK = 16  #: the tiny models' windows and chunks are of 32
WINDOWS = ("llama_windows", "gemma3_text")
#: One of each kind in the default run, all others in the slow one.
_DEFAULT = ("gemma3_text", "qwen3_next", "llama4")
SOME = [n if n in _DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in (*tiny.SHAPES, *tiny.MORE)]
LETTERS = [ord(letter) - 33 for letter in string.ascii_letters]  #: as tinytokenizer.py numbers them
CONFIG = Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK)
WARM = Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK, warm_bytes=1 << 30)


def opened(name: str, path: Any, config: Config = CONFIG) -> Memory:
    from agent_memory.runner.mlx import MLXRunner
    from tests.parts.tinytokenizer import tokenizer

    return Memory(MLXRunner(tiny.model(name), tokenizer(), name=name), path, config=config)


def warm(name: str) -> Memory:
    """One whose only store is a warm tier."""
    return opened(name, ":memory:", WARM)


def text(seed: int, n_tokens: int) -> str:
    """One letter is one token."""
    return "".join(random.Random(seed).choices(string.ascii_letters, k=n_tokens))


@pytest.mark.parametrize("name", SOME)
def test_restored_at_every_chunk_boundary_and_at_the_tail_equals_never_stopped(name: str, tmp_path: Path) -> None:
    lengths = [*range(CHUNK, 7 * CHUNK + 1, CHUNK), 1, 31, 33, 100]
    with opened(name, ":memory:") as live, opened(name, tmp_path) as stored, warm(name) as held:
        stored._store._catalog.disk.admission._compute_s = lambda n: None  # or cheap KV is not written
        for n in lengths:
            first, second = text(n, n), text(n, n) + text(-n, 21)
            for memory in (live, stored, held):
                answer(memory, first, max_tokens=1)
            stored.evict()
            held.evict(to="warm")
            wanted, hot = answer(live, second)
            assert (hot.usage.tier, hot.usage.cached_tokens) == ("hot", n)
            for memory, tier in ((stored, "cold"), (held, "warm")):
                got, reply = answer(memory, second)
                assert (reply.usage.tier, reply.usage.tier_tokens) == (tier, {tier: n}), (n, tier)
                assert reply.usage.exactness == "exact"
                assert got == wanted, (n, tier)
                assert reply.token_ids == hot.token_ids
        assert stored.stats().damage == 0
        assert not stored.verify().damaged


def _reach(name: str, cut: int) -> int:
    """How much of 104 tokens is reused where a prompt changes at ``cut``."""
    kinds = {
        "llama": "full",
        "qwen3": "full",
        "deepseek_v3": "full",
        "llama_windows": "window",
        "gemma3_text": "window",
    }
    if kinds.get(name) == "full":
        return cut
    if kinds.get(name) == "window":  # to any token since the last boundary
        return cut if cut >= 96 else 0
    return max(b for b in (0, 64, 80, 96) if b <= cut)


@pytest.mark.parametrize("name", [n if n in _DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in tiny.SHAPES])
def test_a_changed_prompt_reuses_what_stands_before_it_with_the_bits_of_a_fresh_run(name: str, tmp_path: Path) -> None:
    long = text(1, 100)
    for cut in (66, 80, 99):
        changed = long[:cut] + text(cut, 120 - cut)
        with opened(name, ":memory:") as fresh:
            wanted, _ = answer(fresh, changed)
        for tier, path in (("hot", ":memory:"), ("warm", ":memory:"), ("cold", tmp_path / str(cut))):
            with opened(name, path, WARM) as memory:
                answer(memory, long)  # its KV covers 104 tokens
                if tier != "hot":
                    memory.evict(to=tier)
                got, reply = answer(memory, changed)
            assert reply.usage.cached_tokens == _reach(name, cut), (tier, cut)
            assert reply.usage.tier == (tier if reply.usage.cached_tokens else "none")
            if reply.usage.cached_tokens % CHUNK == 0:  # then the prefill steps are the same
                assert got == wanted, (tier, cut)
            else:
                assert np.allclose(*(np.frombuffer(b"".join(one), np.float32) for one in (got, wanted)), atol=1e-3)


def spoken(logits: Any) -> Any:
    """Letters only: a random model's bytes are no text, and would be other ids when the next turn reads the log."""
    masked = np.full_like(logits, -1e9)
    masked[LETTERS] = logits[LETTERS]
    return masked


def turns(memory: Memory, first: int, last: int) -> list[list[str]]:
    """Turns of one agent that cross windows and chunks: the digests of all logits."""
    found = []
    for number in range(first, last):
        logits: list[str] = []

        def note(ids: Any, values: Any, seen: list[str] = logits) -> Any:
            seen.append(hashlib.sha256(values.tobytes()).hexdigest())
            return spoken(values)

        message = text(number, (30, 3, 50, 1, 17)[number % 5])
        reply = memory.agent("a").say(message, max_tokens=(5, 20, 40)[number % 3], logits_processors=[note])
        assert reply.usage.exactness == "exact", (number, reply.usage)
        found.append(logits)
    return found


@pytest.mark.parametrize("name", SOME)
def test_an_agent_evicted_before_every_turn_gives_the_logits_of_one_that_never_was(name: str, tmp_path: Path) -> None:
    with opened(name, ":memory:") as live, opened(name, tmp_path) as stored, warm(name) as held:
        wanted = turns(live, 0, 6)
        for number in range(6):
            stored.evict()
            held.evict(to="warm")
            assert turns(stored, number, number + 1) == wanted[number : number + 1], number
            assert turns(held, number, number + 1) == wanted[number : number + 1], number
        assert stored.stats().hits == {"none": 1, "cold": 5}
        assert held.stats().hits == {"none": 1, "warm": 5}
        assert live.stats().hits == {"none": 1, "hot": 5}


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    """Turns of each kind, by its name: the first two in one process, the others in another. To start one is slow."""
    folder, found = tmp_path_factory.mktemp("stores"), dict[str, list[list[str]]]()
    for number in (0, 2):
        command = [sys.executable, __file__, str(folder), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for name, logits in json.loads(done.stdout.splitlines()[-1]).items():
            found[name] = found.get(name, []) + logits
    return found


@pytest.mark.parametrize("name", _DEFAULT)
def test_a_new_process_gives_the_logits_of_the_one_that_never_ended(
    name: str, in_two_processes: dict[str, list[list[str]]]
) -> None:
    with opened(name, ":memory:") as live:
        wanted = turns(live, 0, 4)
    assert in_two_processes[name] == wanted


@pytest.mark.parametrize("name", WINDOWS)
def test_the_store_keeps_no_more_of_a_window_than_itself_and_one_chunk(name: str, tmp_path: Path) -> None:
    window, layers, token_bytes = 32, 2, 2 * 2 * 16 * 4  # keys and values, two heads, dim 16, float32
    limit = (window + CHUNK) * token_bytes
    with opened(name, tmp_path / "at once") as memory:
        answer(memory, text(3, 4 * window), max_tokens=1)
    stored = window_bytes(tmp_path / "at once")
    assert len(stored) == layers
    assert all(window * token_bytes <= n <= limit for n in stored.values()), stored
    with opened(name, tmp_path / "in turns") as memory:
        agent, kept = memory.agent("a"), 0
        while agent.n_tokens < 4 * window:  # replies that are no text: each turn tells the one before otherwise
            cached = agent.say("abc", max_tokens=3).usage.cached_tokens
            assert cached >= kept
            kept = cached
            memory.flush()
            turn = (agent.n_tokens - kept) * token_bytes  # it may be taken back
            assert all(n <= limit + turn for n in window_bytes(tmp_path / "in turns").values())


@pytest.mark.parametrize("name", SOME)
def test_a_turn_taken_back_is_told_otherwise_from_where_it_began(name: str, tmp_path: Path) -> None:
    with opened(name, tmp_path / "straight") as straight:
        turns(straight, 0, 3)
        straight.evict()
        wanted = straight.agent("a").say("no, otherwise", max_tokens=3).token_ids
    for tier, path in (("cold", tmp_path / "rewound"), ("warm", ":memory:")):
        with opened(name, path, WARM) as memory:
            for number in range(4):
                n_tokens = memory.agent("a").n_tokens
                turns(memory, number, number + 1)
                memory.evict(to=tier)
            memory.agent("a").rewind(1)
            reply = memory.agent("a").say("no, otherwise", max_tokens=3)
            assert n_tokens - CHUNK <= reply.usage.cached_tokens < n_tokens + 12, "the template opens both turns alike"
            assert reply.usage.tier == tier
            assert reply.token_ids == wanted


def window_bytes(path: Path) -> dict[str, int]:
    """Bytes of window rows in a store, by layer."""
    found: dict[str, int] = {}
    for file in path.glob("kv/*/*.safetensors"):
        raw = file.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        table = json.loads(raw[8 : 8 + length])
        if table["__metadata__"]["format"].startswith("agent_memory.side"):
            for tensor, entry in table.items():
                if tensor[-1] in "kv" and tensor != "__metadata__":
                    start, stop = entry["data_offsets"]
                    found[tensor[:-2]] = found.get(tensor[:-2], 0) + stop - start
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    made = {}
    for kind in _DEFAULT:
        with opened(kind, Path(sys.argv[1], kind)) as again:
            made[kind] = turns(again, int(sys.argv[2]), int(sys.argv[2]) + 2)
    print(json.dumps(made))

"""The laws on the real starter model: bit-equal logits after every kind of interruption, equal tokens after none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, Memory
from tests.parts import dialogue, workers

pytestmark = [pytest.mark.mlx, pytest.mark.model]

LONGEST = len(dialogue.TURNS)
#: The starter model's KV of one token: 30 layers, keys and values of 3 heads, 64 float32 each.
TOKEN_BYTES = 30 * 2 * 3 * 64 * 4


@pytest.fixture(scope="module", params=[2, pytest.param(LONGEST, marks=pytest.mark.slow)], ids="{} turns".format)
def uninterrupted(request: Any, tmp_path_factory: Any) -> tuple[list[dict[str, Any]], Path]:
    """The reference run, and its store afterwards."""
    store = tmp_path_factory.mktemp("uninterrupted") / "store"
    with Memory(path=store) as memory:
        rows = dialogue.turns(memory, 0, request.param)
    return json.loads(json.dumps(rows)), store


def _n_turns(uninterrupted: tuple[list[dict[str, Any]], Path]) -> int:
    return len(uninterrupted[0]) // len(dialogue.AGENTS)


def _same(rows: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    for row, wanted in zip(rows, reference, strict=True):
        where = (row["agent"], row["turn"])
        assert row["ids"] == wanted["ids"], where
        assert row["logits"] == wanted["logits"], f"first logits differ in bits: {where}"
        assert row["exactness"] == "exact", where


def test_a_turn_computes_its_new_message_alone(uninterrupted: Any) -> None:
    rows, _ = uninterrupted
    ends: dict[str, int] = {}
    for row in rows:
        assert row["cached"] + row["computed"] == row["prompt"]
        if row["agent"] in ends:
            assert row["cached"] >= ends[row["agent"]] - 1
            assert row["tier"] == "hot"
        ends[row["agent"]] = row["prompt"] + len(row["ids"])
    assert max(ends.values()) > 256, "the dialogues must cross a chunk's border"


@pytest.mark.slow  # by default a new process restores from the same tier
@pytest.mark.parametrize("tier", ["cold", "warm"])
def test_evicted_before_every_turn_gives_bit_equal_logits(tier: str, uninterrupted: Any, tmp_path: Path) -> None:
    path = ":memory:" if tier == "warm" else tmp_path / "store"
    with Memory(path=path, config=Config(warm_bytes=1 << 30)) as memory:
        rows = json.loads(json.dumps(dialogue.turns(memory, 0, _n_turns(uninterrupted), evict=tier)))
    _same(rows, uninterrupted[0])
    assert {row["tier"] for row in rows if row["turn"]} == {tier}


def test_a_new_process_before_every_turn_gives_bit_equal_logits(uninterrupted: Any, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(_n_turns(uninterrupted)):
        command = [sys.executable, dialogue.__file__, str(tmp_path / "store"), str(number), str(number + 1)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows += json.loads(done.stdout.splitlines()[-1])
    _same(rows, uninterrupted[0])
    resumed = [row for row in rows if row["turn"]]
    assert {row["tier"] for row in resumed} == {"cold"}
    ends = {(row["agent"], row["turn"]): row["prompt"] + len(row["ids"]) for row in rows}
    for row in resumed:
        assert row["cached"] + row["computed"] == row["prompt"]
        assert row["cached"] >= ends[row["agent"], row["turn"] - 1] - 1, "more than the new message was computed"
        if sys.platform == "linux":
            assert row["read"] >= row["cached"] * TOKEN_BYTES, "the KV was not read from the files"


def test_without_its_kv_every_agent_answers_from_the_log_with_the_same_tokens(
    uninterrupted: Any, tmp_path: Path
) -> None:
    _, store = uninterrupted
    shutil.copytree(store, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "kv")
    with Memory(path=store) as kept, Memory(path=tmp_path / "store") as lost:
        for name in dialogue.AGENTS:
            want = kept.agent(name).say("One more word, please.", max_tokens=8)
            got = lost.agent(name).say("One more word, please.", max_tokens=8)
            assert want.usage.exactness == "exact"
            assert got.usage.exactness == "recomputed"
            assert got.token_ids == want.token_ids, "float32, far from a tie"
            assert lost.agent(name).messages == kept.agent(name).messages
        assert lost.stats().damage > 0


@pytest.fixture
def all_cores() -> Iterator[None]:
    """OpenBLAS computes on every core, as for users."""
    with workers.all_cores():
        yield


def test_a_resent_prompt_computes_its_last_token_alone_with_bit_equal_logits(tmp_path: Path, all_cores: None) -> None:
    prompt, found = "The lamp is lit at dusk and put out at dawn. " * 23, []

    with Memory(path=tmp_path) as memory:
        for tier in ("none", "hot", "cold", "cold"):
            logits: list[bytes] = []

            def note(ids: Any, values: Any, seen: list[bytes] = logits) -> Any:
                seen.append(values.tobytes())
                return values

            usage = memory.generate(prompt, max_tokens=2, logits_processors=[note]).usage
            assert usage.tier == tier
            assert usage.computed_tokens == (usage.prompt_tokens if tier == "none" else 1)
            found.append(logits)
            if tier != "none":
                memory.evict()
        assert memory.stats().damage == 0
    assert found[1:] == found[:1] * 3


@pytest.mark.slow
def test_law_4_another_dtype_of_the_same_weights_shares_no_kv(tmp_path: Path) -> None:
    prompt = "The lamp is lit at dusk. " * 5
    with Memory(path=tmp_path) as memory:
        memory.generate(prompt, max_tokens=1)
    with Memory(path=tmp_path, config=Config(weights_dtype="bfloat16")) as memory:
        assert memory.generate(prompt, max_tokens=1).usage.cached_tokens == 0


def test_law_11_using_it_changes_no_attribute_of_mlx_and_no_limit(tmp_path: Path) -> None:
    code = f"""
import resource
before = resource.getrlimit(resource.RLIMIT_NOFILE)
import mlx.core as mx, mlx.nn as nn
shot = {{m: dict(vars(m)) for m in (mx, nn, mx.fast, mx.random)}}
from agent_memory import Memory
with Memory(path={str(tmp_path)!r}) as memory:
    import mlx_lm.generate, mlx_lm.models.cache
    lm = {{m: dict(vars(m)) for m in (mlx_lm.generate, mlx_lm.models.cache)}}
    memory.agent("a").say("Hello", max_tokens=4)
    memory.evict()
    memory.agent("a").say("Again", max_tokens=4)
for module, attributes in {{**shot, **lm}}.items():
    now = vars(module)
    changed = [k for k in attributes if now.get(k) is not attributes[k] and not k.startswith("__")]
    assert not changed, (module, changed)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
print("as it was")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("as it was"), done.stderr

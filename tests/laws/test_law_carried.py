"""An agent moves between stores and processes: same next tokens, logits bit-equal, on every kind of cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_memory import AgentFileError, Config, Memory, UnsupportedParameterError
from agent_memory.kvcache.coding import fitted
from tests.parts import tiny
from tests.parts.agentfile import parts, sealed
from tests.parts.tinyrunner import endless

CONFIG = dict(chunk_tokens=16, prefill_tokens=16)
ARCHITECTURES = ("llama", "llama_windows", "deepseek_v3", "qwen3_next")
SLOW = ("gemma3_text", "falcon_h1", "llama4", "qwen3")


def opened(path: Path, name: str, **settings: Any) -> Memory:
    return Memory(endless(name), path, config=Config(**CONFIG, **settings))


def go_on(memory: Memory) -> tuple[list[bytes], tuple[int, ...], Any]:
    """The logits and tokens of the agent's next turn."""
    logits: list[bytes] = []

    def note(ids: Any, values: Any) -> Any:
        logits.append(values.tobytes())
        return values

    reply = memory.agent("a").say("And now?", max_tokens=6, logits_processors=[note])
    return logits, reply.token_ids, reply.usage


def lived(memory: Memory) -> None:
    agent = memory.agent("a", system="You say what you heard, and nothing else.")
    agent.say("First, a long message that fills some chunks. " * 3, max_tokens=5)
    agent.checkpoint("first")
    agent.say("Second.", max_tokens=5)
    agent.rewind()
    agent.say("Another second one.", max_tokens=5)


def carried(tmp_path: Path, name: str, **settings: Any) -> None:
    with opened(tmp_path / "one", name, **settings) as memory:
        lived(memory)
        memory.agent("a").export(tmp_path / "a.agent")
    with opened(tmp_path / "one", name, **settings) as memory:  # from the disk, as the other store will
        logits, ids, usage = go_on(memory)
    with opened(tmp_path / "two", name, salt="tenant", **settings) as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        moved.export(tmp_path / "again.agent")
        found = go_on(memory)
        assert (found[0], found[1]) == (logits, ids)
        assert (found[2].cached_tokens, found[2].exactness, found[2].tier) == (
            usage.cached_tokens, usage.exactness, "cold",
        )  # fmt: skip
        assert usage.cached_tokens > 0
        moved.rewind(to="first")
        assert moved.say("more", max_tokens=2).usage.cached_tokens > 0
        assert memory.verify().ok
    assert (tmp_path / "again.agent").read_bytes() == (tmp_path / "a.agent").read_bytes()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_imported_agent_gives_the_same_logits_bit_by_bit(name: str, tmp_path: Path) -> None:
    carried(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_an_imported_agent_of_more_kinds_gives_the_same_logits_bit_by_bit(name: str, tmp_path: Path) -> None:
    carried(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llama_windows"])
@pytest.mark.parametrize("codec", ["q8", "q4"])
def test_lossy_kv_moves_as_it_is_and_says_so(name: str, codec: str, tmp_path: Path) -> None:
    from agent_memory.runner.mlx import _probe

    carried(tmp_path, name, cold_codec=codec)
    codec = fitted(_probe(tiny.model(name))[0], codec)  # of few layers without a window, as here, more of the keys
    found = parts((tmp_path / "a.agent").read_bytes())
    rows = [piece for piece in found if piece.kind == "rows"]
    assert {(row.facts["codec"], row.facts["exactness"]) for row in rows} == {(codec, "quantized")}
    rows[0].facts["exactness"] = "exact"
    (tmp_path / "b.agent").write_bytes(sealed(found))
    with opened(tmp_path / "three", name) as memory, pytest.raises(AgentFileError, match="pose as exact"):
        memory.import_agent(tmp_path / "b.agent")


@pytest.mark.parametrize("name", ["llama", "llama_windows"])
def test_exact_kv_is_encoded_on_its_way_out_as_a_save_encodes_it(name: str, tmp_path: Path) -> None:
    with opened(tmp_path / "one", name) as memory:
        agent = memory.agent("a", system="You say what you heard, and nothing else.")
        agent.say("First, a long message that fills some chunks. " * 3, max_tokens=5)
        with pytest.raises(UnsupportedParameterError, match="codec must be one of"):
            agent.export(tmp_path / "odd", codec="q3")  # type: ignore[arg-type]
        agent.export(tmp_path / "exact")
        agent.export(tmp_path / "same", codec="exact")
        agent.export(tmp_path / "a.agent", codec="q8")
    with opened(tmp_path / "coded", name, cold_codec="q8") as memory:
        agent = memory.agent("a", system="You say what you heard, and nothing else.")
        agent.say("First, a long message that fills some chunks. " * 3, max_tokens=5)
        agent.export(tmp_path / "saved")
        agent.export(tmp_path / "again", codec="q4")
    raw = {name: (tmp_path / name).read_bytes() for name in ("exact", "same", "a.agent", "saved", "again")}
    assert raw["exact"] == raw["same"]
    rows = {
        name: [(part.facts, part.body) for part in parts(found) if part.kind == "rows"] for name, found in raw.items()
    }
    assert rows["a.agent"] == rows["saved"] == rows["again"]  # and lossy KV is never encoded again
    assert len(raw["a.agent"]) < len(raw["exact"])
    with opened(tmp_path / "two", name) as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        usage = moved.say("And now?", max_tokens=2).usage
        assert (usage.tier, usage.exactness) == ("cold", "quantized")
        assert memory.verify().ok


def _states(raw: bytes, change: Any) -> bytes:
    """A file in which the text of the first state is another one."""
    found = parts(raw)
    part = next(part for part in found if part.kind == "resume" and part.facts["has_state"])
    n_text = int.from_bytes(part.body[:8], "little")
    told = change(json.loads(part.body[8 : 8 + n_text]))
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    part.body = len(text).to_bytes(8, "little") + text + part.body[8 + n_text :]
    return sealed(found)


def _larger(told: Any) -> Any:
    told[0]["t"][0]["l"][0]["a"][1][1] += 1
    return told


def _beyond(told: Any) -> Any:
    told[0]["t"][0]["l"][1]["a"][2] += 1 << 20
    return told


def _huge(told: Any) -> Any:
    told[0]["t"][0]["l"][0]["a"][1] = [1 << 40, 0]
    return told


@pytest.mark.parametrize(
    "change", [_larger, _beyond, _huge, lambda told: told[:-1], lambda told: [{"v": 1}] * len(told)]
)
def test_a_state_that_is_none_of_the_model_is_refused(change: Any, tmp_path: Path) -> None:
    """A cache with such an array would fail at every turn."""
    with opened(tmp_path / "one", "qwen3_next") as memory:
        lived(memory)
        memory.agent("a").export(tmp_path / "a.agent")
    raw = (tmp_path / "a.agent").read_bytes()
    (tmp_path / "same").write_bytes(_states(raw, lambda told: told))
    (tmp_path / "b.agent").write_bytes(_states(raw, change))
    with opened(tmp_path / "two", "qwen3_next") as memory:
        with pytest.raises(AgentFileError, match="state"):
            memory.import_agent(tmp_path / "b.agent")
        assert memory.agents() == []
        assert memory.import_agent(tmp_path / "same").info.n_turns == 2


CHILD = """
import json, sys
from pathlib import Path
from tests.laws.test_law_carried import go_on, opened

folder, name = Path(sys.argv[1]), sys.argv[2]
with opened(folder / sys.argv[3], name) as memory:
    if sys.argv[3] == "two":
        memory.import_agent(folder / "a.agent")
    logits, ids, usage = go_on(memory)
    print(json.dumps([[one.hex() for one in logits], list(ids), usage.cached_tokens, usage.tier, usage.exactness]))
"""


def test_another_process_with_another_store_goes_on_with_the_same_logits(tmp_path: Path) -> None:
    with opened(tmp_path / "one", "llama_windows") as memory:
        lived(memory)
        memory.agent("a").export(tmp_path / "a.agent")
    found = []
    for store in ("one", "two"):
        command = [sys.executable, "-c", CHILD, str(tmp_path), "llama_windows", store]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    assert found[0][2] > 0
    assert found[0][3] == "cold"

"""An agent's file that is sealed: it moves as a plain one does, tells nothing, and refuses as a store does."""

from __future__ import annotations

import logging
import random
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    AgentFileError,
    Config,
    ConfigError,
    EchoRunner,
    Memory,
    StoreError,
    WrongKeyError,
    open_store,
)
from agent_memory.carry.agent_file import AgentFileReader, AgentFileWriter
from agent_memory.carry.sealed_file import SealedSink
from agent_memory.log.files import KV_FOLDER, Files
from agent_memory.requests.moving import seal_of
from tests.parts.agentfile import broken, forged
from tests.promises.test_hostile_files import HOSTILE, Tries, attacked, contents, exported, opened

KEY, OTHER = b"k" * 32, b"another key of a host"


def sealed_of(raw: bytes, path: Path) -> bytes:
    """Seal any bytes, as somebody who has the key can."""
    path.unlink(missing_ok=True)
    keys = seal_of(KEY)
    assert keys is not None
    with path.open("w+b") as file:
        sink = SealedSink(Files(), file.fileno(), keys)
        sink.write(raw, 0)
        sink.finish()
    return path.read_bytes()


def plain_of(path: Path) -> bytes:
    """What is sealed in a file."""
    with AgentFileReader(path, seal_of(KEY)) as reader:
        return reader._source.read(0, reader.n_bytes)


def test_a_sealed_agent_moves_as_a_plain_one_and_nothing_of_it_is_in_the_file(tmp_path: Path) -> None:
    raw = exported(tmp_path, KEY)
    for word in (b"Answer with what", b"two said", b'"name"', b"tokenizer", b"rows"):
        assert word not in raw
    with opened(tmp_path / "from") as memory:
        memory.agent("a").export(tmp_path / "plain.agent")
        memory.agent("a").export(tmp_path / "again.agent", key=lambda: KEY)
        told = memory.agent("a").messages
    assert plain_of(tmp_path / "a.agent") == (tmp_path / "plain.agent").read_bytes()
    assert raw != (tmp_path / "again.agent").read_bytes()  # the same agent twice: nobody can tell
    with opened(tmp_path / "store") as memory:
        moved = memory.import_agent(tmp_path / "a.agent", key=KEY)
        assert moved.messages == told
        assert moved.say("more").usage.tier == "cold"
        moved.rewind(to="two said")
        memory.import_agent(tmp_path / "plain.agent", "b")
        assert memory.verify().ok


@pytest.mark.parametrize("key", [OTHER, None])
def test_a_wrong_key_is_refused_and_changes_nothing(tmp_path: Path, key: bytes | None) -> None:
    raw = exported(tmp_path, KEY)
    tries = Tries(tmp_path, key)
    assert tries.give(raw) == "WrongKeyError"
    for bad in ("no bytes", b"short", 5):
        with pytest.raises(ConfigError, match="key"):
            tries.memory.import_agent(tries.file, key=bad)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="key"):
            tries.memory.agent("b").export(tmp_path / "never", key=bad)  # type: ignore[arg-type]
    assert not (tmp_path / "never").exists()
    tries.memory.close()


def test_a_key_for_a_plain_file_is_refused(tmp_path: Path) -> None:
    """Who took the sealed file away and put a plain one in its place is noticed."""
    raw = exported(tmp_path)
    tries = Tries(tmp_path, KEY)
    assert tries.give(raw) == "WrongKeyError"
    tries.memory.close()


def attack(folder: Path, n: int, seed: int) -> Tries:
    """Damage sealed files, and seal forged ones under the right key."""
    raw, rng = exported(folder, KEY), random.Random(seed)
    plain = plain_of(folder / "a.agent")

    def change(number: int) -> bytes:
        return broken(raw, rng) if number % 2 else sealed_of(forged(plain, rng), folder / "forged")

    return attacked(Tries(folder, KEY), raw, n, change)


def test_damaged_and_forged_sealed_files_end_with_typed_errors_in_bounded_memory(tmp_path: Path) -> None:
    tries = attack(tmp_path, 80, 0)
    assert tries.counts["AgentFileError"] > 60
    assert tries.worst <= 2.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_1000_damaged_and_forged_sealed_files(seed: int, tmp_path: Path) -> None:
    tries = attack(tmp_path, 1_000, seed)
    print(dict(tries.counts), f"peak / file size: {tries.worst:.2f}")
    assert tries.counts["AgentFileError"] > 750
    assert tries.worst <= 2.5


def test_every_hostile_file_is_refused_under_the_seal_too(tmp_path: Path) -> None:
    """Who has the key can seal what was never exported."""
    raw = exported(tmp_path)
    tries = Tries(tmp_path, KEY)
    for how in (
        "deep JSON",
        "a cycle of pieces",
        "a giant header",
        "a giant body",
        "a lying end",
        "bytes behind the end",
    ):
        assert tries.give(sealed_of(HOSTILE[how](raw), tmp_path / "sealed")) == "AgentFileError", how
    assert tries.give(sealed_of(sealed_of(raw, tmp_path / "inner"), tmp_path / "sealed")) == "AgentFileError"
    assert tries.give(sealed_of(b"", tmp_path / "sealed")) == "AgentFileError"
    tries.memory.close()


def test_reading_and_writing_hold_some_chunks_and_not_the_file(tmp_path: Path) -> None:
    n_bytes, block = 32 << 20, bytes(1 << 20)
    tracemalloc.start()
    try:
        with AgentFileWriter(tmp_path / "large", keys=seal_of(KEY)) as writer:
            writer.begin("rows", {}, n_bytes)
            for _ in range(n_bytes // len(block)):
                writer.write(block)
            writer.end()
            writer.finish()
        with AgentFileReader(tmp_path / "large", seal_of(KEY)) as reader:
            for body in reader.bodies():
                body.close()
        assert tracemalloc.get_traced_memory()[1] < n_bytes // 4
    finally:
        tracemalloc.stop()
    assert (tmp_path / "large").stat().st_size > n_bytes


def test_damaged_kv_is_taken_back_out_of_a_sealed_file_too(tmp_path: Path) -> None:
    """What is sealed already is cut and sealed anew; the file is that of a plain export."""
    exported(tmp_path)
    for file in sorted((tmp_path / "from" / KV_FOLDER).rglob("*.safetensors"))[:1]:
        raw = bytearray(file.read_bytes())
        raw[-9] ^= 1
        file.write_bytes(raw)
    shutil.copytree(tmp_path / "from", tmp_path / "same")
    for name, key in (("from", KEY), ("same", None)):
        with open_store(tmp_path / name) as view:
            view.export("a", tmp_path / f"{name}.agent", key=key)
    assert plain_of(tmp_path / "from.agent") == (tmp_path / "same.agent").read_bytes()
    with opened(tmp_path / "store") as memory:
        assert memory.import_agent(tmp_path / "from.agent", key=KEY).info.n_turns == 2


def test_an_encrypted_store_warns_where_it_exports_in_the_clear(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(export: Any) -> bool:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "agent_memory"):
            export()
        return "in the clear" in caplog.text

    inside = tmp_path / "store" / "a.agent"
    with Memory(EchoRunner(), tmp_path / "store", config=Config(key=KEY)) as memory:
        agent = memory.agent("a")
        agent.say("hello")
        assert warned(lambda: agent.export(tmp_path / "plain"))
        assert not warned(lambda: agent.export(tmp_path / "sealed", key=OTHER))
        with pytest.raises(StoreError, match="key="):
            agent.export(inside)
        assert not inside.exists()
    with open_store(tmp_path / "store", key=KEY) as view:
        assert warned(lambda: view.export("a", tmp_path / "plain"))
        assert not warned(lambda: view.export("a", tmp_path / "sealed", key=OTHER))
    with Memory(EchoRunner(), tmp_path / "plain store") as memory:
        agent = memory.agent("a")
        agent.say("hello")
        assert not warned(lambda: agent.export(tmp_path / "plain"))


def test_a_view_gives_the_key_of_the_file_and_not_of_the_store(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path / "store", config=Config(key=KEY)) as memory:
        memory.agent("a").say("hello")
    with open_store(tmp_path / "store", key=KEY) as view:
        view.export("a", tmp_path / "a.agent", key=OTHER)
    with Memory(EchoRunner(), ":memory:") as memory:
        with pytest.raises(WrongKeyError):
            memory.import_agent(tmp_path / "a.agent", key=KEY)
        assert memory.import_agent(tmp_path / "a.agent", key=OTHER).messages[0].content == "hello"
    before = contents(tmp_path / "store")
    (tmp_path / "short").write_bytes((tmp_path / "a.agent").read_bytes()[:60])
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(AgentFileError, match="cut"):
        memory.import_agent(tmp_path / "short", key=OTHER)
    assert contents(tmp_path / "store") == before

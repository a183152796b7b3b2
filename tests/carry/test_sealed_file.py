"""The bytes of an agent's file under a key: what was written comes back, and nothing else opens."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.carry import sealed_file
from agent_memory.carry.sealed_file import SealedSink, SealedSource
from agent_memory.errors import AgentFileError, WrongKeyError
from agent_memory.log.files import Files
from agent_memory.sealing.keys import Keys

CHUNK = 64
KEYS, OTHERS = Keys(b"k" * 32), Keys(b"o" * 32)
STEPS = st.lists(st.one_of(st.binary(max_size=3 * CHUNK), st.floats(0, 1)), max_size=8)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_file, "CHUNK_BYTES", CHUNK)


def written(path: Path, steps: list[bytes | float]) -> bytes:
    """Write texts, and take back what follows a place where a step is a number; return what is left."""
    path.unlink(missing_ok=True)
    fd, plain = Files().create(path), bytearray()
    try:
        sink = SealedSink(Files(), fd, KEYS)
        for step in steps:
            if isinstance(step, bytes):
                sink.write(step, len(plain))
                plain += step
            else:
                at = int(step * len(plain))
                sink.truncate(at)
                del plain[at:]
        sink.finish()
    finally:
        os.close(fd)
    return bytes(plain)


def opened(path: Path, keys: Keys | None = KEYS) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        source = SealedSource(fd, path, keys)
        return source.read(0, source.n_bytes)
    finally:
        os.close(fd)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, data=st.data())
def test_what_was_written_and_not_taken_back_is_read(
    tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | float], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("files") / "a"
    plain = written(path, steps)
    assert opened(path) == plain
    fd = os.open(path, os.O_RDONLY)
    try:
        source = SealedSource(fd, path, KEYS)
        for _ in range(4):
            start = data.draw(st.integers(0, len(plain)))
            stop = data.draw(st.integers(start, len(plain)))
            assert source.read(start, stop - start) == plain[start:stop]
        with pytest.raises(AgentFileError, match="too early"):
            source.read(0, len(plain) + 1)
    finally:
        os.close(fd)


def test_a_bit_anywhere_and_every_cut_are_damage_and_another_key_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    written(path, [random.Random(1).randbytes(5 * CHUNK // 2)])
    raw = path.read_bytes()
    for keys in (OTHERS, None):
        with pytest.raises(WrongKeyError):
            opened(path, keys)
    for at in range(16, len(raw)):  # who reads the first 16 bytes is the file's reader
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(AgentFileError):
            opened(path)
    for stop in (*range(0, len(raw), 7), len(raw) - 1):
        path.write_bytes(raw[:stop])
        with pytest.raises(AgentFileError):
            opened(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(AgentFileError):
        opened(path)


def test_chunks_exchanged_repeated_or_of_another_file_do_not_open(tmp_path: Path) -> None:
    path, size = tmp_path / "a", CHUNK + 48
    written(tmp_path / "other", [bytes(3 * CHUNK)])
    written(path, [bytes(3 * CHUNK)])  # the same plain bytes, so that only place and file tell chunks apart
    raw, other = path.read_bytes(), (tmp_path / "other").read_bytes()
    start = len(raw) - 3 * size
    chunks = [raw[at : at + size] for at in range(start, len(raw), size)]
    foreign = other[start : start + size]
    for wrong in ([1, 0, 2], [0, 0, 2], [0, 2, 1]):
        path.write_bytes(raw[:start] + b"".join(chunks[number] for number in wrong))
        with pytest.raises(AgentFileError, match="chunk"):
            opened(path)
    path.write_bytes(raw[:start] + foreign + b"".join(chunks[1:]))
    with pytest.raises(AgentFileError, match="chunk 0"):
        opened(path)
    path.write_bytes(other[:start] + b"".join(chunks))  # another file's header
    with pytest.raises(AgentFileError, match="chunk 0"):
        opened(path)

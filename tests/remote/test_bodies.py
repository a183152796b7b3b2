"""An object read from a file piece by piece is the one that is in memory."""

from __future__ import annotations

import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.remote.bodies import FileBody, Held
from agent_memory.remote.failures import ObjectDamagedError
from agent_memory.remote.names import RemoteKeys, remote_keys
from agent_memory.remote.objects import open_object, write_object
from agent_memory.sealing.pages import PAGE_BYTES, pages

SEALED, PUBLIC = remote_keys(b"k" * 32, "tenant"), remote_keys(b"", "tenant")


@given(st.binary(max_size=300), st.lists(st.integers(0, 120), max_size=12))
def test_a_file_gives_what_memory_gives(text: bytes, takes: list[int]) -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(text)
        file.seek(0)
        read, held = FileBody(file, len(text)), Held(text)
        assert read.n_bytes == held.n_bytes == len(text)
        for n in takes:
            assert bytes(read.take(n)) == bytes(held.take(n))


@pytest.mark.parametrize("keys", [SEALED, PUBLIC])
@given(parts=st.lists(st.binary(max_size=200), min_size=1, max_size=5), data=st.data())
def test_parts_are_given_before_the_next_is_read_and_stay(
    keys: RemoteKeys, parts: list[bytes], data: st.DataObject
) -> None:
    body = write_object("v1/a", keys, {}, parts)
    n_good = data.draw(st.integers(0, len(parts) - 1))
    end = len(body) - sum(len(one) + 16 for one in parts[n_good:])
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(body[: end + data.draw(st.integers(0, len(parts[n_good]) + 15))])  # it ends within a part
        file.seek(0)
        opening = open_object("v1/a", keys, FileBody(file, len(body))).opening()
        given = [next(opening) for _ in range(n_good)]
        with pytest.raises(ObjectDamagedError):
            next(opening)
    assert [bytes(part) for part in given] == parts[:n_good]
    assert all(part.readonly for part in given)


@pytest.mark.parametrize("n_bytes", [0, 1, PAGE_BYTES // 2 - 1, PAGE_BYTES // 2, PAGE_BYTES, 3 * PAGE_BYTES + 5])
def test_pages_are_as_long_as_asked_for_zeroed_and_nobody_elses(n_bytes: int) -> None:
    one, other = pages(n_bytes), pages(n_bytes)
    assert len(one) == n_bytes
    assert not one.readonly
    assert not any(one[:: max(1, n_bytes // 97)])
    one[:] = b"x" * n_bytes
    assert not any(other[:: max(1, n_bytes // 97)])


def test_memory_that_the_system_has_not_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="no .* bytes of memory"):
        pages(1 << 60)

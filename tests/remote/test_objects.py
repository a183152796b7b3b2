"""An object opens under its name and key as it was written, or not at all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.remote.failures import ObjectDamagedError
from agent_memory.remote.names import ObjectNames, RemoteKeys, remote_keys
from agent_memory.remote.objects import read_object, write_object

SEALED, PUBLIC = remote_keys(b"k" * 32, "tenant"), remote_keys(b"", "tenant")
keys_drawn = st.sampled_from([SEALED, PUBLIC])
HEADER = {"host": "a", "ids": [1, 2, 3]}
parts_drawn = st.lists(st.binary(max_size=200), max_size=5)


def opened(name: str, keys: RemoteKeys, body: bytes) -> tuple[dict[str, object], list[bytes]]:
    found = read_object(name, keys, body)
    return dict(found.header), [bytes(part) for part in found.parts()]


@given(keys_drawn, parts_drawn)
def test_an_object_reads_as_it_was_written(keys: RemoteKeys, parts: list[bytes]) -> None:
    assert opened("v1/a", keys, write_object("v1/a", keys, HEADER, parts)) == (HEADER, parts)


@given(keys_drawn, st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=3), st.data())
def test_a_changed_object_never_opens(keys: RemoteKeys, parts: list[bytes], data: st.DataObject) -> None:
    body = write_object("v1/a", keys, HEADER, parts)
    at = data.draw(st.integers(0, len(body) * 8 - 1))
    flipped = bytearray(body)
    flipped[at // 8] ^= 1 << at % 8
    cut = body[: data.draw(st.integers(0, len(body) - 1))]
    more = body + data.draw(st.binary(min_size=1, max_size=40))
    for wrong in (bytes(flipped), cut, more):
        with pytest.raises(ObjectDamagedError):
            opened("v1/a", keys, wrong)


@given(keys_drawn, st.data())
def test_pieces_of_two_objects_are_no_object(keys: RemoteKeys, data: st.DataObject) -> None:
    one, two = (write_object("v1/a", keys, HEADER, [text * 40, b"same"]) for text in (b"x", b"y"))
    begin = data.draw(st.integers(0, len(one) - 1))
    end = data.draw(st.integers(begin + 1, len(one)))
    mixed = one[:begin] + two[begin:end] + one[end:]
    if mixed in (one, two):
        return
    with pytest.raises(ObjectDamagedError):
        opened("v1/a", keys, mixed)


@given(keys_drawn)
def test_parts_do_not_change_places(keys: RemoteKeys) -> None:
    body = write_object("v1/a", keys, HEADER, [b"x" * 40, b"y" * 40])
    end, size = len(body), 40 + 16
    with pytest.raises(ObjectDamagedError):
        opened("v1/a", keys, body[: end - 2 * size] + body[end - size :] + body[end - 2 * size : end - size])


@pytest.mark.parametrize("keys", [SEALED, PUBLIC])
def test_another_name_key_or_tenant_does_not_open(keys: RemoteKeys) -> None:
    body = write_object("v1/a", keys, HEADER, [b"text"])
    others = [SEALED, PUBLIC, remote_keys(b"k" * 32, "other"), remote_keys(b"l" * 32, "tenant"), remote_keys(b"", "x")]
    for name, other in [("v1/b", keys), *(("v1/a", other) for other in others if other != keys)]:
        with pytest.raises(ObjectDamagedError):
            opened(name, other, body)


def test_a_sealed_object_shows_nothing_and_is_never_the_same_twice() -> None:
    text = b"what nobody else may read"
    one, two = (write_object("v1/a", SEALED, {"secret": "name"}, [text]) for _ in range(2))
    assert text not in one
    assert b"secret" not in one
    assert one[8:] != two[8:]
    assert one[40:] != two[40:]


@given(st.integers(0, 2**32 - 1), keys_drawn)
def test_claimed_sizes_are_believed_only_where_the_bytes_are(claimed: int, keys: RemoteKeys) -> None:
    body = write_object("v1/a", keys, HEADER, [b"text"])
    told = int.from_bytes(body[40:44], "little")
    if claimed != told:
        with pytest.raises(ObjectDamagedError):
            opened("v1/a", keys, body[:40] + claimed.to_bytes(4, "little") + body[44:])


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b'{"of": 1, "parts": []}',
        b'{"of": {}}',
        b'{"of": {}, "parts": [-1]}',
        b'{"of": {}, "parts": [true]}',
        b'{"of": {}, "parts": [1e3]}',
        b'{"of": {}, "parts": [' + b"9" * 5000 + b"]}",
        b'{"of": {}, "parts": [99999999999999999999]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
@pytest.mark.parametrize("keys", [SEALED, PUBLIC])
def test_a_key_holders_nonsense_is_refused(text: bytes, keys: RemoteKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_memory.remote.objects.json.dumps", lambda *_, **__: text.decode("latin-1"))
    body = write_object("v1/a", keys, HEADER)
    monkeypatch.undo()
    with pytest.raises(ObjectDamagedError):
        opened("v1/a", keys, body)


def test_headers_and_parts_have_their_limits() -> None:
    with pytest.raises(ValueError, match="header of"):
        write_object("v1/a", SEALED, {"a": "x" * (5 << 20)})
    with pytest.raises(ValueError):
        write_object("v1/a", SEALED, {"a": float("nan")})
    assert json.loads(json.dumps(read_object("v1/a", SEALED, write_object("v1/a", SEALED, {})).header)) == {}


def test_names_tell_nothing_and_differ_by_all_that_matters() -> None:
    names = [
        ObjectNames(keys).chunk(chunk, kind, codec, rank, world)
        for keys in (SEALED, PUBLIC, remote_keys(b"k" * 32, "other"))
        for chunk in (b"1" * 32, b"2" * 32)
        for kind in ("rows", "state")
        for codec in ("exact", "q8")
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    assert len(set(names)) == len(names) == 72
    log = ObjectNames(SEALED).log("alice", 3)
    assert "alice" not in log
    assert log.endswith("/00000003")
    assert log != ObjectNames(SEALED).log("bob", 3)
    assert (b"1" * 32).hex() not in "".join(names)


def test_no_key_is_said_by_an_empty_one_and_never_by_a_function() -> None:
    from agent_memory.errors import ConfigError

    assert remote_keys(b"").is_public
    for wrong in (lambda: b"", b"short", "", None):
        with pytest.raises(ConfigError, match="remote_key must"):
            remote_keys(wrong)  # type: ignore[arg-type]
    assert "k" * 5 not in repr(SEALED)

"""What KV of several authors may be called: docs/exactness.md, as code."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from agent_memory import EchoRunner, Memory
from agent_memory.exchange.chunks import Asked, Chunk, promises, read_chunk, tag_of
from agent_memory.prefix.chunks import chunk_chain, root_id
from agent_memory.remote.names import ObjectNames, remote_keys
from agent_memory.remote.objects import read_object, write_object
from agent_memory.store.save import Save
from agent_memory.types import EXACTNESS
from tests.parts.hosts import CHUNK, KEY, SYSTEM, config, exchange, published

BODIES = [np.full((1, 4, 2), value, np.uint8) for value in range(3)]  #: the bits that authors may have computed


def _chunk(at: int, parent: str, body: np.ndarray[Any, Any], exactness: Any = "exact") -> Chunk:
    return Chunk(
        start=4 * at, ids=np.zeros(4, np.uint32), made=1, exactness=exactness, codec="exact", host="here",
        parent_tag=parent, tag=tag_of(parent, [body]), tensors=[body],
    )  # fmt: skip


@given(
    kept=st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2), min_size=6, max_size=6)), max_size=6),
    own=st.lists(st.integers(0, 2), max_size=2),
    promised=st.lists(st.sampled_from(EXACTNESS[:3]), min_size=6, max_size=6),
)
def test_only_what_one_run_could_have_left_is_called_moved(kept: Any, own: Any, promised: Any) -> None:
    """Of chunk n the bucket has bits ``kept[n][0]``, computed on the bits ``kept[n][1]`` of the chunks before."""
    chunks, run = [], [*own]  # the bits that the fetching host would restore, one chunk after another
    for number, (body, on) in enumerate(kept, len(own)):
        parent = ""
        for value in on[:number]:
            parent = tag_of(parent, [BODIES[value]])
        chunks.append(_chunk(number, parent, BODIES[body], promised[number - len(own)]))
        run.append(body)
    before = ""
    for value in own:
        before = tag_of(before, [BODIES[value]])
    said = promises(chunks, before)
    for number in range(len(chunks)):
        is_one_run = all(on[: len(own) + n] == run[: len(own) + n] for n, (_, on) in enumerate(kept[: number + 1]))
        weakest = max(("moved", *promised[: number + 1]), key=EXACTNESS.index)
        assert said[number] == (weakest if is_one_run else "recomputed")


def test_nothing_is_known_of_bits_that_cannot_be_read() -> None:
    assert promises([_chunk(0, "", BODIES[0])], None) == ["recomputed"]


def test_a_chunk_that_another_host_computed_on_other_bits_breaks_the_run(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        a.prefill(SYSTEM)
        n_chunks = published(a)
        terms = exchange(a)._terms
        assert terms is not None
        n_tokens = a.count_tokens(SYSTEM)
        pieces = a._store.parts.catalog.model.index.pieces  # type: ignore[union-attr]
        ids = np.concatenate(
            [a._store.parts.catalog.model.index.ids(one) for one in pieces.values() if one.n_tokens == CHUNK]
        )  # type: ignore[union-attr]
    keys = remote_keys(KEY)
    chain = chunk_chain(root_id(terms.identity), ids, CHUNK)
    path = bucket / ObjectNames(keys).chunk(chain[2], "rows", "exact")
    name = str(path.relative_to(bucket))
    asked = Asked(start=2 * CHUNK, ids=ids[2 * CHUNK : 3 * CHUNK], codec="exact")
    one = read_chunk(read_object(name, keys, path.read_bytes()), asked, terms.layout)
    other = evolve(one, parent_tag="0" * 32, tag=tag_of("0" * 32, one.tensors))  # the same KV, in another host's run
    path.write_bytes(write_object(name, keys, other.header(), other.parts()))
    for n_shared, exactness in ((2, "moved"), (n_chunks, "recomputed")):
        settings = config(bucket, remote_write=False)
        with Memory(EchoRunner(), tmp_path / f"b{n_shared}", config=settings) as b:
            text = SYSTEM if n_shared > 2 else a_part(SYSTEM, n_shared, n_tokens)
            usage = b.generate(text, max_tokens=4).usage
            assert usage.cached_tokens >= n_shared * CHUNK - CHUNK
            assert (usage.tier, usage.exactness) == ("remote", exactness)
            b.flush()
            assert b.verify().damaged == ()
        with Memory(EchoRunner(), tmp_path / f"b{n_shared}", config=settings) as b:
            usage = b.generate(text, max_tokens=4).usage
            assert (usage.tier, usage.exactness) == ("cold", exactness)  # it is stored as it came


def a_part(text: str, n_chunks: int, n_tokens: int) -> str:
    """Return the start of a text that has somewhat more than so many chunks."""
    return text[: int(len(text) * (n_chunks + 0.8) * CHUNK / n_tokens)]


def test_what_follows_chunks_that_are_not_adopted_yet_is_published_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, entered, release = tmp_path / "bucket", threading.Event(), threading.Event()
    long = SYSTEM + "Be kind, and brief, and clear. " * 12

    class Late(Save):
        def finish(self) -> None:
            entered.set()
            release.wait(60)
            super().finish()

    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        a.prefill(SYSTEM)
        published(a)
    with Memory(EchoRunner(), tmp_path / "b", config=config(bucket)) as b:
        monkeypatch.setattr("agent_memory.exchange.adopting.Save", Late)
        offered, catalog, publisher = threading.Event(), exchange(b)._catalog(), exchange(b)._publisher
        assert catalog is not None

        def stored(head: bytes) -> None:
            publisher.offer(head)
            offered.set()

        catalog.disk.on_stored = stored
        try:
            assert b.prefill(long).tier == "remote"
            assert entered.wait(60)
            assert offered.wait(60), "its own chunks are committed"
            assert not publisher.wait(0.5)
            assert b.stats().remote["published_chunks"] == 0
        finally:
            release.set()
        exchange(b)._fetcher.join()  # type: ignore[union-attr]
        assert published(b) > 2


def test_a_host_that_began_a_chain_gets_it_back_no_better_than_moved(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    long = SYSTEM + "Be kind, and brief, and clear. " * 12
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        assert a.generate(SYSTEM, max_tokens=4).usage.exactness == "exact"
        a.prefill(SYSTEM)
        published(a)
    with Memory(EchoRunner(), tmp_path / "b", config=config(bucket)) as b:
        assert b.prefill(long).exactness == "moved"
        assert published(b) > 2
    with Memory(EchoRunner(), tmp_path / "a", config=config(bucket)) as a:
        usage = a.generate(long, max_tokens=4).usage
        assert usage.tier_tokens.keys() == {"cold", "remote"}
        assert usage.exactness == "moved"

"""Search by meaning: with a deterministic embedder, exact and by bits, one embedder at a time."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import frozen

from agent_memory import ConfigError, ContextMemory, Embedder
from agent_memory.recall import vectors
from tests.parts.postgres import PostgresServer
from tests.parts.stores import Stores

SYNONYMS = {"automobile": "car", "vessel": "boat", "physician": "doctor"}


@frozen
class HashEmbedder:
    """Each word has a direction of its own; synonyms share theirs. A stand-in for a model of meaning."""

    dim: int = 512
    fingerprint: str = "hash-512"

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return the sum of the words' directions."""
        out = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in text.lower().replace(".", "").split():
                seed = zlib.crc32(SYNONYMS.get(word, word).encode())
                row += np.random.default_rng(seed).standard_normal(self.dim)
        return out


def filled(path: str | Path = ":memory:", **how: Any) -> ContextMemory:
    memory = ContextMemory(path, embedder=HashEmbedder(**how))
    for n in range(50):
        memory.remember(f"Report {n} about weather and tides of day {n}.", kind="note")
    memory.remember("The car is parked behind the mill.", kind="note")
    return memory


def test_a_hash_embedder_is_an_embedder() -> None:
    assert isinstance(HashEmbedder(), Embedder)


def test_meaning_finds_what_words_do_not(store: Stores) -> None:
    with filled(store()) as memory:
        assert memory.recall("automobile") == []
        done = memory.maintain(10_000)
        assert (done.n_embedded, done.is_done) == (51, True)
        [hit, *_] = memory.recall("automobile")
        assert hit.item.text == "The car is parked behind the mill."
        assert hit.parts["relevance"] == 0.0
        assert hit.parts["similarity"] > 0
        assert sum(hit.parts.values()) == pytest.approx(hit.score, abs=1e-9)
        assert memory.maintain().n_embedded == 0


def test_what_was_remembered_since_is_found_by_words_before_it_has_a_vector(store: Stores) -> None:
    with filled(store()) as memory:
        memory.maintain(10_000)
        memory.remember("The vessel sails at dawn.", kind="note")
        assert memory.recall("vessel dawn")[0].item.text == "The vessel sails at dawn."
        memory.maintain(10_000)
        assert memory.recall("boat")[0].item.text == "The vessel sails at dawn."


def test_idle_work_stops_when_its_time_is_over_and_goes_on_later(store: Stores) -> None:
    with filled(store()) as memory:
        first = memory.maintain(0)
        assert 0 < first.n_embedded < 51
        assert not first.is_done
        while not memory.maintain(0).is_done:
            pass
        assert memory.stats().n_vectors == 51


def test_vectors_of_two_embedders_are_never_mixed(store: Stores) -> None:
    path = store("recall.sqlite")
    with filled(path) as memory:
        memory.maintain(10_000)
    with ContextMemory(path, embedder=HashEmbedder(dim=32, fingerprint="hash-32")) as memory:
        assert memory.recall("automobile") == []  # no vector of this embedder yet
        assert memory.recall("mill")  # words work meanwhile
        memory.maintain(10_000)
        assert memory.recall("automobile")
        assert memory.stats().n_vectors == 51  # those of the other one are gone
        assert memory.check().ok


def test_forgotten_items_leave_the_vectors_too(store: Stores) -> None:
    with filled(store("recall.sqlite")) as memory:
        memory.maintain(10_000)
        assert memory.recall("automobile")
        vector = (
            vectors.unit(HashEmbedder(), ["The car is parked behind the mill."])[0, :32].astype(np.float16).tobytes()
        )
        assert vector in store.bytes()
        memory.forget("parked")
        assert all("car" not in hit.item.text for hit in memory.recall("automobile"))
        assert vector not in store.bytes()


def test_bits_with_rescoring_find_what_exact_search_finds(store: Stores) -> None:
    with filled(store()) as memory:
        memory.maintain(10_000)
        exact = vectors.VectorView(memory._scope, HashEmbedder())
        bits = vectors.VectorView(memory._scope, HashEmbedder(), exact_items=10)
        with memory._database.read() as db:
            for query in ("automobile", "weather of day 7", "tides", "mill report"):
                expected, got = exact.nearest(db, exact.query(query), 5), bits.nearest(db, bits.query(query), 5)
                assert list(got) == list(expected)
                assert list(got.values()) == pytest.approx(list(expected.values()), abs=1e-3)


@pytest.mark.contract
def test_a_server_with_pgvector_searches_itself_and_finds_the_same(postgres: PostgresServer) -> None:
    if not postgres.admin("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"):
        pytest.skip("the server has no pgvector: apt-get install -y postgresql-<version>-pgvector")
    database = postgres.new_database()
    with filled(postgres.url(database)) as memory:
        memory.maintain(10_000)
        with memory._database.read() as db:
            assert not db.searches_vectors
    postgres.admin("CREATE EXTENSION vector", database=database)
    with ContextMemory(postgres.url(database), embedder=HashEmbedder()) as memory:
        by_bits = vectors.VectorView(memory._scope, HashEmbedder(), exact_items=10)
        query = by_bits.query("automobile")
        with memory._database.read() as db:
            assert db.searches_vectors
            assert by_bits._by_server(db, query, 9) is None, "those from before have no vector of the server's"
            before = by_bits.nearest(db, query, 5)
        with memory._database.write() as db:
            db.execute("DELETE FROM vectors")
        memory.maintain(10_000)
        with memory._database.read() as db:
            assert len(by_bits._by_server(db, query, 9) or []) == 9
            found = by_bits.nearest(db, query, 5)
        assert list(found) == list(before)
        assert list(found.values()) == pytest.approx(list(before.values()), abs=1e-3)
        assert memory.recall("automobile")[0].item.text == "The car is parked behind the mill."
        assert memory.forget("parked") == 1
        assert memory.check().ok


def test_an_embedder_that_breaks_its_word_is_refused(store: Stores) -> None:
    class Liar(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
            return np.zeros((len(texts), 3), np.float32)

    class Broken(HashEmbedder):
        def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
            return np.full((len(texts), self.dim), np.nan, np.float32)

    for wrong, match in ((Liar(), "says dim 512"), (Broken(), "not finite")):
        with ContextMemory(store(), embedder=wrong) as memory:
            memory.remember("The ferry is red.")
            with pytest.raises(ConfigError, match=match):
                memory.maintain()
            assert memory.stats().n_texts == 1

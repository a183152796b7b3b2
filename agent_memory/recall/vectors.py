"""Search by meaning: the vectors of a workspace's passages, kept in the file, compared in memory.

- Stored as float16 beside the fingerprint of the embedder; vectors of another fingerprint are never read.
- Up to ``EXACT_ITEMS`` all are compared exactly, and short passages are read with their neighbours, as their words are:
  a cosine is a mean over both, by the passage's length. Above, one bit a number is kept in memory (32 times less);
  the nearest by Hamming distance are read from the file and compared exactly. A store that can search vectors itself
  (PostgreSQL with pgvector) finds those then.
- Compared in blocks of ``_BLOCK`` rows: one large product would start a thread a core.
- What another process or a deletion changed is seen at the next search: by number and last sequence number.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from agent_memory.errors import ConfigError, repr_of
from agent_memory.recall.context_tables import BLOCK
from agent_memory.recall.protocols import Embedder
from agent_memory.recall.ranking import neighbours_share
from agent_memory.recall.rows import span_text
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows

EXACT_ITEMS = 100_000
_RESCORED = 400
_BLOCK = 4_096
_AROUND = (0.5, 0.25)  #: what a neighbour's cosine counts, one and two passages away
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint16)

Floats = NDArray[np.float32]


@define(eq=False)
class VectorView:
    """The vectors of one workspace and fingerprint in memory. Any thread; searches wait for one another."""

    scope: Scope
    embedder: Embedder
    exact_items: int = EXACT_ITEMS
    _ids: NDArray[np.int64] = field(factory=lambda: np.zeros(0, np.int64), init=False)
    _rows: NDArray[Any] = field(default=None, init=False)
    _shares: NDArray[np.float32] = field(default=None, init=False)  #: of the neighbours in a passage's cosine
    _last: int = field(default=0, init=False)
    _is_exact: bool = field(default=True, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def query(self, text: str) -> Floats:
        """Return the vector of a question. Before a transaction: an embedder may wait for others."""
        vector: Floats = unit(self.embedder, [text])[0]
        return vector

    def nearest(self, db: Rows, query: Floats, n: int) -> dict[int, float]:
        """Return the ``n`` items nearest to a ``query`` with their cosines. Inside a read transaction."""
        if (near := self._by_server(db, query, max(n, _RESCORED))) is not None:
            return self._rescored(db, near, query, n)
        with self._lock:
            self._refresh(db)
            if not len(self._ids):
                return {}
            if self._is_exact:
                cosines = self._with_neighbours(_products(self._rows, query))
                order = _top(cosines, n)
                return {int(self._ids[i]): float(cosines[i]) for i in order}
            distances = _distances(self._rows, np.packbits(query > 0))
            near = self._ids[_top(-distances.astype(np.float32), max(n, _RESCORED))].tolist()
        return self._rescored(db, near, query, n)

    def _by_server(self, db: Rows, query: Floats, n: int) -> list[int] | None:
        """The items that the store finds nearest, where there are too many to compare here and it can."""
        if not db.searches_vectors:
            return None
        sql = "SELECT count(*) FROM vectors WHERE workspace = ? AND fingerprint = ?"
        (n_items,) = db.execute(sql, (self.scope.workspace, self.embedder.fingerprint)).fetchone()
        if n_items <= self.exact_items:
            return None
        return db.nearest(self.scope.workspace, self.embedder.fingerprint, query.tolist(), n)

    def _rescored(self, db: Rows, near: Sequence[int], query: Floats, n: int) -> dict[int, float]:
        rows = _read(db, self.scope, self.embedder.fingerprint, near)
        if not rows:
            return {}
        ids = np.fromiter(rows, np.int64, len(rows))
        cosines = _products(np.stack(list(rows.values())), query)
        return {int(ids[i]): float(cosines[i]) for i in _top(cosines, n)}

    def _refresh(self, db: Rows) -> None:
        key = (self.scope.workspace, self.embedder.fingerprint)
        sql = "SELECT count(*), coalesce(max(seq), 0) FROM vectors WHERE workspace = ? AND fingerprint = ?"
        n, last = db.execute(sql, key).fetchone()
        if n == len(self._ids) and last == self._last:
            return
        self._is_exact = n <= self.exact_items
        sql = (
            "SELECT v.item, v.value, i.n_words FROM vectors v JOIN items i ON i.item = v.item "
            "WHERE v.workspace = ? AND v.fingerprint = ? ORDER BY v.item"
        )
        width = self.embedder.dim if self._is_exact else (self.embedder.dim + 7) // 8
        self._rows = np.zeros((n, width), np.float32 if self._is_exact else np.uint8)
        self._ids = np.zeros(n, np.int64)
        self._shares = np.zeros(n, np.float32)
        for place, (item, value, n_words) in enumerate(db.execute(sql, key)):
            row = np.frombuffer(value, np.float16)
            self._ids[place] = item
            self._shares[place] = neighbours_share(n_words)
            self._rows[place] = row if self._is_exact else np.packbits(row > 0)
        self._last = last

    def _with_neighbours(self, cosines: Floats) -> Floats:
        ids = self._ids
        total, weights = cosines.copy(), np.ones(len(ids), np.float32)
        for distance, weight in enumerate(_AROUND, start=1):
            for step in (-distance, distance):
                places = np.minimum(np.searchsorted(ids, ids + step), len(ids) - 1)
                is_near = (ids[places] == ids + step) & ((ids + step) // BLOCK == ids // BLOCK)
                total += weight * np.where(is_near, cosines[places], 0.0)
                weights += weight * is_near
        mixed: Floats = (1 - self._shares) * cosines + self._shares * total / weights
        return mixed


def unit(embedder: Embedder, texts: Sequence[str]) -> Floats:
    """Return the embedder's vectors, of length 1. Raises ConfigError where their shape is not what it says."""
    vectors = np.asarray(embedder.embed(list(texts)), np.float32)
    if vectors.shape != (len(texts), embedder.dim):
        raise ConfigError(
            f"the embedder {repr_of(embedder.fingerprint)} says dim {embedder.dim}, "
            f"and gave an array of {vectors.shape} for {len(texts)} texts"
        )
    if not np.isfinite(vectors).all():
        raise ConfigError(f"the embedder {repr_of(embedder.fingerprint)} gave numbers that are not finite")
    lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found: Floats = vectors / lengths
    return found


def pending(db: Rows, scope: Scope, embedder: Embedder, n: int) -> list[tuple[int, str]]:
    """Return up to ``n`` passages, newest first, that have no vector of this embedder, with their texts."""
    from agent_memory.recall.rows import rows_where

    sql = "SELECT count(*) FROM vectors WHERE workspace = ? AND fingerprint = ?"
    (n_known,) = db.execute(sql, (scope.workspace, embedder.fingerprint)).fetchone()
    sql = "SELECT n_passages FROM workspaces WHERE workspace = ?"
    if (n_known,) == db.execute(sql, (scope.workspace,)).fetchone():
        return []  # told without a look at every passage
    condition = (
        "i.is_passage AND NOT EXISTS (SELECT 1 FROM vectors v WHERE v.item = i.item AND v.fingerprint = ?) "
        "ORDER BY i.item DESC LIMIT ?"
    )
    rows = list(rows_where(db, scope, condition, embedder.fingerprint, n))
    return [(row.item, f"{row.speaker}: {span_text(db, row)}" if row.speaker else span_text(db, row)) for row in rows]


def store(db: Rows, scope: Scope, embedder: Embedder, items: Sequence[int], vectors: Floats) -> int:
    """Keep the vectors of those ``items`` that are still there; return how many. Inside a write transaction."""
    n = 0
    for item, vector in zip(items, vectors, strict=True):
        sql = (
            "INSERT INTO vectors (item, fingerprint, workspace, seq, value) SELECT item, ?, workspace, ?, ? FROM items "
            "WHERE item = ? AND workspace = ? ON CONFLICT DO NOTHING"
        )
        value = vector.astype(np.float16).tobytes()
        seq = db.next_number("vector")
        if db.execute(sql, (embedder.fingerprint, seq, value, item, scope.workspace)).rowcount:
            db.keep_near(embedder.fingerprint, item, vector.tolist())
            n += 1
    return n


def drop_others(db: Rows, scope: Scope, fingerprint: str) -> int:
    """Delete the vectors of every other embedder; return how many. Inside a write transaction."""
    sql = "DELETE FROM vectors WHERE workspace = ? AND fingerprint <> ?"
    return db.execute(sql, (scope.workspace, fingerprint)).rowcount


def _products(rows: NDArray[Any], query: Floats) -> Floats:
    out = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _BLOCK):
        out[start : start + _BLOCK] = rows[start : start + _BLOCK].astype(np.float32, copy=False) @ query
    return out


def _distances(bits: NDArray[Any], query: NDArray[Any]) -> NDArray[Any]:
    out = np.empty(len(bits), np.uint16)
    for start in range(0, len(bits), _BLOCK):
        out[start : start + _BLOCK] = _ONES[bits[start : start + _BLOCK] ^ query].sum(axis=1, dtype=np.uint16)
    return out


def _top(values: Floats, n: int) -> NDArray[np.int64]:
    """The places of the ``n`` largest, largest first; of equal ones the first."""
    kept = np.sort(np.argpartition(-values, n - 1)[:n]) if len(values) > n else np.arange(len(values))
    return kept[np.argsort(-values[kept], kind="stable")].astype(np.int64)


def _read(db: Rows, scope: Scope, fingerprint: str, items: Sequence[int]) -> dict[int, NDArray[Any]]:
    marks = ",".join("?" * len(items))
    sql = f"SELECT item, value FROM vectors WHERE workspace = ? AND fingerprint = ? AND item IN ({marks}) ORDER BY item"
    rows = db.execute(sql, (scope.workspace, fingerprint, *items))
    return {int(item): np.frombuffer(value, np.float16).astype(np.float32) for item, value in rows}

"""The full-text index of a recall file: FTS5, contentless; it is given a row's words again to take them out."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from agent_memory.recall.around import Around, Ids, Places
from agent_memory.recall.storage import Indexed

_STRETCH_ITEMS = 100  #: so many items of a word are read in the time that one look-up of a stretch takes


class SQLiteWords:
    """``storage.Words`` over FTS5. Of one connection, inside its transaction."""

    is_per_workspace = False

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def version(self) -> int | None:
        """Return which version of ``words`` made the index."""
        row = self._db.execute("SELECT value FROM counters WHERE name = 'words'").fetchone()
        return None if row is None else int(row[0])

    def begin_anew(self, version: int) -> None:
        """Empty the index, and note the version that fills it next."""
        self._db.execute("INSERT INTO words (words) VALUES ('delete-all')")
        sql = (
            "INSERT INTO counters (name, value) VALUES ('words', ?) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        )
        self._db.execute(sql, (version,))

    def add(self, rows: Iterable[Indexed]) -> None:
        """Index items."""
        given = ((item, body) for item, _, body in rows)
        self._db.executemany("INSERT INTO words (rowid, body) VALUES (?, ?)", given)

    def remove(self, rows: Iterable[Indexed]) -> None:
        """Take items out: the index keeps no text, so it is told what it was given."""
        given = ((item, body) for item, _, body in rows)
        self._db.executemany("INSERT INTO words (words, rowid, body) VALUES ('delete', ?, ?)", given)

    def places(self, words: Sequence[str], limit: int, counted: int) -> list[Places]:
        """Return where each word stands."""
        return [self._places(word, limit, counted) for word in words]

    def newest_with(self, sets: Sequence[Sequence[str]], limit: int) -> list[list[int]]:
        """Return for each set of words the newest items that have all of them."""
        sql = "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT ?"
        queries = [" AND ".join(f'"{word}"' for word in words) for words in sets]
        return [[item for (item,) in self._db.execute(sql, (query, limit))] for query in queries]

    def among(self, words: Mapping[str, int], around: Around) -> list[Ids]:
        """Return the items in the stretches that have each word. All of them, where that is faster."""
        return [self._among(f'"{word}"', around, n_items) for word, n_items in words.items()]

    def sizes(self) -> dict[int, int]:
        """Return how many words each item has in the index."""
        return {item: _varint(size) for item, size in self._db.execute("SELECT id, sz FROM words_docsize")}

    def size_of(self, body: str) -> int:
        """Return how many words the index has of an item."""
        return len(body.split())

    def _places(self, word: str, limit: int, counted: int) -> Places:
        # As one text: a row each takes twice as long.
        sql = "SELECT group_concat(doc) FROM (SELECT doc FROM words_at WHERE term = ? LIMIT ?)"
        places = _listed(self._db.execute(sql, (word, limit + 1)).fetchone()[0])
        if len(places) > limit:
            sql = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
            (n_items,) = self._db.execute(sql, (f'"{word}"', counted)).fetchone()
            return Places(n_items=n_items, is_frequent=True)
        ids, counts = np.unique(places, return_counts=True)
        return Places(ids, counts.astype(np.float64), len(ids))

    def _among(self, query: str, around: Around, n_items: int) -> Ids:
        if n_items <= _STRETCH_ITEMS * len(around.starts):
            sql = "SELECT group_concat(rowid) FROM (SELECT rowid FROM words WHERE words MATCH ?)"
            return _listed(self._db.execute(sql, (query,)).fetchone()[0])
        sql = "SELECT rowid FROM words WHERE words MATCH ? AND rowid BETWEEN ? AND ?"
        stretches = zip(around.starts.tolist(), (around.stops - 1).tolist(), strict=True)
        found = [item for first, last in stretches for (item,) in self._db.execute(sql, (query, first, last))]
        return np.array(found, np.int64)


def _listed(joined: str | None) -> Ids:
    found: Ids = np.fromstring(joined, np.int64, sep=",") if joined else np.zeros(0, np.int64)
    return found


def _varint(data: bytes) -> int:
    value = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return value

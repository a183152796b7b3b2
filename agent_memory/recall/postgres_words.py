"""The full-text index on PostgreSQL: a ``tsvector`` an item, found by ``tsquery``, its counts read off ``ts_rank``.

PostgreSQL parses nothing here: the lexemes are those that ``recall.words`` prepared, so both stores have the same
words. Of one word, ``ts_rank`` with equal weights is the sum of 1/j^2 over its positions, j from 1 on, by pi^2/6: it
says how often the word stands there without the positions being sent. Source: PostgreSQL's ``tsrank.c``,
``calc_rank_or``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from agent_memory.recall.around import Around, Ids, Places
from agent_memory.recall.storage import Indexed, Rows

_MOST_POSITIONS = 255  #: that a tsvector keeps of one lexeme
_LAST_POSITION = 16_383
_SUMS = np.cumsum(1 / np.arange(1, _MOST_POSITIONS + 2) ** 2) / 1.64493406685
_BETWEEN = (_SUMS[:-1] + _SUMS[1:]) / 2  #: below the n-th of them, a word stands n + 1 times


class PostgresWords:
    """``storage.Words`` over one transaction, of the workspace that it named."""

    is_per_workspace = True

    def __init__(self, db: Rows, workspace: int | None) -> None:
        self._db, self._workspace = db, workspace

    def version(self) -> int | None:
        """Return which version of ``words`` made the workspace's index."""
        sql = "SELECT words_version FROM workspaces WHERE workspace = ?"
        row = self._db.execute(sql, (self._workspace,)).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def begin_anew(self, version: int) -> None:
        """Empty the workspace's index, and note the version that fills it next."""
        self._db.execute("DELETE FROM words WHERE workspace = ?", (self._workspace,))
        sql = "UPDATE workspaces SET words_version = ? WHERE workspace = ?"
        self._db.execute(sql, (version, self._workspace))

    def add(self, rows: Iterable[Indexed]) -> None:
        """Index items."""
        given = [(item, workspace, _vector(body)) for item, workspace, body in rows]
        self._db.executemany("INSERT INTO words (item, workspace, body) VALUES (?, ?, ?::tsvector)", given)

    def remove(self, rows: Iterable[Indexed]) -> None:
        """Take items out."""
        gone = [(item, workspace) for item, workspace, _ in rows]
        self._db.executemany("DELETE FROM words WHERE item = ? AND workspace = ?", gone)

    def places(self, words: Sequence[str], limit: int, counted: int) -> list[Places]:
        """Return where each word stands. One round trip."""
        if not words:
            return []
        sql = "SELECT items, ranks, n FROM word_places(?, ?, ?)"
        rows = self._db.execute(sql, (list(words), limit, counted))
        return [_places(items, ranks, n, limit) for items, ranks, n in rows]

    def newest_with(self, sets: Sequence[Sequence[str]], limit: int) -> list[list[int]]:
        """Return for each set of words the newest items that have all of them. One round trip."""
        if not sets:
            return []
        queries = [" & ".join(f"'{word}'" for word in words) for words in sets]
        rows = self._db.execute("SELECT items FROM newest_with(?, ?)", (queries, limit))
        return [items or [] for (items,) in rows]

    def among(self, words: Mapping[str, int], around: Around) -> list[Ids]:
        """Return the items in the stretches that have each word. One round trip."""
        if not words:
            return []
        stretches = zip(around.starts.tolist(), around.stops.tolist(), strict=True)
        wanted = [item for start, stop in stretches for item in range(start, stop)]
        rows = self._db.execute("SELECT items FROM words_among(?, ?)", (list(words), wanted))
        return [np.array(items or [], np.int64) for (items,) in rows]

    def sizes(self) -> dict[int, int]:
        """Return how many lexemes each item has."""
        sql = "SELECT item, length(body) FROM words WHERE workspace = ?"
        return dict(self._db.execute(sql, (self._workspace,)).fetchall())

    def size_of(self, body: str) -> int:
        """Return how many lexemes the index has of an item."""
        return len(set(body.split()))


def _vector(body: str) -> str:
    """A tsvector as PostgreSQL reads it: each word with its positions. Words have letters and digits alone."""
    positions: dict[str, list[int]] = {}
    for position, word in enumerate(body.split(), start=1):
        positions.setdefault(word, []).append(min(position, _LAST_POSITION))
    return " ".join(f"'{word}':{','.join(map(str, at[:_MOST_POSITIONS]))}" for word, at in positions.items())


def _places(items: list[int] | None, ranks: list[float] | None, n: int, limit: int) -> Places:
    if items is None or ranks is None:
        return Places(n_items=n, is_frequent=n > 0)
    counts = (np.searchsorted(_BETWEEN, np.array(ranks)) + 1).astype(np.float64)
    if counts.sum() > limit:  # in few items, but often: as many places as make a word frequent
        return Places(n_items=n, is_frequent=True)
    return Places(np.array(items, np.int64), counts, n)

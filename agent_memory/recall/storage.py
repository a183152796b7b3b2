"""What the recall room asks of a store: transactions that run its SQL, a full-text index of words, upkeep.

Two stores keep it: a SQLite file (``database.py``, the default) and a PostgreSQL database (``postgres.py``). The SQL of
the room is what both read, with ``?`` for values; what they say differently is a method here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from agent_memory.recall.around import Around, Ids, Places

#: An item, its workspace, and its indexed words with blanks between them.
Indexed = tuple[int, int, str]


class Answer(Protocol):
    """Rows that a statement gave, as tuples."""

    @property
    def rowcount(self) -> int:
        """Rows that the statement changed."""

    def fetchone(self) -> Any:
        """Return the next row; None where there is none."""

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""

    def __iter__(self) -> Iterator[Any]: ...


class Words(Protocol):
    """The full-text index: which items have which indexed words (``words.indexed``). Keeps no text."""

    #: True if the index of one workspace can be made anew apart from the others'.
    is_per_workspace: bool

    def version(self) -> int | None:
        """Return which ``WORDS_VERSION`` made the index; None for none yet."""

    def begin_anew(self, version: int) -> None:
        """Empty the index, and note the version that fills it next."""

    def add(self, rows: Iterable[Indexed]) -> None:
        """Index items."""

    def remove(self, rows: Iterable[Indexed]) -> None:
        """Take items out; ``rows`` as they were added."""

    def places(self, words: Sequence[str], limit: int, counted: int) -> list[Places]:
        """Return where each word stands. One that stands more than ``limit`` times is counted, up to ``counted``."""

    def newest_with(self, sets: Sequence[Sequence[str]], limit: int) -> list[list[int]]:
        """Return for each set of words the ``limit`` newest items that have all of them."""

    def among(self, words: Mapping[str, int], around: Around) -> list[Ids]:
        """Return for each word (with how many items have it) the items in the stretches of ``around`` that have it.

        Items beside the stretches may come too.
        """

    def sizes(self) -> dict[int, int]:
        """Return how many words each item has in the index, as ``size_of`` counts."""

    def size_of(self, body: str) -> int:
        """Return how many words the index has of an item that was added as ``body``."""


class Rows(Protocol):
    """An open transaction."""

    @property
    def words(self) -> Words:
        """The full-text index."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Answer:
        """Run one statement, ``?`` for each value."""

    def executemany(self, sql: str, values: Iterable[Sequence[Any]], /) -> Any:
        """Run one statement for each tuple of values."""

    def next_number(self, name: str) -> int:
        """Return the next number of a counter of the store, from 1 on, never twice. Inside a write transaction."""

    @property
    def searches_vectors(self) -> bool:
        """True if the store can search vectors itself."""

    def keep_near(self, fingerprint: str, item: int, vector: Sequence[float]) -> None:
        """Give a stored vector to the server's own search, where it has one. Inside a write transaction."""

    def nearest(self, workspace: int, fingerprint: str, query: Sequence[float], n: int) -> list[int] | None:
        """Return the ``n`` items whose vectors the store itself finds nearest; None where it has no such search."""

    def workspace(self, salt: str, name: str, now: float) -> int:
        """Return the number of a workspace, made where it is new. Inside a write transaction.

        The rest of the transaction is that workspace's.
        """


class Storage(Protocol):
    """A store, for every thread of a process. Raises StoreError and its kinds; ClosedError after ``close``."""

    @property
    def name(self) -> str:
        """Where it is, for people: without a password."""

    @property
    def is_read_only(self) -> bool:
        """True if it was opened to be read only."""

    def ensure_writable(self) -> None:
        """Raise ReadOnlyError if it was opened to be read only."""

    def of(self, workspace: int | None) -> Storage:
        """Return this store for one workspace, or for opening others (None): its transactions see no other's rows."""

    def write(self, *, fsync: bool = True) -> AbstractContextManager[Rows]:
        """Open a write transaction: writers of a workspace wait for one another. Nested calls join the outer one.

        Without ``fsync`` what is committed survives the death of this process, and not yet the machine's.
        """

    def read(self) -> AbstractContextManager[Rows]:
        """Open a read transaction: one snapshot, whatever is written meanwhile. Waits for no writer."""

    def merge_words(self) -> int | None:
        """Do a short step of the index's own upkeep; return pages written. None: nothing is due."""

    def owe_scrub(self, db: Rows) -> None:
        """Note that rows are deleted in this transaction whose bytes ``scrub`` must remove, whoever calls it."""

    def scrub(self) -> None:
        """Remove the bytes that deleted rows left."""

    def finish_scrub(self) -> None:
        """Scrub where a deletion before was not followed by it."""

    def check(self) -> tuple[str, ...]:
        """Return what the store's own checks find wrong, one line each."""

    @property
    def nbytes(self) -> int:
        """Bytes of the store, of all workspaces."""

    def close(self) -> None:
        """Close every connection; idempotent."""

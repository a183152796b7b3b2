"""``ContextMemory``: what is worth knowing later, kept in one file, recalled by words and by meaning."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from types import TracebackType
from typing import Literal

import attrs

from agent_memory.errors import ConfigError, UnsupportedParameterError
from agent_memory.protocols import Tokenizer
from agent_memory.recall import audit
from agent_memory.recall.asking import ask
from agent_memory.recall.database import Database
from agent_memory.recall.filing import file_texts, prepare
from agent_memory.recall.protocols import Embedder, Redactor, TokenCounter
from agent_memory.recall.ranking import Question
from agent_memory.recall.rows import items_of, row_of, rows_of
from agent_memory.recall.scope import Scope, checked_name, open_scope
from agent_memory.recall.slots import chain_of
from agent_memory.recall.told import Told, split, told
from agent_memory.recall.types import TEXT_KINDS, TYPED_KINDS, Hit, IngestReport, Item, Weights
from agent_memory.recall.words import asks_about_replies, asks_for_course

MOST_HITS = 1_000


class ContextMemory:
    """Long-term memory of one workspace: remembers texts, recalls what a question needs.

    - Durable: what ``remember`` returned is on the disk. ``":memory:"`` keeps nothing.
    - Threads may share one; other processes may open the same file.
    - Needs no model: ``embedder`` adds search by meaning, ``tokenizer`` exact budgets (without one, a budget counts
      UTF-8 bytes, which no tokenizer exceeds).
    - ``redact``: takes secrets out before anything is written; None keeps them.

    Raises ConfigError, StoreError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Database = ":memory:",
        *,
        workspace: str = "default",
        salt: str = "",
        redact: Redactor | Literal["rules"] | None = "rules",
        embedder: Embedder | None = None,
        tokenizer: Tokenizer | TokenCounter | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        checked_name(workspace)
        self._owns = not isinstance(path, Database)
        self._database = path if isinstance(path, Database) else Database(path)
        self._salt, self._clock = salt, clock
        self._redactor = _redactor(redact)
        self._embedder, self._tokenizer = embedder, tokenizer
        with self._database.write() as db:
            self._scope = open_scope(db, salt, workspace, clock())

    @property
    def name(self) -> str:
        """The workspace's name."""
        return self._scope.name

    def workspace(self, name: str) -> ContextMemory:
        """Return a handle on another workspace of the same file and salt; this handle's ``close`` closes both."""
        return ContextMemory(
            self._database,
            workspace=name,
            salt=self._salt,
            redact=self._redactor,
            embedder=self._embedder,
            tokenizer=self._tokenizer,
            clock=self._clock,
        )

    def remember(
        self, content: object, *, kind: str | None = None, source: str | None = None, at: float | datetime | None = None
    ) -> IngestReport:
        """Keep a text, a message or messages, as given after redaction; durable and recallable when this returns.

        ``kind``: chat, note, diff or log; None: seen from the content. ``source``: what it belongs to, as a conversation
        or a file: texts of one source are neighbours. ``at``: when it was said; now. A text that is known already is
        counted. Raises UnsupportedParameterError before any work.
        """
        now = self._clock()
        when = now if at is None else _seconds(at)
        redactions: Counter[str] = Counter()
        texts = []
        for one in told(content, kind):
            clean = attrs.evolve(
                one,
                body=self._clean(one.body, redactions),
                speaker=self._clean(one.speaker, redactions) if one.speaker else None,
                source=self._clean(source, redactions) if source else None,
                at=when,
            )
            texts.extend(prepare(piece) for piece in split(clean))
        with self._database.write() as db:
            filed = file_texts(db, self._scope, texts, now)
            audit.note(
                db, self._scope, now, "remember", None,
                texts=filed.n_texts, duplicates=filed.n_duplicates, items=len(filed.ids), redactions=dict(redactions),
                superseded=len(filed.superseded),
            )  # fmt: skip
        return IngestReport(
            ids=tuple(filed.ids),
            n_texts=filed.n_texts,
            n_duplicates=filed.n_duplicates,
            n_items=dict(filed.n_items),
            redactions=dict(redactions),
            superseded=tuple(filed.superseded),
            extraction_error=next((text.extraction_error for text in texts if text.extraction_error), None),
        )

    def recall(
        self,
        query: str,
        *,
        k: int = 10,
        kinds: Collection[str] = (),
        since: float | datetime | None = None,
        as_of: float | datetime | None = None,
        source: str | None = None,
        weights: Weights = Weights(),
    ) -> list[Hit]:
        """Return at most ``k`` items that answer ``query``, best first; [] where nothing shares a word or a meaning.

        ``kinds``: of texts (chat, note, diff, log) or of typed items (decision, fact ...). ``since``: nothing older.
        ``as_of``: what was known then; superseded facts are hidden otherwise. Writes nothing. Raises
        UnsupportedParameterError.
        """
        if not isinstance(query, str):
            raise UnsupportedParameterError(f"query must be a text, got {type(query).__name__}")
        if not isinstance(k, int) or isinstance(k, bool) or not 0 < k <= MOST_HITS:
            raise UnsupportedParameterError(f"k must be an int of 1 to {MOST_HITS}, got {k!r}")
        if unknown := sorted(set(kinds) - {*TEXT_KINDS, *TYPED_KINDS}):
            known = ", ".join((*TEXT_KINDS, *TYPED_KINDS))
            raise UnsupportedParameterError(f"kinds has {unknown[0]!r}; known: {known}")
        question = Question(
            weights=weights,
            now=self._clock(),
            k=k,
            about_replies=asks_about_replies(query),
            about_course=asks_for_course(query),
            kinds=frozenset(kinds),
            since=None if since is None else _seconds(since),
            as_of=None if as_of is None else _seconds(as_of),
            source=source,
        )
        with self._database.read() as db:
            return ask(db, self._scope, query, question, self._embedder)

    def history(self, id: int) -> list[Item]:
        """Return every version of the fact that ``id`` is one of, oldest first. Raises ItemNotFoundError."""
        with self._database.read() as db:
            row_of(db, self._scope, id)
            chain = chain_of(db, self._scope, id)
            rows = rows_of(db, self._scope, chain)
            return items_of(db, self._scope, [rows[item] for item in chain])

    def close(self) -> None:
        """Close the file; idempotent. Everything remembered is durable already."""
        if self._owns:
            self._database.close()

    def __enter__(self) -> ContextMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ContextMemory({str(self._database.path or ':memory:')!r}, workspace={self._scope.name!r})"

    def _clean(self, text: str, counted: Counter[str]) -> str:
        if self._redactor is None:
            return text
        redacted = self._redactor.redact(text)
        counted.update(found.kind for found in redacted.found)
        return redacted.text


def _redactor(redact: Redactor | Literal["rules"] | None) -> Redactor | None:
    if redact == "rules":
        from agent_memory.recall.redaction import RuleRedactor

        return RuleRedactor()
    if redact is not None and not isinstance(redact, Redactor):
        raise ConfigError(f"redact must have a method redact(text), be 'rules' or None; got {type(redact).__name__}")
    return redact


def _seconds(at: float | datetime) -> float:
    if isinstance(at, datetime):
        return at.timestamp()
    if isinstance(at, (int, float)) and not isinstance(at, bool) and -6e10 < at < 2e11:
        return float(at)
    raise UnsupportedParameterError(f"a time must be a datetime or seconds since the epoch, got {at!r}")

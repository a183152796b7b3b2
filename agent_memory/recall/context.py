"""``ContextMemory``: what is worth knowing later, kept in one file, recalled by words and by meaning."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import IO, Literal

import attrs

from agent_memory.errors import ConfigError, UnsupportedParameterError, repr_of
from agent_memory.prompt.escaping import without_marks_of
from agent_memory.protocols import Tokenizer
from agent_memory.recall import audit, consolidation, extraction, figures, forgetting, learning, places, tools, transfer
from agent_memory.recall.asking import ask, question_of, vector_of
from agent_memory.recall.cards import card, counter_of
from agent_memory.recall.dates import seconds_of
from agent_memory.recall.filing import Prepared, file_texts, prepare
from agent_memory.recall.given import checked_number, checked_text
from agent_memory.recall.indexing import ensure_index
from agent_memory.recall.learning import count_use
from agent_memory.recall.listening import Listener, OnForget
from agent_memory.recall.maintenance import Maintenance
from agent_memory.recall.opening import open_storage, opened
from agent_memory.recall.places import MOST_NEIGHBOURS
from agent_memory.recall.protocols import Embedder, Extracted, Extractor, Redactor, TokenCounter
from agent_memory.recall.redaction import chosen_redactor
from agent_memory.recall.rows import items_of, row_of, rows_of
from agent_memory.recall.scope import Scope, checked_name, find_scope
from agent_memory.recall.slots import chain_of
from agent_memory.recall.storage import Storage
from agent_memory.recall.told import split, told
from agent_memory.recall.types import (
    AuditRow,
    CheckReport,
    ContextStats,
    Expansion,
    Hit,
    IngestReport,
    Item,
    Maintained,
    Plan,
    Weights,
    WorkingSet,
)
from agent_memory.recall.vectors import VectorView
from agent_memory.recall.window import HITS, MOST_TOKENS, Window


class ContextMemory:
    """Long-term memory of one workspace: remembers texts, recalls what a question needs.

    - Durable: what ``remember`` returned is on the disk. ``":memory:"`` keeps nothing.
    - Threads may share one; other processes may open the same file.
    - Needs no model: ``embedder`` adds search by meaning, ``tokenizer`` exact budgets (without one, a budget counts
      UTF-8 bytes, which no tokenizer exceeds).
    - ``redact``: takes secrets out before anything is written; None keeps them.
    - ``extractor``: finds typed items that rules miss, in ``maintain``; what is told without one is not read later.

    Raises ConfigError, StoreError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Storage = ":memory:",
        *,
        workspace: str = "default",
        salt: str = "",
        redact: Redactor | Literal["rules"] | None = "rules",
        embedder: Embedder | None = None,
        tokenizer: Tokenizer | TokenCounter | None = None,
        extractor: Extractor | None = None,
        clock: Callable[[], float] = time.time,
        on_forget: OnForget | None = None,
        on_remember: Callable[[], None] | None = None,
    ) -> None:
        checked_name(workspace)
        if not callable(clock):
            raise ConfigError(f"clock must be a function, got {repr_of(clock)}")
        storage, self._owns = open_storage(path)
        self._salt, self._clock = salt, clock
        self._on_remember = on_remember or (lambda: None)
        self._embedder, self._tokenizer, self._extractor = embedder, tokenizer, extractor
        with opened(storage, owns=self._owns, salt=salt, workspace=workspace, now=clock()) as (db, scope):
            if not storage.is_read_only:
                ensure_index(db, scope)
            self._redactor = chosen_redactor(redact, db, is_read_only=storage.is_read_only)
        self._bind(storage, scope, on_forget)

    def _bind(self, storage: Storage, scope: Scope, on_forget: OnForget | None) -> None:
        self._scope, self._database = scope, storage.of(scope.workspace)
        self._listener = Listener(self._database, scope, on_forget)
        self._vectors = None if self._embedder is None else VectorView(scope, self._embedder)

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
            extractor=self._extractor,
            clock=self._clock,
            on_forget=self._listener.on_forget,
            on_remember=self._on_remember,
        )

    def cleaned(self, text: str) -> str:
        """Return a text as ``remember`` would store it."""
        return self._clean(checked_text(text, "text"), Counter())

    def remember(
        self, content: object, *, kind: str | None = None, source: str | None = None, at: float | datetime | None = None
    ) -> IngestReport:
        """Keep a text, a message or messages, as given after redaction; durable and recallable when this returns.

        ``kind``: chat, note, diff or log; None: seen from the content. ``source``: the conversation or file that it
        belongs to: texts of one source are neighbours. ``at``: when it was said; now. A text that is known already is
        counted. Raises UnsupportedParameterError before any work.
        """
        now = self._clock()
        when = now if at is None else seconds_of(at)
        redactions: Counter[str] = Counter()
        texts: list[Prepared] = []
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
            if self._extractor is not None:
                extraction.mark(db, self._scope, filed.texts)
            detail = {
                "texts": filed.n_texts,
                "duplicates": filed.n_duplicates,
                "items": len(filed.ids),
                "redactions": dict(redactions),
                "superseded": len(filed.superseded),
            }
            audit.note(db, self._scope, now, "remember", None, detail)
        self._on_remember()
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
        question = question_of(
            query,
            k=k,
            kinds=kinds,
            since=None if since is None else seconds_of(since),
            as_of=None if as_of is None else seconds_of(as_of),
            source=source,
            weights=weights,
            now=self._clock(),
        )
        vector = vector_of(question, self._vectors)
        with self._database.read() as db:
            return ask(db, self._scope, question, self._vectors, vector)

    def working_set(self, task: str, *, budget_tokens: int = 4096, window: str = "default") -> WorkingSet:
        """Return the cards that ``task`` needs, within ``budget_tokens``, in an order that keeps a prompt's beginning.

        Pinned items come first, then cards in the order of their first recall; ``window`` names the prompt whose order
        is kept, as a conversation. Never above the budget, of 32,768 at most. Counts as use of the cards that are new.
        """
        if not isinstance(budget_tokens, int) or isinstance(budget_tokens, bool) or budget_tokens < 0:
            raise UnsupportedParameterError(f"budget_tokens must be an int of 0 or more, got {repr_of(budget_tokens)}")
        if budget_tokens > MOST_TOKENS:
            raise UnsupportedParameterError(
                f"budget_tokens is {budget_tokens:,}; a working set has {MOST_TOKENS:,} at most"
            )
        hits = self.recall(task, k=HITS)
        with self._database.write() as db:
            cards = Window(
                db,
                self._scope,
                checked_name(window, "window"),
                counter_of(self._tokenizer),
                without_marks_of(self._tokenizer, card),
                budget_tokens,
            )
            before = set(cards.stored())
            working_set = cards.fill(hits)
            count_use(db, self._scope, [i.id for i in working_set.items if i.id not in before], self._clock())
        return working_set

    def expand(self, id: int, *, neighbours: int = 2) -> Expansion:
        """Return an item with its whole text, ``neighbours`` passages before and after, typed items and links.

        Raises ItemNotFoundError.
        """
        if not isinstance(neighbours, int) or not 0 <= neighbours <= MOST_NEIGHBOURS:
            raise UnsupportedParameterError(f"neighbours must be 0 to {MOST_NEIGHBOURS}, got {repr_of(neighbours)}")
        with self._database.read() as db:
            return places.expand(db, self._scope, id, neighbours)

    def history(self, id: int) -> list[Item]:
        """Return every version of the fact that ``id`` is one of, oldest first. Raises ItemNotFoundError."""
        with self._database.read() as db:
            row_of(db, self._scope, id)
            chain = chain_of(db, self._scope, id)
            rows = rows_of(db, self._scope, chain)
            return items_of(db, self._scope, [rows[item] for item in chain])

    def feedback(self, id: int, useful: bool | float) -> None:
        """Say whether an item was useful: a bool, or -1 to 1. Bounded, fades in 90 days, taken back by the opposite.

        Raises ItemNotFoundError.
        """
        with self._database.write() as db:
            learning.vote(db, self._scope, id, useful, self._clock())

    def pin(self, id: int, is_pinned: bool = True) -> None:
        """Put an item in front of every working set, or no longer. Raises ItemNotFoundError."""
        with self._database.write() as db:
            learning.pin(db, self._scope, id, is_pinned, self._clock())

    def link(self, id: int, other: int, relation: str = "depends_on") -> None:
        """Link two items; one that depends on a superseded one is shown as ``is_stale``. Raises ItemNotFoundError."""
        with self._database.write() as db:
            learning.link(db, self._scope, id, other, relation, self._clock())

    def forget(
        self, what: int | str | Collection[int] = (), *, source: str | None = None, everything: bool = False
    ) -> int:
        """Delete texts with all that was derived from them; return how many. No byte of them stays in the file.

        ``what``: an item's id or several, whose whole texts go; or a phrase, wherever it stands, whatever its case.
        ``source``: all texts of a source. ``everything``: the workspace. Rewrites the file. Raises ItemNotFoundError.
        """
        with self._database.read() as db:
            texts = forgetting.chosen_texts(db, self._scope, what, source, everything)
        items = self._listener.items(texts)
        self._listener.tell(items)  # first: after a crash, the call finds the texts again
        with self._database.write() as db:
            texts = forgetting.chosen_texts(db, self._scope, what, source, everything)
            if texts:
                items |= dict.fromkeys(forgetting.items_of_texts(db, self._scope, texts) - items.keys(), "")
                self._listener.note(db, items)
                forgetting.delete_texts(db, self._scope, texts, self._clock(), "forget")
                self._database.owe_scrub(db)
        if texts:
            self._database.scrub()
        self._listener.tell(items)  # again: a turn may have recalled them meanwhile
        return len(texts)

    def consolidate(self, *, dry_run: bool = False) -> Plan:
        """Merge notes and typed items that say the same; nothing is destroyed. ``dry_run``: return the plan alone."""
        if dry_run:
            with self._database.read() as db:
                return Plan(id=0, changes=consolidation.planned(db, self._scope))
        with self._database.write() as db:
            return consolidation.apply(db, self._scope, self._clock())

    def undo(self, plan_id: int) -> None:
        """Take a consolidation back; idempotent. Raises UnsupportedParameterError for an unknown plan."""
        with self._database.write() as db:
            consolidation.undo(db, self._scope, plan_id, self._clock())

    def maintain(self, max_ms: float = 200, *, retain_days: float | None = None, extract: bool = True) -> Maintained:
        """Do idle work for about ``max_ms``: the index, vectors, extraction, retention, audit.

        ``retain_days``: forget older texts, as ``forget`` does, pinned ones excepted. ``extract`` False leaves out the
        extractor, of which one step takes as long as it takes. ``is_done`` False: call again.
        """
        retain_s = None if retain_days is None else checked_number(retain_days, "retain_days", 0) * 86_400.0
        extractor = self._extractor if extract else None
        now, max_s = self._clock(), checked_number(max_ms, "max_ms", 0, float("inf")) / 1e3
        return Maintenance(self._listener, self._embedder, extractor, now, retain_s, max_s).run()

    def catch_up(self) -> None:
        """Tell ``on_forget`` what others on the same file have forgotten; a reader looks for its workspace again."""
        if not self._database.is_read_only:
            self._listener.catch_up()
        elif not self._scope.exists:
            with self._database.of(None).read() as db:
                self._bind(self._database, find_scope(db, self._salt, self._scope.name), self._listener.on_forget)

    def unread(self) -> extraction.Unread | None:
        """Return the next piece of a text for an extractor that runs elsewhere; None where all was read."""
        with self._database.read() as db:
            return extraction.first_unread(db, self._scope)

    def keep_found(self, unread: extraction.Unread, found: Sequence[Extracted] | None, by: str) -> tuple[int, ...]:
        """Write what was found in a piece; None: reading it failed. Return the new items.

        Raises UnsupportedParameterError for spans or kinds that the piece cannot have.
        """
        with self._database.write() as db:
            if found is None:
                extraction.note_failure(db, self._scope, unread, self._clock())
                return ()
            return tuple(extraction.file_found(db, self._scope, unread, found, by, self._clock()))

    def audit(self, *, since: float | datetime | None = None, limit: int = 100) -> list[AuditRow]:
        """Return the newest changes, newest first. Rows hold ids and counts, no text; the newest 100,000 are kept."""
        with self._database.read() as db:
            return audit.rows(db, self._scope, since, limit)

    def stats(self, *, since: float | datetime | None = None, by: str | None = None) -> ContextStats:
        """Return the workspace's figures. ``by``: texts grouped by "day", "kind" or "workspace"."""
        nbytes = self._database.nbytes
        with self._database.read() as db:
            return figures.stats(db, self._scope, nbytes, None if since is None else seconds_of(since), by)

    def check(self) -> CheckReport:
        """Check the whole file: SQLite, the index, and whether rows, words and vectors agree. Reads everything.

        On PostgreSQL: this workspace; pages are the server's to check.
        """
        damaged = self._database.check()
        with self._database.read() as db:
            return CheckReport(damaged=(*damaged, *figures.damage(db, self._scope)))

    def export_jsonl(self, file: IO[str]) -> int:
        """Write the workspace's texts, and what was learnt of them, as lines of JSON; return the number of lines."""
        with self._database.read() as db:
            return transfer.write(db, self._scope, file)

    def import_jsonl(self, file: Iterable[str]) -> int:
        """Remember the texts of an export, redacted; return how many were new. All or nothing.

        Raises UnsupportedParameterError for lines that are no export.
        """
        redactions: Counter[str] = Counter()
        now = self._clock()
        with self._database.write() as db:
            texts = transfer.read(db, self._scope, file, lambda text: self._clean(text, redactions), now)
            if self._extractor is not None:
                extraction.mark(db, self._scope, texts)
            audit.note(db, self._scope, now, "import", None, {"texts": len(texts), "redactions": dict(redactions)})
        return len(texts)

    def tools(self) -> tools.Functions:
        """Return functions ``recall`` and ``remember`` for ``Memory.run_tools``: the model itself decides then."""
        find, keep = partial(self.recall, k=5), partial(self.remember, source="tool:remember")
        return tools.functions(find, keep, self._tokenizer)

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
        return f"ContextMemory({self._database.name!r}, workspace={self._scope.name!r})"

    def _clean(self, text: str, counted: Counter[str]) -> str:
        if self._redactor is None:
            return text
        redacted = self._redactor.redact(text)
        counted.update(found.kind for found in redacted.found)
        return redacted.text

"""``LongTerm``: context memory and episodes of one Memory, opened on first use, and what its agents do with them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from agent_memory.config import Config
from agent_memory.errors import AgentMemoryError
from agent_memory.log.blobs import salt_digest
from agent_memory.log.files import RECALL
from agent_memory.prompt.escaping import escaped, without_marks_of
from agent_memory.prompt.recalled import END, HEAD
from agent_memory.protocols import ModelRunner
from agent_memory.requests.embedding import ResidentEmbedder
from agent_memory.requests.reading import Reader
from agent_memory.requests.recalled import NOTHING, Candidate, Candidates
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.idle import QUIET_S
from agent_memory.sealing.sqlite import FileKey
from agent_memory.store.store import Store
from agent_memory.types import Card, Message, Recall

if TYPE_CHECKING:
    from agent_memory.recall.context import ContextMemory
    from agent_memory.recall.database import Database
    from agent_memory.recall.episodes import EpisodicMemory
    from agent_memory.recall.protocols import Redacted
    from agent_memory.requests.session import Requests

logger = logging.getLogger("agent_memory.requests")

_RELEVANT = 0.2  #: share of the best answer's score; answers below it are noise
_OWN_SHARE = 4  #: answers asked for, as a multiple of ``k``: many repeat the agent's own conversation


@frozen
class _Said:
    """An exchange on its way into context memory."""

    messages: tuple[Message, ...]
    workspace: str
    source: str | None


class LongTerm:
    """Context memory and episodes in one file of the store's folder; in memory if the store has none.

    - Opened, and its code imported, on first use. Any thread.
    - In a reader (``read_only=True``) it is read as the last commit left it, and nothing is remembered.
    - Exchanges are remembered behind the reply, on the store's I/O thread, or before the next question: whichever
      comes first. ``Store.flush`` waits for them.
    """

    def __init__(
        self, path: Path | None, config: Config, runner: ModelRunner, store: Store, engine: Engine, requests: Requests
    ) -> None:
        self._path = None if path is None else path / RECALL
        self._salt = salt_digest(config.salt).hex()
        self._redact, self._runner, self._store, self._engine = config.redact, runner, store, engine
        self._embedder = ResidentEmbedder(runner, engine) if config.embedder == "resident" else config.embedder
        self._reader = Reader(requests, runner.name) if config.extract else None
        self._lock = threading.RLock()
        self._database: Database | None = None
        self._contexts: dict[str, ContextMemory] = {}
        self._episodes: EpisodicMemory | None = None
        self._pending: deque[_Said] = deque()
        self.on_forget: Callable[[str, Mapping[int, str]], None] | None = None  #: gets a workspace and its items
        self._forgotten: set[tuple[str, int]] = set()
        self.n_failed = 0  #: exchanges that could not be remembered

    def take_model(self) -> None:
        """Embed and read with the model that is loaded now. Engine thread."""
        if isinstance(self._embedder, ResidentEmbedder):
            self._embedder.forget_model()
        if self._reader is not None:
            self._reader.read_with(self._runner.name)

    def context(self, workspace: str = "default") -> ContextMemory:
        """Return the context memory of a workspace, queued exchanges remembered first. Raises StoreError."""
        with self._lock:
            self.settle()
            context = self._context(workspace)
        context.catch_up()  # without the lock: it may wait until requests have ended
        return context

    def episodes(self) -> EpisodicMemory:
        """Return the episodes. Raises StoreError."""
        from agent_memory.recall.episodes import EpisodicMemory

        with self._lock:
            database = self._open()
            if self._episodes is None or not self._episodes.exists:
                self._episodes = EpisodicMemory(database, salt=self._salt, redact=self._redact or "rules")
            return self._episodes

    def clean(self, text: str) -> str:
        """Return a text without the secrets that ``Config.redact`` finds; unchanged if that is not set."""
        if self._redact is None:
            return text
        if self._redact == "rules":
            return self._context("default").cleaned(text)
        redacted: Redacted = self._redact.redact(text)
        return redacted.text

    def candidates(self, question: str, recall: Recall, agent: str | None) -> Candidates:
        """Return what a question recalls, for a turn of ``agent``. Raises StoreError."""
        if not question.strip():
            return NOTHING
        from agent_memory.recall.cards import card, counter_of

        tokenizer = self._runner.tokenizer
        count, style = counter_of(tokenizer), without_marks_of(tokenizer, card)
        hits = self.context(recall.workspace).recall(question, k=recall.k * _OWN_SHARE + 8, kinds=recall.kinds)
        found = []
        for hit in hits:
            if hit.score < _RELEVANT * hits[0].score or (hit.item.kind == "chat" and hit.item.text.endswith("?")):
                continue  # noise, or somebody's question: no answer
            text = style(hit.item)
            shown = Card(hit.item.id, text, recall.workspace, hit.score, dict(hit.parts))
            is_own = agent is not None and hit.item.source == source_of(agent)
            found.append(Candidate(shown, hit.item.text.strip(), count(text), is_own))
        return Candidates(tuple(found), recall.k, recall.budget_tokens - count(HEAD) - count(END), self._forgotten)

    def working_set(self, task: str, recall: Recall, agent: str, *, budget_tokens: int = 4096) -> tuple[Card, ...]:
        """Return the cards that ``task`` needs, for a log of ``agent`` that begins anew: pinned ones first, then in the
        order of their first recall, so that the next one begins alike.

        For ``Message.recalled`` of the log's first message: as cards they are forgotten where their texts are. Within
        ``budget_tokens``, head included. Counts as use. Raises StoreError and UnsupportedParameterError.
        """
        from agent_memory.recall.cards import card

        style = without_marks_of(self._runner.tokenizer, card)
        context = self.context(recall.workspace)
        found = context.working_set(task, budget_tokens=budget_tokens, window=source_of(agent))
        return tuple(Card(item.id, style(item), recall.workspace, 0.0, {}) for item in found.items)

    def note(self, messages: Sequence[Message], recall: Recall, agent: str | None) -> None:
        """Queue an exchange to be remembered: question and answer, without cards, calls and results."""
        cards = [HEAD, *(card.text for message in messages for card in message.recalled)]
        said = tuple(
            Message(message.role, text)
            for message in messages
            if message.role in ("user", "assistant") and (text := _without(cards, message.content))
        )
        if recall.remember and said and not self._store.is_read_only:
            self._pending.append(_Said(said, recall.workspace, None if agent is None else source_of(agent)))
            self._store.behind(self.settle)

    def settle(self) -> None:
        """Remember queued exchanges. One that fails is counted and logged as a warning: no reply depends on it."""
        with self._lock:
            while self._pending:
                said = self._pending.popleft()
                try:
                    self._context(said.workspace).remember(list(said.messages), source=said.source)
                except AgentMemoryError as error:
                    self.n_failed += 1
                    logger.warning("an exchange was not remembered workspace=%r: %s", said.workspace, error)

    def let_pass(self) -> None:
        """Stop reading remembered texts: a request comes."""
        if self._reader is not None:
            self._reader.cancel()

    def upkeep(self, max_s: float) -> float | None:
        """Do idle work on what is open, for about ``max_s``; return the seconds after which to go on. Engine thread.

        None: nothing is left. Never waits for whoever uses the file: it looks again a little later.
        """
        if self._database is None or self._store.is_read_only:
            return None
        if not self._lock.acquire(blocking=False):
            return QUIET_S
        try:
            contexts = list(self._contexts.values())
        finally:
            self._lock.release()
        with self._database.if_free() as is_free:
            try:
                if not is_free:
                    return QUIET_S
                return 0.0 if self._maintained(contexts, max_s) else None
            except AgentMemoryError as error:
                logger.warning("idle work on long-term memory failed and is tried after the next change: %s", error)
            except Exception as error:  # noqa: BLE001 - an embedder of the host's may raise anything
                logger.warning("idle work on long-term memory failed: %s", type(error).__name__)
        return None

    def _maintained(self, contexts: Sequence[ContextMemory], max_s: float) -> bool:
        started = time.perf_counter()
        for context in contexts:
            left_s = max_s - (time.perf_counter() - started)
            if left_s <= 0 or not context.maintain(left_s * 1e3, extract=False).is_done:
                return True
        return self._reader is not None and self._reader.step(contexts)

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            if self._database is not None:
                self._database.close()

    def _context(self, workspace: str) -> ContextMemory:
        from agent_memory.recall.context import ContextMemory

        with self._lock:
            database = self._open()
            if workspace not in self._contexts:
                self._contexts[workspace] = ContextMemory(
                    database,
                    workspace=workspace,
                    salt=self._salt,
                    redact=self._redact or "rules",
                    tokenizer=self._runner.tokenizer,
                    embedder=self._embedder,
                    extractor=self._reader,
                    on_forget=self._forget,
                    on_remember=self._engine.idle.note,
                )
                self._engine.idle.note()  # for what an earlier process left
            return self._contexts[workspace]

    def _forget(self, workspace: str, items: Mapping[int, str]) -> None:
        """Take forgotten items out of waiting requests and out of agents' logs."""
        self.let_pass()
        self._forgotten.update((workspace, item) for item in items)
        if self.on_forget is not None:
            self.on_forget(workspace, {item: escaped(text) for item, text in items.items()})

    def _open(self) -> Database:
        from agent_memory.recall.database import Database

        is_read_only, where = self._store.is_read_only, ":memory:" if self._path is None else self._path
        if is_read_only and self._path is not None and not self._path.exists():
            where = ":memory:"
        if self._database is not None and self._database.path is None and where != ":memory:":  # the file is new
            self._database.close()
            self._database, self._contexts, self._episodes = None, {}, None
        if self._database is None:
            key = FileKey.of(self._store.parts.manifest.database.keys, "recall")
            self._database = Database(where, read_only=is_read_only, key=key)
        return self._database


def _without(cards: Sequence[str], text: str) -> str:
    """Return a text without the cards that a model has copied into it."""
    for card in cards:
        text = text.replace(card, "")
    return text.strip()


def source_of(agent: str) -> str:
    """Return the source under which an agent's exchanges are remembered."""
    return f"agent:{agent}"

"""Log: an agent's turns in memory, which are the truth that KV only caches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from agent_memory.errors import AgentDeletedError
from agent_memory.log.facts import Facts
from agent_memory.log.said import Said
from agent_memory.log.turns import Turn
from agent_memory.log.versions import AgentRecord, Kept, Reason, Span, State, Version, n_same_ids
from agent_memory.prompt.sameness import is_same, renamed
from agent_memory.protocols import Tokenizer
from agent_memory.tools import from_json as tools_from_json
from agent_memory.tools import to_json as tools_to_json
from agent_memory.types import AgentInfo, Finish, Message


class Log:
    """An agent's turns: the messages, and the ids that they became under one tokenizer.

    Read from any thread; changed on the engine thread alone (``append``, ``restore``, ``keep``, ``is_deleted``), as
    whole tuples.
    """

    __slots__ = (
        "agent_id", "created_s", "facts", "first_system", "ids", "is_deleted", "is_foreign", "is_pinned",
        "is_temporary", "kept", "messages", "n_kv", "n_versions", "name", "said", "spans", "tools", "turns", "used_s",
        "version", "viewed",
    )  # fmt: skip

    def __init__(self, record: AgentRecord, *, is_foreign: bool = False) -> None:
        self.is_foreign = is_foreign  #: True if its KV so far was made by other models alone
        self.agent_id, self.name = record.agent_id, record.name
        self.first_system = record.system  #: the system prompt before the first turn
        self.facts = Facts.from_json(record.facts)
        self.tools = tools_from_json(record.tools)
        self.created_s, self.used_s, self.is_pinned = record.created_s, record.used_s, record.is_pinned
        self.is_deleted = False  #: for good: an agent of the same name that is made later has a log of its own
        self.is_temporary = False  #: True if nothing of it ever reaches the disk
        self.viewed: tuple[Log, int] | None = None  #: of a read-only view: the agent's log, and the version's number
        self.kept: tuple[Kept, ...] = record.kept  #: its versions, the oldest first
        #: the highest number that a version was given
        self.n_versions = max((self.facts.n_versions or 0, *(kept.version.number for kept in record.kept)))
        self.spans: tuple[Span, ...] = record.spans or (Span(record.agent_id, 0),)
        self.version = 0
        self._replay(record.turns)

    def _replay(self, turns: Sequence[Turn]) -> None:
        """Set turns, and with them messages, ids and how many ids have had their KV."""
        self.turns: tuple[Turn, ...] = ()
        system = self.first_system
        self.messages: tuple[Message, ...] = (Message("system", system),) if system is not None else ()
        #: what the model wrote for each message; None for those of others, and where that is not known
        self.said: tuple[Said | None, ...] = (None,) * len(self.messages)
        self.ids = np.zeros(0, np.uint32)
        self.n_kv = 0
        self.version += 1
        for turn in turns:
            self._add(turn)

    def _add(self, turn: Turn) -> None:
        self.messages = self.messages[: turn.n_messages_kept] + turn.messages
        self.ids = np.concatenate([self.ids[: turn.keep], turn.ids])
        said: list[Said | None] = [None] * len(turn.messages)
        if turn.n_reply and said:
            said[-1] = Said.last_of(self.ids, turn.n_reply)
        self.said = (*self.said[: turn.n_messages_kept], *said)
        self.turns, self.n_kv = (*self.turns, turn), turn.n_kv
        self.version += 1

    def stored_as(self, record: AgentRecord) -> None:
        """A blank log is an agent's from now on."""
        self.agent_id, self.created_s, self.used_s = record.agent_id, record.created_s, record.used_s
        self.spans = (Span(record.agent_id, 0),)

    def ensure_exists(self) -> None:
        """Raises AgentDeletedError once the agent was deleted."""
        if self.is_deleted or (self.viewed is not None and self.viewed[0].is_deleted):
            raise AgentDeletedError(self.name)

    @property
    def state(self) -> State:
        """What the log is now."""
        return State(turns=self.turns, spans=self.spans, system=self.first_system, facts=self.facts)

    def forked(self, name: str, agent_id: int) -> Log:
        """A log of another name with the same conversation, which shares every value; O(1)."""
        log: Log = Log.__new__(Log)
        for slot in Log.__slots__:
            setattr(log, slot, getattr(self, slot))
        log.name, log.agent_id = name, agent_id
        log.created_s = log.used_s = time.time()
        log.is_deleted, log.is_pinned, log.is_temporary, log.viewed = False, False, False, None
        log.kept, log.n_versions, log.version = (), 0, 0
        log.facts = attrs.evolve(log.facts, n_versions=None, holder=None)
        return log

    def restore(self, state: State) -> None:
        """Let the log be what it was at another moment, with the settings that the agent has now."""
        now = self.facts
        self.first_system, self.spans = state.system, state.spans
        self._replay(state.turns)
        self.facts = attrs.evolve(
            state.facts,
            system=None if self.system == self.first_system else self.system,
            keep_reasoning=now.keep_reasoning,
            recall=now.recall,
            holder=now.holder,
            n_versions=self.n_versions or None,
            has_shown=now.has_shown or state.facts.has_shown,
        )

    def keep(self, state: State, reason: Reason, label: str | None = None, *, holder: int = 0) -> Kept:
        """Keep a state of this log as its newest version. ``holder``: the number that its KV is held under."""
        self.n_versions += 1
        self.facts = attrs.evolve(self.facts, n_versions=self.n_versions)
        state = state.first(len(state.turns))
        version = Version(
            number=self.n_versions, n_turns=len(state.turns), created_s=time.time(), label=label, reason=reason
        )
        kept = Kept(version, state, holder)
        self.kept = (*self.kept, kept)
        return kept

    def record(self) -> AgentRecord:
        """The log as it is stored."""
        return AgentRecord(
            self.agent_id,
            self.name,
            self.first_system,
            tools_to_json(self.tools),
            self.turns,
            self.created_s,
            self.used_s,
            facts=self.facts.to_json(),
            spans=self.spans,
            kept=self.kept,
        )

    @property
    def system(self) -> str | None:
        """The system prompt: the text of a system message at the conversation's beginning."""
        first = self.messages[0] if self.messages else None
        return first.content if first is not None and first.role == "system" else None

    @property
    def tokenizer(self) -> str | None:
        """Digest of the tokenizer that made the newest ids."""
        return self.turns[-1].tokenizer if self.turns else None

    def known(self, tokenizer: Tokenizer) -> np.ndarray[Any, Any]:
        """Ids that may be reused under ``tokenizer``; none under another than the log's."""
        return self.ids if self.tokenizer == tokenizer.digest else self.ids[:0]

    def full_history(self, given: tuple[Message, ...], *, goes_on: bool) -> tuple[Message, ...]:
        """The messages of the next prompt: what is ``given`` after the log's where it ``goes_on``, else all of them."""
        if goes_on:
            return self.messages + given
        if self.system is not None and given[0].role != "system":
            return (Message("system", self.system), *given)
        return given

    def said_in(self, tokenizer: Tokenizer, n_messages: int) -> dict[int, Said]:
        """What the model wrote for each of the first messages, by its index; nothing under another tokenizer."""
        if self.tokenizer != tokenizer.digest:
            return {}
        return {index: said for index, said in enumerate(self.said[:n_messages]) if said is not None}

    def as_logged(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """``messages``, and as long as they are equal to the log's, those: they know what the model really wrote.

        Results that follow get the ids of the calls as they are logged.
        """
        same = self.n_same(messages)
        return self.messages[:same] + renamed(self.messages[:same], messages[:same], messages[same:])

    def n_same(self, messages: Sequence[Message]) -> int:
        """How many leading messages are the log's: equal text, calls and results."""
        same = 0
        while same < min(len(self.messages), len(messages)) and is_same(self.messages[same], messages[same]):
            same += 1
        return same

    def turns_of(
        self,
        given: tuple[Message, ...],
        reply: Message,
        *,
        ids: Sequence[int],
        n_kv: int,
        tokenizer: str,
        finish: Finish,
        n_reply: int,
    ) -> list[Turn]:
        """What one request adds to the log: ``ids`` of all of it, ``n_kv`` of which have had their KV.

        The last turn is the request's own. Replies that ``given`` brings along are turns of their own before it.
        """
        all_ids = np.array(ids, np.uint32)
        keep = n_same_ids(self.ids, all_ids) if self.tokenizer in (None, tokenizer) else 0
        seeded = self.seeded(given, tokenizer=tokenizer, keep=keep)
        same = seeded[-1].n_messages_kept + len(seeded[-1].messages) if seeded else self.n_same(given)
        own = Turn(
            messages=(*given[same:], reply),
            n_messages_kept=same,
            keep=keep,
            ids=all_ids[keep:],
            n_kv=n_kv,
            tokenizer=tokenizer,
            finish=finish,
            created_s=time.time(),
            n_reply=n_reply,
        )
        return [*seeded, own]

    def seeded(self, given: Sequence[Message], *, tokenizer: str, keep: int = 0) -> list[Turn]:
        """A turn for each reply in ``given`` that the log does not have: its messages, and no ids of its own.

        ``keep``: how many of the log's ids the conversation still begins with.
        """
        turns: list[Turn] = []
        start = self.n_same(given)
        for index in range(start, len(given)):
            if given[index].role == "assistant":
                turn = Turn(
                    messages=tuple(given[start : index + 1]),
                    n_messages_kept=start,
                    keep=keep,
                    ids=self.ids[:0],
                    n_kv=min(self.n_kv, keep),
                    tokenizer=tokenizer,
                    finish=None,
                    created_s=time.time(),
                )
                turns.append(turn)
                start = index + 1
        return turns

    def unanswered(self, messages: Sequence[Message], *, tokenizer: str) -> Turn:
        """The turn that adds messages to the log which nothing answers; it has no ids."""
        return Turn(
            messages=tuple(messages),
            n_messages_kept=len(self.messages),
            keep=len(self.ids),
            ids=self.ids[:0],
            n_kv=self.n_kv,
            tokenizer=tokenizer,
            finish=None,
            created_s=time.time(),
        )

    def append(self, turn: Turn) -> None:
        """Take a turn in; O(ids) memory traffic, no rendering."""
        self.is_foreign = False
        self._add(turn)
        self.used_s = turn.created_s

    @property
    def info(self) -> AgentInfo:
        """The agent at a glance."""
        return AgentInfo(
            name=self.name,
            n_turns=len(self.turns),
            n_messages=len(self.messages),
            n_tokens=len(self.ids),
            system=self.system,
            created_s=self.created_s,
            used_s=self.used_s,
            is_pinned=self.is_pinned,
            n_checkpoints=sum(kept.version.reason == "checkpoint" for kept in self.kept),
        )

"""Log: an agent's turns in memory, which are the truth that KV only caches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from agent_memory.errors import AgentDeletedError
from agent_memory.log.turns import AgentRecord, Turn
from agent_memory.prefix.chunks import common_prefix
from agent_memory.protocols import Tokenizer
from agent_memory.tools import from_json as tools_from_json
from agent_memory.types import AgentInfo, Finish, Message


class Log:
    """An agent's turns: the messages, and the ids that they became under one tokenizer.

    Read from any thread; changed on the engine thread alone (``append``, ``rewind``, ``is_deleted``), as whole tuples.
    """

    __slots__ = (
        "agent_id", "created_s", "ids", "is_deleted", "is_foreign", "is_pinned", "messages", "n_kv", "name", "system",
        "tools", "turns", "used_s", "version",
    )  # fmt: skip

    def __init__(self, record: AgentRecord, *, is_foreign: bool = False) -> None:
        self.is_foreign = is_foreign  #: whether its KV so far was made by other models alone
        self.agent_id, self.name, self.system = record.agent_id, record.name, record.system
        self.tools = tools_from_json(record.tools)
        self.created_s, self.used_s, self.is_pinned = record.created_s, record.used_s, record.is_pinned
        self.is_deleted = False  #: for good: an agent of the same name that is made later has a log of its own
        self.version = 0
        self._replay(record.turns)

    def _replay(self, turns: Sequence[Turn]) -> None:
        """Set turns, and with them messages, ids and how many ids have had their KV."""
        self.turns: tuple[Turn, ...] = ()
        self.messages: tuple[Message, ...] = (Message("system", self.system),) if self.system is not None else ()
        self.ids = np.zeros(0, np.uint32)
        self.n_kv = 0
        self.version += 1
        for turn in turns:
            self._add(turn)

    def _add(self, turn: Turn) -> None:
        self.messages = self.messages[: turn.n_messages_kept] + turn.messages
        self.ids = np.concatenate([self.ids[: turn.keep], turn.ids])
        self.turns, self.n_kv = (*self.turns, turn), turn.n_kv
        self.version += 1

    def ensure_exists(self) -> None:
        """Raises AgentDeletedError once the agent was deleted."""
        if self.is_deleted:
            raise AgentDeletedError(self.name)

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

    def as_logged(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """``messages``, and as long as they are equal to the log's, those: they know what the model really wrote."""
        same = self._n_same(messages)
        return self.messages[:same] + messages[same:]

    def _n_same(self, messages: Sequence[Message]) -> int:
        same = 0
        while same < min(len(self.messages), len(messages)) and self.messages[same] == messages[same]:
            same += 1
        return same

    def turn(
        self,
        given: tuple[Message, ...],
        reply: Message,
        *,
        ids: Sequence[int],
        n_kv: int,
        tokenizer: str,
        finish: Finish,
    ) -> Turn:
        """What one more turn adds to the log: ``ids`` of all of it, ``n_kv`` of which have had their KV."""
        all_ids = np.array(ids, np.uint32)
        keep = common_prefix(self.ids, all_ids) if self.tokenizer in (None, tokenizer) else 0
        messages = (*given, reply)
        same = self._n_same(messages)
        return Turn(
            messages=messages[same:],
            n_messages_kept=same,
            keep=keep,
            ids=all_ids[keep:],
            n_kv=n_kv,
            tokenizer=tokenizer,
            finish=finish,
            created_s=time.time(),
        )

    def append(self, turn: Turn) -> None:
        """Take a turn in; O(ids) memory traffic, no rendering."""
        self.is_foreign = False
        self._add(turn)
        self.used_s = turn.created_s

    def rewind(self, n_turns: int) -> None:
        """Keep the first ``n_turns``."""
        self._replay(self.turns[:n_turns])

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
        )

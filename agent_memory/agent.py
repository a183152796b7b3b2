"""Agent: a named conversation whose log is the truth; and Log, that truth in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from agent_memory.errors import AgentDeletedError, ToolResultError, UnsupportedParameterError
from agent_memory.generation import Generation
from agent_memory.kvcache.chunks import common_prefix
from agent_memory.prompt import messages as shapes
from agent_memory.prompt.results import result_message
from agent_memory.protocols import LogitsProcessor, Tokenizer
from agent_memory.scheduler.request import Outcome
from agent_memory.store.records import AgentRecord, Turn
from agent_memory.tools import from_json as tools_from_json
from agent_memory.types import AgentInfo, Message, Reply, Sampling, Tool, ToolResult

if TYPE_CHECKING:
    from agent_memory.memory import Memory


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

    def turn(self, given: tuple[Message, ...], outcome: Outcome, reply: Message, tokenizer: str) -> Turn:
        """What one more turn adds to the log."""
        ids = np.array([*outcome.prompt.ids, *outcome.kept], np.uint32)
        keep = common_prefix(self.ids, ids) if self.tokenizer in (None, tokenizer) else 0
        messages = (*given, reply)
        same = self._n_same(messages)
        return Turn(
            messages=messages[same:],
            n_messages_kept=same,
            keep=keep,
            ids=ids[keep:],
            n_kv=outcome.n_kv,
            tokenizer=tokenizer,
            finish=outcome.finish,
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


@frozen
class Answers:
    """Tool results that continue a log, as long as it is of the ``version`` in which their calls are open."""

    messages: tuple[Message, ...]
    version: int


class Agent:
    """A named conversation in a Memory. Cheap handle: two handles of one name are the same agent, until it is deleted.

    Turns of one agent run one after another; different agents never wait for each other's turns.
    """

    __slots__ = ("_log", "_memory")

    def __init__(self, memory: Memory, log: Log) -> None:
        self._memory, self._log = memory, log

    def __repr__(self) -> str:
        log = self._log
        state = "deleted" if log.is_deleted else f"turns={len(log.turns)} tokens={len(log.ids):,}"
        return f"Agent({log.name!r} {state})"

    @property
    def _live(self) -> Log:
        """The log. Raises AgentDeletedError."""
        self._log.ensure_exists()
        return self._log

    @property
    def name(self) -> str:
        """The agent's name, as given."""
        return self._log.name

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, system message first; a copy."""
        return shapes.copied(self._live.messages)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that are stored with the agent: offered in each turn that names no others."""
        return self._live.tools

    @property
    def n_tokens(self) -> int:
        """Tokens of the conversation so far, as the model saw and made them."""
        return len(self._live.ids)

    @property
    def info(self) -> AgentInfo:
        """The agent at a glance."""
        return self._live.info

    def say(
        self,
        message: object,
        *,
        tools: Sequence[Any] = (),
        tool_choice: str | Mapping[str, str] = "auto",
        parallel_tool_calls: bool = True,
        schema: Any = None,
        sampling: Sampling = Sampling(),
        max_tokens: int = 512,
        stop: str | Sequence[str] = (),
        logits_processors: Sequence[LogitsProcessor] = (),
        template: Mapping[str, Any] | None = None,
        raw: bool = False,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Reply:
        """One more turn; waits for the reply. Raises as ``Memory.generate`` does; the log is intact then."""
        return self._memory.generate(
            message,
            agent=self,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            schema=schema,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            logits_processors=logits_processors,
            template=template,
            raw=raw,
            priority=priority,
            timeout_s=timeout_s,
        )

    def stream(
        self,
        message: object,
        *,
        tools: Sequence[Any] = (),
        tool_choice: str | Mapping[str, str] = "auto",
        parallel_tool_calls: bool = True,
        schema: Any = None,
        sampling: Sampling = Sampling(),
        max_tokens: int = 512,
        stop: str | Sequence[str] = (),
        logits_processors: Sequence[LogitsProcessor] = (),
        template: Mapping[str, Any] | None = None,
        raw: bool = False,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Generation:
        """One more turn, as a handle at once."""
        return self._memory.stream(
            message,
            agent=self,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            schema=schema,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            logits_processors=logits_processors,
            template=template,
            raw=raw,
            priority=priority,
            timeout_s=timeout_s,
        )

    def give(
        self,
        *results: ToolResult,
        tools: Sequence[Any] = (),
        tool_choice: str | Mapping[str, str] = "auto",
        parallel_tool_calls: bool = True,
        schema: Any = None,
        sampling: Sampling = Sampling(),
        max_tokens: int = 512,
        stop: str | Sequence[str] = (),
        logits_processors: Sequence[LogitsProcessor] = (),
        template: Mapping[str, Any] | None = None,
        raw: bool = False,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Reply:
        """Answer the open tool calls and continue.

        Raises ToolResultError, before any work, for an unknown, missing or repeated id, or where no call is open. Of
        two threads that answer the same calls, the second gets it.
        """
        return self._memory.generate(
            self._answers(results),
            agent=self,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            schema=schema,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            logits_processors=logits_processors,
            template=template,
            raw=raw,
            priority=priority,
            timeout_s=timeout_s,
        )

    def rewind(self, turns: int = 1) -> None:
        """Forget the newest ``turns``: messages and ids, durable at the next flush; their KV is reused up to there.

        Raises UnsupportedParameterError for a number beyond the agent's turns, RequestError while a turn runs.
        """
        n_turns = len(self._live.turns)
        if not isinstance(turns, int) or isinstance(turns, bool) or not 1 <= turns <= n_turns:
            raise UnsupportedParameterError(f"turns must be between 1 and {n_turns}, the agent's turns: {turns!r}")
        self._memory._agents.rewind(self._live, turns)

    def pin(self, is_pinned: bool = True) -> None:
        """Keep this agent's KV, or no longer: it leaves memory after all others', and the disk's budget not at all.

        Durable when it returns. Budgets hold: pins say what goes last, and reserve nothing.
        """
        self._memory._agents.pin(self._live, bool(is_pinned))

    def delete(self) -> bool:
        """Delete the agent in all tiers; True when it existed.

        Every handle of it is dead then: but for ``name`` and ``delete()``, which gives False, each use raises
        AgentDeletedError. ``memory.agent(name)`` gives a new agent, of which the old handles know nothing.
        """
        return self._memory._agents.delete(self._log)

    def _answers(self, results: Sequence[ToolResult]) -> Answers:
        log = self._live
        version, messages = log.version, log.messages  # in this order: what moves in between is noticed later
        if not (messages and messages[-1].tool_calls):
            raise ToolResultError(f"agent {self.name!r} has no open tool calls; got {len(results)} results")
        return Answers(tuple(map(result_message, results)), version)

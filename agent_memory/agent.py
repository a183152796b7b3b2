"""Agent: a named conversation whose log is the truth."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from os import PathLike
from typing import Unpack

from agent_memory.config import Codec
from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.generation import Generation
from agent_memory.log.log import Log
from agent_memory.log.versions import Version
from agent_memory.observe.explain import CacheReport
from agent_memory.observe.plot import Plot
from agent_memory.prompt import messages as shapes
from agent_memory.requests.answering import answers_of, open_calls
from agent_memory.requests.asking import Asking
from agent_memory.requests.compacting import KEEP_TURNS, Summary
from agent_memory.requests.options import Options, Settings, takes_options
from agent_memory.types import AgentInfo, Message, Prompt, Reply, Tool, ToolCall, ToolResult
from agent_memory.views.page import Note, Page, Shown, Table
from agent_memory.views.units import ago, count, short, size

#: Newest messages that a notebook shows of an agent.
_SHOWN = 8


class Agent(Shown):
    """A named conversation in a Memory. Cheap handle: two handles of one name are the same agent, until it is deleted.

    Turns of one agent run one after another; different agents never wait for each other's turns.
    """

    __slots__ = ("_asking", "_log")

    def __init__(self, asking: Asking, log: Log) -> None:
        self._asking, self._log = asking, log

    def __repr__(self) -> str:
        log = self._log
        state = "deleted" if log.is_deleted else f"turns={len(log.turns)} tokens={len(log.ids):,}"
        if log.viewed is not None:
            state += f", version {log.viewed[1]}, read-only"
        return f"Agent({log.name!r} {state})"

    def _page(self) -> Page:
        log = self._log
        if log.is_deleted:
            return Page(f"Agent {log.name}, deleted")
        info = self._asking.info(log)
        title = f"Agent {log.name}: {count(info.n_turns, 'turn')}, {count(info.n_tokens, 'token')}"
        facts = [f"last used {ago(info.used_s)}", *(["pinned"] if info.is_pinned else [])]
        facts += [f"{tier} {n:,} tokens, {size(info.tier_bytes[tier])}" for tier, n in info.tier_tokens.items()]
        shown = [one for one in log.messages if one.role == "system"][:1]
        newest = [one for one in log.messages if one.role != "system"][-_SHOWN:]
        rows = [(one.role, short(one.content, 200)) for one in (*shown, *newest)]
        left_out = len(log.messages) - len(rows)
        facts += [f"{count(left_out, 'older message')} not shown"] if left_out else []
        return Page(title, [Note(", ".join(facts)), *([Table(rows)] if rows else [])])

    @property
    def _live(self) -> Log:
        """The log. Raises AgentDeletedError."""
        self._log.ensure_exists()
        return self._log

    @property
    def _own(self) -> Log:
        """The log, to be changed. Raises as ``_now`` does, and ReadOnlyError where it is only read."""
        log = self._now
        self._asking.ensure_writable(log, "change an agent or add a turn to it")
        return log

    @property
    def _now(self) -> Log:
        """The log as it is now. Raises AgentDeletedError, and UnsupportedParameterError for a view of a version."""
        log = self._live
        if log.viewed is not None:
            raise UnsupportedParameterError(
                f"this is a read-only view of version {log.viewed[1]} of agent {repr_of(log.name)}: fork it, or rewind "
                "the agent to it"
            )
        return log

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
    def open_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the newest reply that wait for their results; a result that is kept for ``give`` counts."""
        log = self._live
        answered = {id for id, _ in log.facts.answered}
        return tuple(call for call in open_calls(log) if call.id not in answered)

    @property
    def n_tokens(self) -> int:
        """Tokens of the conversation so far, as the model read and generated them."""
        return len(self._live.ids)

    @property
    def info(self) -> AgentInfo:
        """The agent at a glance."""
        return self._asking.info(self._live)

    @takes_options()
    def say(self, message: Prompt, **options: Unpack[Options]) -> Reply:
        """Take one more turn and wait for the reply. Raises as ``Memory.generate`` does; the log is intact then."""
        with self._asking.start(message, self._own, Settings.of(Agent.say, options)) as handle:
            return handle.result()

    @takes_options()
    def stream(self, message: Prompt, **options: Unpack[Options]) -> Generation:
        """Start one more turn and return its handle."""
        return self._asking.start(message, self._own, Settings.of(Agent.stream, options))

    @takes_options()
    def give(self, *results: ToolResult, **options: Unpack[Options]) -> Reply:
        """Answer the open tool calls and continue; results that ``run_tools`` kept when it paused come along.

        Raises ToolResultError, before any work, for an unknown, missing or repeated id, or where no call is open. Of
        two threads that answer the same calls, the second gets it.
        """
        settings = Settings.of(Agent.give, options)
        with self._asking.start(answers_of(self._own, results), self._own, settings) as handle:
            return handle.result()

    @takes_options()
    def explain(self, messages: Prompt | None = None, **options: Unpack[Options]) -> CacheReport:
        """Explain what a turn with ``messages`` would reuse, and why no more; computes and changes nothing.

        ``messages``: a str goes on, a list is the whole history, as in ``Memory.generate``; None: the conversation as
        it stands. Raises UnknownAgentError for an agent that is not stored yet.
        """
        return self._asking.explaining.explain(messages, self._live, Settings.of(Agent.explain, options))

    def fork(self, name: str, *, at: int | str | Version | None = None, temporary: bool = False) -> Agent:
        """Return a new agent that goes on from here; no KV is copied before it says something.

        ``at``: the number of turns to begin with, the label of a checkpoint, or a version; None: all finished turns.
        System prompt, tools, settings, and the checkpoints on the way come along. Durable at the next flush.
        ``temporary``: never on disk, gone when the Memory closes. Raises ConfigError where the name is taken.
        """
        self._asking.agents.ensure_own(self._live, "fork it", "transcript")
        fork = self._asking.versions.fork(self._live, name, at, is_temporary=bool(temporary))
        return Agent(self._asking, fork)

    def checkpoint(self, label: str) -> Version:
        """Keep this moment under a label, for ``rewind(to=label)`` and ``fork(at=label)``, and return its version.

        It stays until ``prune`` or a checkpoint of the same label. Durable at the next flush; costs no KV.
        """
        return self._asking.versions.checkpoint(self._own, label)

    def rewind(self, turns: int = 1, *, to: str | Version | None = None) -> None:
        """Take the newest ``turns`` back, or go to a checkpoint's label or a version, whether it is earlier or not.

        What is left behind stays in ``history()``, and its KV is reused when you go back there. Durable at the next
        flush. Raises UnsupportedParameterError for turns beyond the agent's and for both at once, RequestError while a
        turn runs.
        """
        versions, log = self._asking.versions, self._own
        if to is not None:
            if turns != 1:
                raise UnsupportedParameterError(
                    f"rewind takes turns or to=, not both: turns is {repr_of(turns)}, to is {repr_of(to)}"
                )
            versions.rewind_to(log, to)
        else:
            versions.rewind(log, turns)

    def history(self) -> list[Version]:
        """Return what the agent was at earlier moments, the oldest first: checkpoints, and what was left behind."""
        return self._asking.versions.history(self._live)

    def at(self, version: int | str | Version) -> Agent:
        """Return a read-only view of a version: its messages, tokens and info. It can be forked, and says nothing.

        ``version``: its number, its label, or what ``history`` listed.
        """
        return Agent(self._asking, self._asking.versions.view(self._now, version))

    def transaction(self) -> AbstractContextManager[None]:
        """Return a context manager: where its block raises, the agent is again what it was before, log and KV.

        What the block had said stays in ``history()`` as rolled back. A turn that still runs then is cancelled.
        """
        return self._asking.versions.transaction(self._own)

    def prune(self, keep: int = 0, *, checkpoints: bool = False) -> int:
        """Drop all versions but the newest ``keep``, and with ``checkpoints`` those too; return how many.

        Messages and KV that nothing else refers to leave the disk.
        """
        return self._asking.versions.prune(self._own, keep, checkpoints=checkpoints)

    def compact(self, keep_turns: int = KEEP_TURNS, summary: Summary = None) -> None:
        """Go on from the newest turns: the system prompt, a summary of the older ones, and the last ``keep_turns``.

        ``summary``: a text, or a function that makes one of the messages that are left out. The older turns stay in
        ``history()``. Nothing changes where there are no more turns. Raises RequestError while a turn runs.
        """
        self._asking.compacting.compact(self._own, keep_turns, summary)

    def export(
        self,
        file: str | PathLike[str],
        *,
        codec: Codec | None = None,
        log_only: bool = False,
        key: bytes | Callable[[], bytes] | None = None,
    ) -> None:
        """Write the agent to one file, which ``memory.import_agent`` reads on any machine: log, versions, KV, digests.

        ``codec``: encode exact KV so, as ``Config.cold_codec`` does; None: as it is stored. ``log_only``: without KV.
        ``key``: seal the file under it, as ``Config.key`` is given; None: the file is not encrypted, though the store
        may be. Flushes first; replaces a file of that name whole, or leaves it. The file has every word of the
        conversation, its versions included. Raises StoreError, OutOfSpaceError, ConfigError for a bad key,
        UnsupportedParameterError for another codec.
        """
        self._asking.ensure_open()
        self._asking.moving.export(self._now, file, codec=codec, is_log_only=bool(log_only), key=key)

    def plot(self) -> Plot:
        """Draw the newest turns since the Memory was opened: time to the first token, tokens by origin, and bytes.

        Needs the extra ``plot``. Raises ClosedError or MissingExtraError.
        """
        return self._asking.plot(self._live)

    def pin(self, is_pinned: bool = True) -> None:
        """Keep this agent's KV, or no longer: it leaves memory after all others', and the disk's budget not at all.

        Durable when it returns. Budgets hold: pins say what goes last, and reserve nothing.
        """
        self._asking.agents.pin(self._own, bool(is_pinned))

    def delete(self) -> bool:
        """Delete the agent in all tiers; True when it existed.

        Every handle of it is dead then: but for ``name`` and ``delete()``, which gives False, each use raises
        AgentDeletedError. ``memory.agent(name)`` then makes a new agent; old handles stay dead.
        """
        return delete(self._asking, self._log if self._log.viewed is None else self._own)


def delete(asking: Asking, log: Log) -> bool:
    """Delete an agent. Raises UnsupportedParameterError for the log of a group's events."""
    if not log.is_deleted:
        asking.agents.ensure_own(log, "delete it", "delete()")
    return asking.agents.delete(log)


def log_of(agent: str | Agent | None, asking: Asking) -> Log | None:
    """The log that an argument ``agent=`` means: blank where no agent has that name yet, None for None.

    Raises AgentDeletedError, ConfigError for a bad name, UnsupportedParameterError for an agent of another Memory.
    """
    asking.ensure_open()
    if agent is None:
        return None
    if not isinstance(agent, Agent):
        return asking.log(agent)
    ensure_of(agent, asking)
    return agent._now


def ensure_of(agent: Agent, asking: Asking) -> None:
    """Raises UnsupportedParameterError where an agent belongs to another Memory."""
    if agent._asking is not asking:
        raise UnsupportedParameterError(
            f"{repr_of(agent)} is an agent of another Memory; give its name, or ask that one"
        )

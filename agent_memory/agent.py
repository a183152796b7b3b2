"""Agent: a named conversation whose log is the truth."""

from __future__ import annotations

from typing import Unpack

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.generation import Generation
from agent_memory.log.log import Log
from agent_memory.prompt import messages as shapes
from agent_memory.requests.answering import answers_of, open_calls
from agent_memory.requests.asking import Asking
from agent_memory.requests.options import Options, Settings, takes_options
from agent_memory.types import AgentInfo, Message, Prompt, Reply, Tool, ToolCall, ToolResult


class Agent:
    """A named conversation in a Memory. Cheap handle: two handles of one name are the same agent, until it is deleted.

    Turns of one agent run one after another; different agents never wait for each other's turns.
    """

    __slots__ = ("_asking", "_log")

    def __init__(self, asking: Asking, log: Log) -> None:
        self._asking, self._log = asking, log

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
        return self._live.info

    @takes_options()
    def say(self, message: Prompt, **options: Unpack[Options]) -> Reply:
        """Take one more turn and wait for the reply. Raises as ``Memory.generate`` does; the log is intact then."""
        with self._asking.start(message, self._live, Settings.of(Agent.say, options)) as handle:
            return handle.result()

    @takes_options()
    def stream(self, message: Prompt, **options: Unpack[Options]) -> Generation:
        """Start one more turn and return its handle."""
        return self._asking.start(message, self._live, Settings.of(Agent.stream, options))

    @takes_options()
    def give(self, *results: ToolResult, **options: Unpack[Options]) -> Reply:
        """Answer the open tool calls and continue; results that ``run_tools`` kept when it paused come along.

        Raises ToolResultError, before any work, for an unknown, missing or repeated id, or where no call is open. Of
        two threads that answer the same calls, the second gets it.
        """
        settings = Settings.of(Agent.give, options)
        with self._asking.start(answers_of(self._live, results), self._live, settings) as handle:
            return handle.result()

    def rewind(self, turns: int = 1) -> None:
        """Forget the newest ``turns``: messages and ids, durable at the next flush; their KV is reused up to there.

        Raises UnsupportedParameterError for a number beyond the agent's turns, RequestError while a turn runs.
        """
        n_turns = len(self._live.turns)
        if not isinstance(turns, int) or isinstance(turns, bool) or not 1 <= turns <= n_turns:
            raise UnsupportedParameterError(
                f"turns must be between 1 and {n_turns}, the agent's turns: {repr_of(turns)}"
            )
        self._asking.agents.rewind(self._live, turns)

    def pin(self, is_pinned: bool = True) -> None:
        """Keep this agent's KV, or no longer: it leaves memory after all others', and the disk's budget not at all.

        Durable when it returns. Budgets hold: pins say what goes last, and reserve nothing.
        """
        self._asking.agents.pin(self._live, bool(is_pinned))

    def delete(self) -> bool:
        """Delete the agent in all tiers; True when it existed.

        Every handle of it is dead then: but for ``name`` and ``delete()``, which gives False, each use raises
        AgentDeletedError. ``memory.agent(name)`` then makes a new agent; old handles stay dead.
        """
        return self._asking.agents.delete(self._log)


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
    return agent._live


def ensure_of(agent: Agent, asking: Asking) -> None:
    """Raises UnsupportedParameterError where an agent belongs to another Memory."""
    if agent._asking is not asking:
        raise UnsupportedParameterError(
            f"{repr_of(agent)} is an agent of another Memory; give its name, or ask that one"
        )

"""The tool loop: the one place where this library runs tools, and only when asked to."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from agent_memory.errors import AgentMemoryError, ToolResultError, UnsupportedParameterError, repr_of
from agent_memory.log.log import Log
from agent_memory.prompt.messages import copied
from agent_memory.requests.answering import answers_of, open_calls
from agent_memory.requests.asking import Asking
from agent_memory.requests.options import Settings
from agent_memory.requests.tool_running import Ran, Runs
from agent_memory.tools import as_tools
from agent_memory.types import Reply, Tool, ToolCall, ToolResult
from agent_memory.usage import Usage

if TYPE_CHECKING:
    from agent_memory.recall.episode_types import StepRecorder

_NOTHING = Usage(prompt_tokens=0, cached_tokens=0, computed_tokens=0, output_tokens=0, tier="none")


def _check_rounds(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedParameterError(f"{attribute.name} must be an int of at least 1, got {repr_of(value)}")


def _check_time(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value <= sys.float_info.max):
        raise UnsupportedParameterError(
            f"{attribute.name} must be a positive number of seconds or None, got {repr_of(value)}"
        )


def _check_bool(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise UnsupportedParameterError(f"{attribute.name} must be a bool, got {repr_of(value)}")


def _check_episode(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not callable(getattr(value, "step", None)):
        raise UnsupportedParameterError(f"episode must have a method step, as an Episode has; got {value!r:.80}")


def _check_functions(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not all(callable(function) for function in value):
        raise UnsupportedParameterError("functions must be Python functions with typed parameters")


@frozen(kw_only=True)
class ToolRun:
    """What ``run_tools`` is asked beside its message and its options, checked. ``episode`` records each call."""

    episode: StepRecorder | None = field(default=None, validator=_check_episode)
    max_rounds: int = field(default=8, validator=_check_rounds)
    tool_timeout_s: float | None = field(default=None, validator=_check_time)
    concurrent: bool = field(default=False, validator=_check_bool)
    functions: Sequence[Callable[..., Any]] = field(validator=_check_functions)
    tools: tuple[Tool, ...] = field(init=False)

    @tools.default
    def _tools(self) -> tuple[Tool, ...]:
        tools = as_tools(self.functions)
        if not tools:  # an empty list would offer the agent's stored tools, for which there is nothing to run
            raise UnsupportedParameterError(
                "run_tools needs at least one function to run, got 0; say() and give() leave an agent's calls to you"
            )
        return tools


class ToolTurn:
    """Asks, runs what the model calls, and gives it the results, until it calls nothing. Caller's thread.

    - Where a call pauses, the others of its reply still run; their results are stored with the agent, and the calls
      stay open in its log.
    - Without a message a turn with open calls goes on: with results that are given and kept; other calls are run.
    - ``find`` gives the agent's log, which another thread may make meanwhile where the agent is new.
    """

    def __init__(self, asking: Asking, find: Callable[[], Log | None], asked: ToolRun, settings: Settings) -> None:
        self._asking, self._find, self._asked = asking, find, asked
        self._settings = attrs.evolve(settings, tools=asked.tools)
        by_name = {tool.name: (tool, function) for tool, function in zip(asked.tools, asked.functions, strict=True)}
        self._runs = Runs(by_name, asked.tool_timeout_s, asked.concurrent)

    def run(self, message: object, results: Sequence[ToolResult]) -> Reply:
        """The last reply. Raises UnsupportedParameterError, ToolResultError, and as ``Memory.generate`` does."""
        if message is not None and results:
            raise UnsupportedParameterError("give run_tools a message or results=, not both: results answer open calls")
        self._asking.ensure_writable(self._log, "add a turn to an agent")
        try:
            if message is None:
                reply, n_left = self._resumed(results), self._asked.max_rounds - 1
            else:
                reply, n_left = self._ask(message), self._asked.max_rounds
            for _ in range(n_left):
                if not reply.tool_calls or reply.paused:
                    break
                reply = self._answered(reply, reply.tool_calls)
        finally:
            self._asking.n_tools_abandoned += self._runs.n_abandoned
        return reply

    @property
    def _log(self) -> Log:
        log = self._find()
        if log is None:
            raise UnsupportedParameterError("run_tools needs an agent, whose log holds the calls")
        return log

    def _ask(self, prompt: object) -> Reply:
        with self._asking.start(prompt, self._log, self._settings) as handle:
            return handle.result()

    def _resumed(self, results: Sequence[ToolResult]) -> Reply:
        """The reply after the open calls of the log. Raises ToolResultError, before anything runs."""
        log = self._log
        answered = {message.tool_call_id for message in answers_of(log, results).messages}
        left = [call for call in open_calls(log) if call.id not in answered]
        if missing := sorted({call.name for call in left} - self._runs.tools.keys()):
            raise ToolResultError(
                f"a call of {missing[0]} is open and has no result, and there is no such function among "
                f"{sorted(self._runs.tools)}: give its result in results=, or the function"
            )
        message = copied(log.messages[-1:])[0]
        open_reply = Reply(
            text=message.content,
            finish="tool_calls",
            usage=_NOTHING,
            message=message,
            reasoning=message.reasoning,
            tool_calls=message.tool_calls,
        )
        return self._answered(open_reply, left, results)

    def _answered(self, reply: Reply, calls: Sequence[ToolCall], given: Sequence[ToolResult] = ()) -> Reply:
        """The reply to the results of ``calls``, given and kept ones; ``reply`` itself where a call paused."""
        ran: list[Ran] = []
        asked = self._log
        try:
            for one in self._runs.run(calls):
                ran.append(one)
                _record(one, self._asked.episode)
            asked.ensure_exists()  # by its name, an agent that a function has deleted would be found as a new one
            answers = answers_of(self._log, [*given, *_results(ran)])
            paused = {one.call.id: one.pause.reason for one in ran if one.pause is not None}
            if not paused:
                return self._ask(answers)
        except BaseException:  # also Ctrl-C: what has run is never run again
            self._keep([*given, *_results(ran)])
            raise
        self._asking.keep_results(self._log, answers)
        return attrs.evolve(reply, paused=paused)

    def _keep(self, results: Sequence[ToolResult]) -> None:
        """Store the results that there are: whoever goes on with the open calls runs none of these again."""
        with contextlib.suppress(AgentMemoryError):  # what ended the turn counts
            self._asking.keep_results(self._log, answers_of(self._log, results))


def _results(ran: Sequence[Ran]) -> list[ToolResult]:
    return [one.result for one in ran if one.result is not None]


def _record(ran: Ran, episode: StepRecorder | None) -> None:
    """A call that has its result as a step; one that paused is none yet."""
    if episode is not None and ran.result is not None:
        episode.step(
            ran.call.name,
            ok=not ran.result.is_error,
            observation=str(ran.result.content),
            parameters=ran.call.arguments,
            latency_ms=ran.latency_ms,
        )

"""How calls run: in the caller's thread, or on threads of their own, where they may take too long or be async."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import json
import math
import threading
import time
import typing
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from attrs import define, field, frozen

from agent_memory.tools import Pause, fits, structured
from agent_memory.types import Tool, ToolCall, ToolResult

_MOST_FAILURES = 3  #: in a row; one is bad luck, two a second try, and a model that goes on will not stop by itself

Function = Callable[..., Any]


@frozen
class Ran:
    """How one call ended: with a result, or paused."""

    call: ToolCall
    result: ToolResult | None = None
    pause: Pause | None = None
    has_failed: bool = False  #: the function raised, or took too long; what the model did wrong is no failure of it
    latency_ms: float = 0.0


@define
class Runs:
    """Runs the calls of one turn. One thread at a time.

    - One after another in the caller's thread; on a thread each where there is a time limit, where they run
      concurrently, and where a function is async: its coroutine has an event loop of its own.
    - A call that takes longer than ``timeout_s`` is given up: its coroutine is cancelled, its thread abandoned.
    - A function that failed ``_MOST_FAILURES`` times in a row is not run again in this turn. It stays in the prompt:
      taking it out would change the prompt's beginning, and all KV after that.
    """

    tools: Mapping[str, tuple[Tool, Function]]
    timeout_s: float | None = None
    is_concurrent: bool = False
    n_abandoned: int = 0
    _failures: Counter[str] = field(factory=Counter, init=False)

    def run(self, calls: Sequence[ToolCall]) -> Iterator[Ran]:
        """Run calls and yield how each ended, in their order.

        Raises what is no Exception (SystemExit, Ctrl-C), after the other concurrent calls that have ended.
        """
        if not self.is_concurrent:
            for call in calls:
                yield self._noted(self._start(call).wait())
            return
        started = list[_Started]()
        try:
            started.extend(self._start(call) for call in calls)
            while started:
                yield self._noted(started.pop(0).wait())
        except GeneratorExit:
            raise
        except BaseException:  # also Ctrl-C: the caller keeps what has ended, and runs it never again
            yield from self._rest(started)
            raise

    def _rest(self, started: Sequence[_Started]) -> list[Ran]:
        """How those calls ended that have ended, whatever struck; one that raised no Exception is left out."""
        found: list[Ran] = []
        for one in started:
            if one.has_ended:
                with contextlib.suppress(BaseException):  # what struck first is raised
                    found.append(self._noted(one.wait()))
        return found

    def _start(self, call: ToolCall) -> _Started:
        """Start a call."""
        tool, function = self.tools[call.name]
        if self._failures[call.name] >= _MOST_FAILURES:
            said = f"{call.name} is not run again in this turn: it failed {_MOST_FAILURES} times in a row"
            return _Started(lambda: Ran(call, ToolResult(call.id, said, is_error=True)))
        if (misfit := _misfit(call, tool)) is not None:
            return _Started(lambda: Ran(call, ToolResult(call.id, misfit, is_error=True)))
        started = time.perf_counter()
        if self.timeout_s is None and not self.is_concurrent:
            return _Started(lambda: self._ended(call, lambda: _here(lambda: _called(function, call)), started))
        thread = _OnThread(lambda: _called(function, call))
        return _Started(
            lambda: self._ended(call, lambda: thread.result(started, self.timeout_s), started, thread), thread
        )

    def _ended(self, call: ToolCall, result: Callable[[], str], started: float, thread: _OnThread | None = None) -> Ran:
        """The end of a call that ``result`` waits for."""
        pause, has_failed = None, False
        try:
            text = result()
        except Pause as raised:
            text, pause = "", raised
        except _TakesTooLong:
            self.n_abandoned += 1
            text, has_failed = f"{call.name} gave no result within {self.timeout_s:g} s; it may still be running", True
        except Exception as error:  # noqa: BLE001 - a user's function: its failure is the model's to read
            text, has_failed = _described(error), True
        answer = None if pause else ToolResult(call.id, _readable(text), is_error=has_failed)
        ended = (thread.ended if thread else None) or time.perf_counter()  # others may have been waited for since
        return Ran(call, answer, pause, has_failed, (ended - started) * 1e3)

    def _noted(self, ran: Ran) -> Ran:
        """``ran``, its failure counted; the result of a function's last failure says that it is the last."""
        name = ran.call.name
        if not ran.has_failed:
            if ran.result is not None and not ran.result.is_error:
                self._failures[name] = 0
            return ran
        self._failures[name] += 1
        if self._failures[name] != _MOST_FAILURES or ran.result is None:
            return ran
        told = f"{ran.result.content}\n{name} failed {_MOST_FAILURES} times in a row: it is not run again in this turn"
        return Ran(ran.call, ToolResult(ran.call.id, told, is_error=True), None, True, ran.latency_ms)


class _TakesTooLong(Exception):
    pass


@frozen(eq=False)
class _Started:
    """A call that was started: ``wait`` returns how it ended."""

    wait: Callable[[], Ran]
    thread: _OnThread | None = None  #: None: nothing runs before ``wait`` is called

    @property
    def has_ended(self) -> bool:
        """True if ``wait`` returns at once."""
        return self.thread is None or self.thread.ended is not None


class _OnThread:
    """A call on a daemon thread of its own, with the caller's context variables."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._answer: SimpleQueue[tuple[str, BaseException | None]] = SimpleQueue()
        self._cancel: Callable[[], object] = lambda: None
        self._is_given_up = False
        self.ended: float | None = None  #: perf_counter time
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._serve, work), name="agent_memory-tool", daemon=True).start()

    def result(self, started: float, timeout_s: float | None) -> str:
        """Wait for the result's text, or raise what the call raised. Raises _TakesTooLong."""
        left = None if timeout_s is None else max(0.0, started + timeout_s - time.perf_counter())
        try:
            text, error = self._answer.get(timeout=left if left is None else min(left, threading.TIMEOUT_MAX / 2))
        except Empty:
            self._is_given_up = True  # first: a coroutine that has not begun looks at it once it can be cancelled
            self._cancel()
            raise _TakesTooLong from None
        if error is not None:
            raise error
        return text

    def _serve(self, work: Callable[[], Any]) -> None:
        text = ""
        failure: BaseException | None = None
        try:
            value = work()
            if inspect.isawaitable(value):
                value = asyncio.run(self._awaited(value))
            text = _shown(value)
        except asyncio.CancelledError:
            failure = RuntimeError("the coroutine was cancelled")
        except BaseException as error:  # noqa: BLE001 - not this thread's: raised again where the result is awaited
            failure = error
        self.ended = time.perf_counter()
        self._answer.put((text, failure))

    async def _awaited(self, value: Awaitable[Any]) -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(value)

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the call has ended
                loop.call_soon_threadsafe(task.cancel)

        self._cancel = cancel
        if self._is_given_up:
            task.cancel()
        return await task


def _here(work: Callable[[], Any]) -> str:
    """The text of what ``work`` gives in this thread, which may run an event loop: coroutines run on another."""
    value = work()
    return _OnThread(lambda: value).result(0.0, None) if inspect.isawaitable(value) else _shown(value)


def _misfit(call: ToolCall, tool: Tool) -> str | None:
    """Why a call's arguments do not fit the function's types; None where they do."""
    properties = tool.parameters.get("properties", {})
    unknown = [name for name in call.arguments if name not in properties]
    missing = [name for name in tool.parameters.get("required", ()) if name not in call.arguments]
    wrong = [name for name, value in call.arguments.items() if not unknown and not fits(value, properties[name])]
    said = {"unknown arguments": unknown, "missing arguments": missing, "arguments of the wrong type": wrong}
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in said.items() if names) or None


def _called(function: Function, call: ToolCall) -> Any:
    """What the function returns for a call's arguments."""
    hints = typing.get_type_hints(function)
    return function(**{name: structured(value, hints[name]) for name, value in call.arguments.items()})


def _shown(value: Any) -> str:
    """A result's text: a str as it is, else JSON, which has no numbers such as NaN: those are written as strings."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        json.dumps(value)  # raises what is wrong besides
    spelled = _spelled(value)
    return spelled if isinstance(spelled, str) else json.dumps(spelled, ensure_ascii=False, allow_nan=False)


def _spelled(value: Any) -> Any:
    """``value`` with each number that JSON does not have in words: NaN, Infinity or -Infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {_spelled(key): _spelled(one) for key, one in value.items()}
    return [_spelled(one) for one in value] if isinstance(value, (list, tuple)) else value


def _described(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a user's class: its __str__ may fail as its function did
        return type(error).__name__


def _readable(text: str) -> str:
    """``text`` with lone surrogates (a file's name may have some) written as escapes: no prompt can hold them."""
    return text.encode("utf-8", "backslashreplace").decode()

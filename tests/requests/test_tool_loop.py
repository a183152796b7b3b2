"""run_tools for real use: async functions, time limits, calls side by side, failing tools, and turns that pause."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    AgentDeletedError,
    Config,
    Memory,
    Pause,
    RuleRedactor,
    ToolResult,
    ToolResultError,
    UnsupportedParameterError,
)
from tests.parts.scripted import scripted


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def told(memory: Memory, name: str = "ann") -> list[str]:
    """The results that an agent has read."""
    return [message.content for message in memory.agent(name).messages if message.role == "tool"]


@pytest.fixture
def opened() -> Iterator[Callable[..., Memory]]:
    memories: list[Memory] = []

    def open_(*replies: str, path: str | Path = ":memory:", config: Config | None = None) -> Memory:
        memories.append(Memory(scripted(*replies), path, config=config or Config()))
        return memories[-1]

    yield open_
    for memory in memories:
        memory.close()


async def later(n: int) -> int:
    """Double, later."""
    await asyncio.sleep(0)
    return 2 * n


def sleepy(n: int) -> str:
    """Sleep."""
    time.sleep(n)
    return "awake"


def pay(amount: int) -> str:
    """Pay."""
    if amount > 5:
        raise Pause(f"{amount} is much")
    return f"paid {amount}"


# --- async functions ---


def test_an_async_function_runs_with_and_without_an_event_loop_around_it(opened: Callable[..., Memory]) -> None:
    memory = opened(call("later", n=1), "Two.", call("later", n=2), "Four.")
    assert memory.run_tools("ann", "go", [later]).text == "Two."

    async def within() -> str:
        return memory.run_tools("ann", "go", [later]).text  # blocks this loop, and must not need it

    assert asyncio.run(within()) == "Four."
    assert told(memory) == ["2", "4"]


def test_a_function_that_returns_an_awaitable_is_awaited(opened: Callable[..., Memory]) -> None:
    def plain(n: int) -> Any:
        """Say it later."""
        return later(n)

    memory = opened(call("plain", n=3), "Six.")
    memory.run_tools("ann", "go", [plain])
    assert told(memory) == ["6"]


def test_what_an_async_function_raises_is_the_models_to_read(opened: Callable[..., Memory]) -> None:
    async def broken() -> str:
        """Break."""
        raise OSError("no network")

    async def cancelled() -> str:
        """Cancel itself."""
        raise asyncio.CancelledError

    memory = opened(call("broken") + call("cancelled"), "I see.")
    assert memory.run_tools("ann", "go", [broken, cancelled]).text == "I see."
    assert told(memory) == ["Error: OSError: no network", "Error: RuntimeError: the coroutine was cancelled"]


def test_functions_on_threads_see_the_callers_context(opened: Callable[..., Memory]) -> None:
    user = contextvars.ContextVar("user", default="nobody")
    user.set("ann")

    def who() -> str:
        """Who asks."""
        return user.get()

    memory = opened(call("who"), "Ann.")
    memory.run_tools("ann", "go", [who], tool_timeout_s=60)
    assert told(memory) == ["ann"]


# --- time limits ---


def test_a_call_that_takes_too_long_gets_an_error_and_its_thread_is_counted(opened: Callable[..., Memory]) -> None:
    is_over = threading.Event()

    def hang() -> str:
        """Hang."""
        is_over.wait(60)
        return "too late"

    memory = opened(call("hang"), "It hangs.", "Fine.")
    assert memory.run_tools("ann", "go", [hang], tool_timeout_s=0.05).text == "It hangs."
    is_over.set()
    assert told(memory) == ["Error: hang gave no result within 0.05 s; it may still be running"]
    assert memory.stats().tools_abandoned == 1
    assert memory.agent("ann").say("and now?").text == "Fine.", "what comes too late reaches nobody"


def test_a_coroutine_that_takes_too_long_is_cancelled(opened: Callable[..., Memory]) -> None:
    ended = threading.Event()

    async def hang() -> str:
        """Hang."""
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return "too late"

    memory = opened(call("hang"), "It hangs.")
    memory.run_tools("ann", "go", [hang], tool_timeout_s=0.05)
    assert ended.wait(10)
    assert memory.stats().tools_abandoned == 1


def test_a_call_within_its_time_gives_its_result(opened: Callable[..., Memory]) -> None:
    memory = opened(call("sleepy", n=0), "Good.")
    memory.run_tools("ann", "go", [sleepy], tool_timeout_s=60)
    assert told(memory) == ["awake"]
    assert memory.stats().tools_abandoned == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"tool_timeout_s": 0},
        {"tool_timeout_s": 10**400},
        {"tool_timeout_s": "1"},
        {"tool_timeout_s": True},
        {"concurrent": 1},
    ],
)
def test_wrong_limits_are_refused_before_any_work(opened: Callable[..., Memory], bad: dict[str, Any]) -> None:
    memory = opened()
    with pytest.raises(UnsupportedParameterError, match=next(iter(bad))):
        memory.run_tools("ann", "go", [pay], **bad)
    assert memory.agents() == []


# --- side by side ---


def test_concurrent_calls_of_one_reply_wait_for_one_another_and_keep_their_order(opened: Callable[..., Memory]) -> None:
    meeting = threading.Barrier(3, timeout=30)

    def meet(name: str) -> str:
        """Meet the others: alone it would fail."""
        meeting.wait()
        return name

    memory = opened(call("meet", name="a") + call("meet", name="b") + call("meet", name="c"), "All.")
    memory.run_tools("ann", "go", [meet], concurrent=True)
    assert told(memory) == ["a", "b", "c"]


def test_without_it_they_run_one_after_another_in_the_callers_thread(opened: Callable[..., Memory]) -> None:
    seen = []

    def note(n: int) -> str:
        """Note."""
        seen.append((n, threading.get_ident()))
        return "noted"

    memory = opened(call("note", n=1) + call("note", n=2), "Done.")
    memory.run_tools("ann", "go", [note])
    assert seen == [(1, threading.get_ident()), (2, threading.get_ident())]


# --- a tool that keeps failing ---


def test_a_tool_that_keeps_failing_is_taken_out_for_the_turn_and_the_model_is_told(
    opened: Callable[..., Memory],
) -> None:
    n_runs = []

    def broken(n: int) -> str:
        """Break."""
        n_runs.append(n)
        raise OSError("down")

    memory = opened(*[call("broken", n=n) for n in range(5)], "I give up.", call("broken", n=9), "Again.")
    assert memory.run_tools("ann", "go", [broken]).text == "I give up."
    first, second, third, fourth, fifth = told(memory)
    assert first == second == "Error: OSError: down"
    assert third == "Error: OSError: down\nbroken failed 3 times in a row: it is not run again in this turn"
    assert fourth == fifth == "Error: broken is not run again in this turn: it failed 3 times in a row"
    assert n_runs == [0, 1, 2]
    memory.run_tools("ann", "once more", [broken])
    assert n_runs == [0, 1, 2, 9], "another turn tries again"


def test_a_success_in_between_and_wrong_arguments_count_for_nothing(
    opened: Callable[..., Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)  # nothing holds arguments to their types

    def odd(n: int) -> str:
        """Fail for odd numbers."""
        if n % 2:
            raise ValueError("odd")
        return "even"

    memory = opened(*[call("odd", n=n) for n in (1, 3, 2, 1, "x", 3, 2)], "Done.")
    assert memory.run_tools("ann", "go", [odd]).text == "Done."
    wrong = "Error: arguments of the wrong type: n"
    odd_, even = "Error: ValueError: odd", "even"
    assert told(memory) == [odd_, odd_, even, odd_, wrong, odd_, even]


def test_a_taken_out_tool_changes_no_token_of_the_prompt(opened: Callable[..., Memory]) -> None:
    def broken() -> str:
        """Break."""
        raise OSError("down")

    memory = opened(*[call("broken")] * 5, "I give up.")
    reply = memory.run_tools("ann", "go", [broken])
    assert reply.usage.miss is None
    assert reply.usage.computed_tokens < 120  # the last result alone; the tools stand where they stood


# --- turns that pause ---


def test_a_paused_turn_stays_open_and_says_which_calls_wait(opened: Callable[..., Memory]) -> None:
    memory = opened(call("pay", amount=9), "Paid.")
    reply = memory.run_tools("ann", "Pay 9.", [pay])
    [asked] = reply.tool_calls
    assert (reply.finish, reply.paused) == ("tool_calls", {asked.id: "9 is much"})
    ann = memory.agent("ann")
    assert [one.id for one in ann.open_calls] == [asked.id]
    assert told(memory) == []
    assert ann.give(ToolResult(asked.id, "approved")).text == "Paid."
    assert told(memory) == ["approved"]
    assert ann.open_calls == ()


def test_a_mixed_reply_keeps_the_results_that_there_are(opened: Callable[..., Memory]) -> None:
    n_paid = []

    def paying(amount: int) -> str:
        """Pay."""
        n_paid.append(amount)
        return pay(amount)

    memory = opened(call("paying", amount=1) + call("paying", amount=9) + call("paying", amount=2), "All paid.")
    reply = memory.run_tools("ann", "Pay all.", [paying])
    assert list(reply.paused) == [reply.tool_calls[1].id]
    assert n_paid == [1, 9, 2], "what comes after the paused call runs as well"
    assert [one.arguments["amount"] for one in memory.agent("ann").open_calls] == [9]
    done = memory.run_tools("ann", results=[ToolResult(reply.tool_calls[1].id, "paid 9")], functions=[paying])
    assert (done.text, done.paused) == ("All paid.", {})
    assert told(memory) == ["paid 1", "paid 9", "paid 2"]
    assert n_paid == [1, 9, 2], "nothing is run twice"


def test_a_paused_call_without_a_result_is_run_again_and_may_pause_again(opened: Callable[..., Memory]) -> None:
    approved: list[int] = []

    def paying(amount: int) -> str:
        """Pay."""
        if amount not in approved:
            raise Pause("not approved")
        return f"paid {amount}"

    memory = opened(call("paying", amount=7) + call("paying", amount=9), "All paid.")
    first = memory.run_tools("ann", "Pay.", [paying])
    approved.append(7)
    again = memory.run_tools("ann", functions=[paying])
    assert again.paused == {first.tool_calls[1].id: "not approved"}
    assert (again.tool_calls, again.usage.prompt_tokens) == (first.tool_calls, 0)
    approved[:] = [9]  # 7 has its result
    assert memory.run_tools("ann", functions=[paying]).text == "All paid."
    assert told(memory) == ["paid 7", "paid 9"]


def test_what_ran_beside_a_call_that_ends_the_program_is_not_run_again(opened: Callable[..., Memory]) -> None:
    has_paid, ends, paid = threading.Event(), [True], list[int]()

    def quit_(n: int) -> str:
        """Quit."""
        has_paid.wait(30)
        time.sleep(0.05)  # its thread ends
        if ends.pop() if ends else False:
            raise SystemExit(3)
        return "stayed"

    def pay_once(amount: int) -> str:
        """Pay."""
        paid.append(amount)
        has_paid.set()
        return f"paid {amount}"

    memory = opened(call("quit_", n=1) + call("pay_once", amount=2), "Done.")
    with pytest.raises(SystemExit):
        memory.run_tools("ann", "go", [quit_, pay_once], concurrent=True)
    assert memory.run_tools("ann", None, [quit_, pay_once], concurrent=True).text == "Done."
    assert paid == [2]
    assert told(memory) == ["stayed", "paid 2"]


def test_a_coroutine_that_comes_after_the_time_limit_is_cancelled(opened: Callable[..., Memory]) -> None:
    ran = list[str]()

    async def effect() -> str:
        await asyncio.sleep(0)
        ran.append("it ran")
        return "late"

    def slow(n: int) -> Any:
        """Take long, then return a coroutine."""
        time.sleep(0.3)
        return effect()

    memory = opened(call("slow", n=1), "It is late.")
    assert memory.run_tools("ann", "go", [slow], tool_timeout_s=0.05).text == "It is late."
    for thread in threading.enumerate():
        if thread.name == "agent_memory-tool":
            thread.join(30)
    assert ran == []


@pytest.mark.parametrize("how", [{}, {"concurrent": True}, {"tool_timeout_s": 60}])
def test_a_turn_that_ends_in_the_middle_of_its_calls_runs_none_of_them_twice(
    opened: Callable[..., Memory], how: dict[str, Any]
) -> None:
    n_paid, is_over = [], [True]

    def paying(amount: int) -> str:
        """Pay."""
        if amount == 2 and is_over:
            raise SystemExit(is_over.pop())
        n_paid.append(amount)
        return f"paid {amount}"

    memory = opened(call("paying", amount=1) + call("paying", amount=2), "All paid.")
    with pytest.raises(SystemExit):
        memory.run_tools("ann", "Pay.", [paying], **how)
    assert [one.arguments["amount"] for one in memory.agent("ann").open_calls] == [2]
    assert memory.run_tools("ann", functions=[paying], **how).text == "All paid."
    assert n_paid == [1, 2]


def test_results_whose_reply_failed_are_kept_for_the_next_try(opened: Callable[..., Memory]) -> None:
    n_paid: list[int] = []

    def paying(amount: int) -> str:
        """Pay."""
        n_paid.append(amount)
        return f"paid {amount}"

    def fails(ids: Any, logits: Any) -> Any:
        if n_paid:
            raise OSError("the reply fails")
        return logits

    memory = opened(call("paying", amount=1), "Never said.", "Paid.")
    with pytest.raises(OSError, match="the reply fails"):
        memory.run_tools("ann", "Pay.", [paying], logits_processors=[fails])
    assert memory.agent("ann").open_calls == ()
    assert memory.agent("ann").give(tools=[paying]).text == "Paid."
    assert (n_paid, told(memory)) == ([1], ["paid 1"])


def test_the_time_of_a_concurrent_call_is_its_own(opened: Callable[..., Memory]) -> None:
    may_end = threading.Event()

    def slow() -> str:
        """Wait for the other one, and a while."""
        may_end.wait(30)
        time.sleep(0.3)
        return "slow"

    def fast() -> str:
        """Be fast."""
        may_end.set()
        return "fast"

    memory = opened(call("slow") + call("fast"), "Done.")
    with memory.episodes.start("race") as episode:
        memory.run_tools("ann", "go", [slow, fast], episode=episode, concurrent=True)
        episode.complete(True)
    first, second = [step.latency_ms or 0.0 for step in episode.record.steps]
    assert second < first, "waiting for the slow one is none of its time"


def test_what_cannot_go_on_is_refused_before_anything_runs(opened: Callable[..., Memory]) -> None:
    memory = opened(call("pay", amount=9) + call("pay", amount=1), "Paid.")

    def other() -> str:
        """Another function."""
        raise AssertionError("must not run")

    with pytest.raises(ToolResultError, match="no open tool calls"):
        memory.run_tools("ann", functions=[pay])
    reply = memory.run_tools("ann", "Pay.", [pay])
    open_id = reply.tool_calls[0].id
    with pytest.raises(UnsupportedParameterError, match="not both"):
        memory.run_tools("ann", "more", [pay], results=[ToolResult(open_id, "paid")])
    with pytest.raises(ToolResultError, match="'stranger' is unknown"):
        memory.run_tools("ann", functions=[pay], results=[ToolResult("stranger", "paid")])
    with pytest.raises(ToolResultError, match="a call of pay is open"):
        memory.run_tools("ann", functions=[other])
    with pytest.raises(ToolResultError, match="each open call once"):
        memory.agent("ann").say("never mind")
    result = ToolResult(open_id, "paid 9")
    assert memory.run_tools("ann", functions=[other], results=[result]).text == "Paid.", "no call of other is open"


def test_a_result_that_is_given_takes_the_place_of_the_kept_one(opened: Callable[..., Memory]) -> None:
    memory = opened(call("pay", amount=1) + call("pay", amount=9), "Paid.")
    reply = memory.run_tools("ann", "Pay.", [pay])
    memory.agent("ann").give(*[ToolResult(one.id, "by hand") for one in reply.tool_calls])
    assert told(memory) == ["by hand", "by hand"]


def test_kept_results_are_gone_with_the_turn_that_asked_for_them(opened: Callable[..., Memory]) -> None:
    memory = opened(call("pay", amount=1) + call("pay", amount=9), call("pay", amount=8), "Paid.")
    memory.run_tools("ann", "Pay.", [pay])
    ann = memory.agent("ann")
    ann.rewind(1)
    assert ann.open_calls == ()
    reply = memory.run_tools("ann", "Pay otherwise.", [pay])
    ann.give(ToolResult(reply.tool_calls[0].id, "paid 8"))
    assert told(memory) == ["paid 8"]


def test_secrets_in_kept_results_are_replaced_before_they_are_stored(
    opened: Callable[..., Memory], tmp_path: Path
) -> None:
    secret = "ghp_" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8"

    def look() -> str:
        """Look."""
        return f"the token is {secret}"

    memory = opened(call("look") + call("pay", amount=9), path=tmp_path, config=Config(redact=RuleRedactor()))
    memory.run_tools("ann", "Pay.", [look, pay])
    memory.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_an_episode_has_a_step_for_each_call_that_ended(opened: Callable[..., Memory]) -> None:
    memory = opened(call("pay", amount=1) + call("pay", amount=9), "Paid.")
    with memory.episodes.start("pay") as episode:
        reply = memory.run_tools("ann", "Pay.", [pay], episode=episode, concurrent=True)
        paused = next(iter(reply.paused))
        memory.run_tools("ann", functions=[pay], results=[ToolResult(paused, "paid 9")], episode=episode)
        episode.complete(True)
    assert [(step.tool, step.ok, step.observation) for step in episode.record.steps] == [("pay", True, "paid 1")]


CHILD = """
import sys
from agent_memory import Memory, Pause
from tests.parts.scripted import scripted

def fetch(page: int) -> str:
    \"\"\"Fetch a page.\"\"\"
    return f"page {page}"

def pay(amount: int) -> str:
    \"\"\"Pay.\"\"\"
    raise Pause("ask the boss")

calls = '<tool_call>{"name": "fetch", "arguments": {"page": 4}}</tool_call>\\n' \\
    '<tool_call>{"name": "pay", "arguments": {"amount": 9}}</tool_call>'
with Memory(scripted(calls), sys.argv[1]) as memory:
    memory.agent("ann", system="Pay what is due. " * 30)
    reply = memory.run_tools("ann", "Fetch page 4 and pay.", [fetch, pay])
    print(len(reply.paused), reply.usage.prompt_tokens, reply.usage.output_tokens)
"""


@pytest.mark.parametrize("way", ["run_tools", "give"])
def test_another_process_goes_on_days_later_and_computes_the_results_alone(way: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    n_paused, n_prompt, n_output = map(int, done.stdout.split())
    assert n_paused == 1

    def fetch(page: int) -> str:
        """Fetch a page."""
        raise AssertionError("its result is there")

    runner = scripted("All is paid.")
    with Memory(runner, tmp_path) as memory:
        ann = memory.agent("ann")
        [asked] = ann.open_calls
        assert (asked.name, asked.arguments) == ("pay", {"amount": 9})
        result = ToolResult(asked.id, "paid on Monday")
        if way == "run_tools":
            reply = memory.run_tools(ann, results=[result], functions=[fetch, pay])
        else:
            reply = ann.give(result, tools=[fetch, pay])
        assert reply.text == "All is paid."
        assert told(memory) == ["page 4", "paid on Monday"]
        tokenizer = runner.tokenizer
        new = "<|tool|>page 4<|end|><|tool|>paid on Monday<|end|><|assistant|>"
        assert reply.usage.computed_tokens == len(tokenizer.encode(new)) == runner.calls.computed
        assert reply.usage.cached_tokens == n_prompt + n_output
        assert (reply.usage.tier, reply.usage.exactness, reply.usage.miss) == ("cold", "exact", None)


@pytest.mark.parametrize("is_handle", [False, True], ids=["by name", "by handle"])
@pytest.mark.parametrize("concurrent", [False, True])
def test_an_agent_that_one_of_its_tools_deletes_is_said_to_be_deleted(
    opened: Callable[..., Memory], is_handle: bool, concurrent: bool
) -> None:
    memory = opened(call("end"), "never said")
    agent = memory.agent("ann")

    def end() -> str:
        """End it all."""
        assert memory.delete("ann")
        return "done"

    with pytest.raises(AgentDeletedError, match="'ann' was deleted"):
        memory.run_tools(agent if is_handle else "ann", "go", [end], concurrent=concurrent)
    assert memory.agents() == []


NUMBERS: dict[str, tuple[object, str]] = {
    "nan": (float("nan"), "NaN"),
    "infinity": (float("inf"), "Infinity"),
    "less": (float("-inf"), "-Infinity"),
    "inside": (
        {"mean": float("nan"), "all": [1.5, float("inf")], "pair": (2, float("-inf")), "ä": "NaN"},
        '{"mean": "NaN", "all": [1.5, "Infinity"], "pair": [2, "-Infinity"], "ä": "NaN"}',
    ),
    "as a key": ({float("nan"): 1}, '{"NaN": 1}'),
    "all finite": ({"mean": 1.5}, '{"mean": 1.5}'),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_result_with_numbers_that_json_does_not_have_is_json_all_the_same(
    opened: Callable[..., Memory], name: str
) -> None:
    memory = opened(call("mean"), "Fine.")
    value, text = NUMBERS[name]

    def mean():
        """The mean."""
        return value

    assert memory.run_tools("ann", "go", [mean]).text == "Fine."
    assert told(memory) == [text]


def test_a_result_that_holds_itself_is_an_error_for_the_model_to_read(opened: Callable[..., Memory]) -> None:
    memory = opened(call("loop"), "Fine.")

    def loop():
        """A loop."""
        found = [float("nan")]
        found.append(found)
        return found

    memory.run_tools("ann", "go", [loop])
    assert told(memory) == ["Error: ValueError: Circular reference detected"]

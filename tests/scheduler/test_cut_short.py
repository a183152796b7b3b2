"""What a request that ends without a reply has computed is kept: hot, and behind that on disk; its agent's log is not
touched.

A request is ended at one call of its batch, so that each stage is met for certain.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    CancelledError,
    ClosedError,
    Config,
    EchoRunner,
    Generation,
    Memory,
    Reply,
    RequestTimeoutError,
)
from agent_memory.requests.calling import Calling
from tests.laws.test_laws_kinds import spoken
from tests.parts import tiny
from tests.parts.faulty import Fault, Faults, with_faults
from tests.parts.logits import answer
from tests.parts.waiting import PATIENCE_S, outcome, shown, wait_for

CHUNK = 16
CONFIG = Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK)
N_CHUNKS = 20
PROMPT = "".join(chr(97 + (n * n + n // 7) % 26) for n in range(N_CHUNKS * CHUNK))
SHARES = {2: "10 %", 10: "50 %", 18: "90 %"}  #: prefill steps that are computed, of N_CHUNKS


class At(Faults):
    """Does something in one call of the batch, before it goes on."""

    def __init__(self, call: str, number: int) -> None:
        super().__init__()
        self._at, self._armed = (call, number), threading.Event()
        self._act: Callable[[], None] = lambda: None

    def do(self, act: Callable[[], None]) -> None:
        """Let it be done; the call waits until it is known what."""
        self._act = act
        self._armed.set()

    def reached(self, call: str) -> None:
        """Count from 1."""
        super().reached(call)
        if (call, self.calls[call]) == self._at:
            assert self._armed.wait(PATIENCE_S)
            self._act()


def _cancelled(memory: Memory, at: At, start: Callable[..., Generation]) -> Generation:
    handle = start()
    at.do(handle.cancel)
    return handle


def _timed_out(memory: Memory, at: At, start: Callable[..., Generation]) -> Generation:
    at.do(lambda: time.sleep(0.6))
    return start(timeout_s=0.5)


def _closed(memory: Memory, at: At, start: Callable[..., Generation]) -> Generation:
    at.do(memory.close)  # on the engine's thread: another one closes, and it goes on until its step is over
    return start()


WAYS: dict[Any, type[Exception]] = {
    _cancelled: CancelledError, _timed_out: RequestTimeoutError, _closed: ClosedError,
}  # fmt: skip


def _name(value: Any) -> str:
    return value.__name__.strip("_") if callable(value) else SHARES.get(value, str(value))


def _ended_early(runner: Any, path: Any, way: Any, n_steps: int, **how: Any) -> int:
    """Tokens that are computed when a request for PROMPT ends."""
    at = At("prefill", n_steps)
    with_faults(runner, at)
    with Memory(runner, path, config=CONFIG) as memory:
        handle = way(memory, at, lambda **more: memory.stream(PROMPT, **how, **more))
        found = outcome(handle)
        assert isinstance(found, WAYS[way]), repr(found)
    return handle.progress[0]


@pytest.mark.parametrize("n_steps", SHARES, ids=_name)
@pytest.mark.parametrize("way", WAYS, ids=_name)
@pytest.mark.parametrize("agent", [None, "ann"])
def test_sent_again_in_a_new_process_only_the_rest_is_computed(
    agent: str | None, way: Any, n_steps: int, tmp_path: Path
) -> None:
    n_done = _ended_early(EchoRunner(), tmp_path, way, n_steps, agent=agent)
    assert way is _timed_out or n_done == n_steps * CHUNK
    with Memory(EchoRunner(), tmp_path, config=CONFIG) as memory:
        if agent is not None:
            assert shown(memory, agent) == ((), 0, 0), "the log is as before the turn"
        usage = memory.generate(PROMPT, agent=agent).usage
    assert (usage.cached_tokens, usage.exactness) == (n_done, "exact")
    assert usage.tier == ("cold" if n_done else "none")
    assert usage.computed_tokens == usage.prompt_tokens - n_done


def _tiny(name: str) -> Any:
    from agent_memory.runner.mlx import MLXRunner
    from tests.parts.tinytokenizer import tokenizer

    return MLXRunner(tiny.model(name), tokenizer(), name=name)


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_next"], ids=["full", "windows", "states"])
def test_every_kind_of_cache_goes_on_where_it_was_cancelled_with_the_bits_of_a_whole_run(
    name: str, tmp_path: Path
) -> None:
    with Memory(_tiny(name), ":memory:", config=CONFIG) as fresh:
        wanted, _ = answer(fresh, PROMPT)
    for n_steps in SHARES:
        path = tmp_path / str(n_steps)
        n_done = _ended_early(_tiny(name), path, _cancelled, n_steps, raw=True)
        assert n_done == n_steps * CHUNK
        with Memory(_tiny(name), path, config=CONFIG) as memory:
            found, reply = answer(memory, PROMPT)
        assert (reply.usage.tier, reply.usage.cached_tokens, reply.usage.exactness) == ("cold", n_done, "exact")
        assert found == wanted, n_steps


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_next"], ids=["full", "windows", "states"])
def test_a_cancelled_turn_costs_its_agent_none_of_what_was_stored_before(name: str, tmp_path: Path) -> None:
    cached = []
    for is_cancelled in (False, True):
        path = tmp_path / str(is_cancelled)
        with Memory(_tiny(name), path, config=CONFIG) as memory:
            memory.agent("ann").say(PROMPT[:101], max_tokens=6, logits_processors=[lambda ids, logits: spoken(logits)])
            before = shown(memory, "ann")
        if is_cancelled:
            for n_steps in (4, 12):
                _ended_early(_tiny(name), path, _cancelled, n_steps, agent="ann")
        with Memory(_tiny(name), path, config=CONFIG) as memory:
            assert shown(memory, "ann") == before
            usage = memory.agent("ann").say("another message", max_tokens=1).usage
            cached.append((usage.cached_tokens, usage.tier, usage.exactness))
            assert memory.delete("ann")
            memory.flush()
            assert memory.stats().segments == 0, "what a cancelled turn has left is its agent's, and goes with it"
    (whole, tier, exactness), (found, *same) = cached
    assert (tier, exactness) == ("cold", "exact") == tuple(same)
    assert 101 < whole <= found, "what follows the turn in the template may be equal too"


@pytest.mark.parametrize("agent", [None, "ann"])
def test_what_was_computed_before_a_step_that_failed_is_kept_and_that_step_is_not(
    agent: str | None, tmp_path: Path
) -> None:
    runner = EchoRunner()
    faults = with_faults(runner)
    error = faults.fail("prefill", after=12)
    with Memory(runner, tmp_path, config=CONFIG) as memory:
        with pytest.raises(Fault) as caught:
            memory.generate(PROMPT, agent=agent)
        assert caught.value is error
    with Memory(EchoRunner(), tmp_path, config=CONFIG) as memory:
        reply = memory.generate(PROMPT, agent=agent)
    assert (reply.text, reply.usage.tier, reply.usage.cached_tokens) == (PROMPT, "cold", 12 * CHUNK)


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_next"], ids=["full", "windows", "states"])
@pytest.mark.parametrize("is_computed", [False, True], ids=["before it was computed", "while it was computed"])
def test_a_fault_in_the_middle_of_a_models_layers_leaves_the_rows_before_it_or_none(
    name: str, is_computed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    with Memory(_tiny(name), ":memory:", config=CONFIG) as fresh:
        wanted, _ = answer(fresh, PROMPT)
    runner, at = _tiny(name), At("prefill", 10)
    last = runner._model.layers[-1]  # all layers before it have taken the step's rows
    with_faults(runner, at)

    def broken(*given: Any, **named: Any) -> Any:
        raise Fault("in the last layer")

    def break_it() -> None:
        monkeypatch.setattr(*((mx, "eval") if is_computed else (type(last), "__call__")), broken)

    with Memory(runner, tmp_path, config=CONFIG) as memory:
        at.do(break_it)
        with pytest.raises(Fault):
            memory.generate(PROMPT, raw=True)
        monkeypatch.undo()
        assert shown_hot(memory) == (0 if is_computed else 9 * CHUNK)
        found, reply = answer(memory, PROMPT)
    assert reply.usage.cached_tokens == (0 if is_computed else 9 * CHUNK)
    assert found == wanted


def shown_hot(memory: Memory) -> int:
    """Tokens that are idle in memory."""
    return memory._engine.call(lambda: sum(len(one.ids) for one in memory._engine._loop.hot))


def _raising(after: int) -> Any:
    left = [after]

    def processor(ids: Any, logits: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Fault("in a processor")
        return logits

    return processor


@pytest.mark.parametrize("n_tokens", [0, 1, 5])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
@pytest.mark.parametrize("kind", ["echo", pytest.param("llama", marks=pytest.mark.mlx)])
def test_the_step_whose_logits_a_processor_refused_is_not_kept_and_the_prompt_is(
    kind: str, beside: bool, n_tokens: int
) -> None:
    runner = EchoRunner() if kind == "echo" else _tiny(kind)
    with Memory(runner, ":memory:", config=CONFIG) as memory:
        other = memory.stream("x" * 90, max_tokens=60) if beside else None
        if other is not None:
            next(iter(other.text()), None) if kind == "echo" else wait_for(lambda: other.progress[0] > 0)
        handle = memory.stream(PROMPT, raw=True, max_tokens=20, logits_processors=[_raising(n_tokens)])
        assert isinstance(outcome(handle), Fault)
        n_known = memory._engine.call(lambda: max(len(one.ids) for one in memory._engine._loop.hot))
        n_prompt = len(runner.tokenizer.encode(PROMPT))
        assert n_prompt - 1 <= n_known < n_prompt + max(n_tokens, 1)
        usage = memory.generate(PROMPT, raw=True, max_tokens=1).usage
    assert (usage.cached_tokens, usage.computed_tokens) == (n_prompt - 1, 1)


@pytest.mark.mlx
def test_kv_with_numbers_that_are_none_is_not_kept_where_a_request_failed_of_them(tmp_path: Path) -> None:
    import mlx.core as mx

    runner = _tiny("llama")
    weights = runner._model.model.embed_tokens.weight
    runner._model.model.embed_tokens.weight = mx.where(
        mx.arange(weights.shape[0])[:, None] == ord("m") - 33, mx.nan, weights
    )

    mx.eval(runner._model.parameters())

    def finite(ids: Any, logits: Any) -> Any:
        if logits[0] != logits[0]:
            raise Fault("no numbers")
        return logits

    with Memory(runner, tmp_path, config=CONFIG) as memory:
        with pytest.raises(Fault):
            memory.generate("abcdefgh" * 8 + "m" + "abcd", raw=True, logits_processors=[finite])
        memory.flush()
        assert (shown_hot(memory), memory.stats().segments) == (0, 0)


def test_what_a_request_that_is_cancelled_while_it_decodes_has_computed_is_stored(tmp_path: Path) -> None:
    with Memory(EchoRunner(delay_s=0.001), tmp_path, config=CONFIG) as memory:
        handle = memory.stream(PROMPT)
        wait_for(lambda: handle.state == "decode" and handle.progress[0] > 3)
        handle.cancel()
        assert isinstance(outcome(handle), CancelledError)
    with Memory(EchoRunner(), tmp_path, config=CONFIG) as memory:
        reply: Reply = memory.generate(PROMPT)
    assert (reply.text, reply.usage.computed_tokens, reply.usage.tier) == (PROMPT, 1, "cold")


def test_a_reader_of_replies_that_cannot_be_made_costs_no_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no reader")

    with Memory(EchoRunner(), ":memory:", config=CONFIG) as memory:
        alice = memory.agent("alice")
        first = alice.say(PROMPT, max_tokens=4).usage
        with monkeypatch.context() as patched:
            patched.setattr(Calling, "parser", refuse)
            with pytest.raises(RuntimeError, match="no reader"):
                alice.say("And now?", max_tokens=4)
        usage = alice.say("And now?", max_tokens=4).usage
    assert usage.tier == "hot"
    assert usage.cached_tokens >= first.prompt_tokens

"""Memory.swap_model: another model, the same agents."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    CancelledError,
    ClosedError,
    Config,
    ConfigError,
    EchoRunner,
    Memory,
    MLXRunner,
    ModelError,
    ModelNotFoundError,
    RequestError,
    UnsupportedParameterError,
)
from tests.parts.tinydirectory import adapter, directory
from tests.parts.waiting import wait_for

SMALL = Config(chunk_tokens=16, prefill_tokens=64, blas=None)
BRIEF = "Answer with what you heard, and with nothing else at all. " * 4


class Broken(EchoRunner):
    """A model that cannot be loaded."""

    def __init__(self, error: BaseException, *, where: str = "open") -> None:
        super().__init__(identity="broken")
        self._error, self._where = error, where

    def open(self, recorded: Any = None) -> None:
        if self._where == "open":
            raise self._error

    def open_batch(self, chunk_tokens: int = 256) -> Any:
        if self._where == "batch":
            raise self._error
        return super().open_batch(chunk_tokens)


def _slow(identity: str) -> EchoRunner:
    return EchoRunner(lambda asked, _: asked * 40, identity=identity, delay_s=0.002)


def test_from_a_to_b_and_back_the_first_turn_on_a_hits_what_a_had_computed(tmp_path: Path) -> None:
    a, b = EchoRunner(identity="a"), EchoRunner(identity="b")
    with Memory(a, tmp_path, config=SMALL) as memory:
        ann = memory.agent("ann", system=BRIEF)
        first = ann.say("one")
        memory.swap_model(b)
        assert memory.model_name == "b"
        on_b = ann.say("two")
        assert (on_b.usage.cached_tokens, on_b.usage.miss) == (0, "other_model")
        assert ann.say("three").usage.cached_tokens > 0
        memory.swap_model(a)
        back = ann.say("four")
        assert back.usage.cached_tokens >= first.usage.prompt_tokens
        assert back.usage.tier == "cold"
        assert back.usage.exactness != "quantized"
        assert [m.content for m in ann.messages if m.role == "user"] == ["one", "two", "three", "four"]
    assert a.calls.computed == first.usage.computed_tokens + back.usage.computed_tokens


def test_without_a_disk_agents_keep_their_logs_and_the_miss_says_why(tmp_path: Path) -> None:
    a, b = EchoRunner(identity="a"), EchoRunner(identity="b")
    with Memory(a, ":memory:", config=SMALL) as memory:
        ann, tom = memory.agent("ann", system=BRIEF), memory.agent("tom").fork("ted", temporary=True)
        ann.say("one")
        tom.say("one")
        memory.swap_model(b)
        assert ann.say("two").usage.miss == "other_model"
        assert tom.say("two").usage.miss == "other_model"
        memory.swap_model(a)
        assert ann.say("three").usage.miss == "evicted"


@pytest.mark.parametrize("where", ["open", "batch"])
def test_after_20_failing_swaps_the_model_still_works(where: str, tmp_path: Path) -> None:
    with Memory(EchoRunner(identity="a"), tmp_path, config=SMALL) as memory:
        ann = memory.agent("ann", system=BRIEF)
        before = ann.say("one")
        for number in range(20):
            with pytest.raises(ModelError, match="no such weights"):
                memory.swap_model(Broken(ModelError("no such weights"), where=where))
            reply = ann.say(f"turn {number}")
            assert reply.text == f"turn {number}"
            assert reply.usage.cached_tokens >= before.usage.prompt_tokens
            before = reply
        assert memory.model_name == "a"
        assert memory.doctor().facts["model"] == "a"


def test_what_is_wrong_with_the_arguments_raises_before_anything_ends(tmp_path: Path) -> None:
    with Memory(_slow("a"), tmp_path, config=SMALL) as memory:
        handle = memory.stream("one", max_tokens=60)
        with pytest.raises(ModelNotFoundError):
            memory.swap_model(tmp_path / "nowhere")
        with pytest.raises(ConfigError, match="adapter="):
            memory.swap_model(EchoRunner(), adapter=tmp_path)
        with pytest.raises(UnsupportedParameterError, match="drain must be a bool"):
            memory.swap_model(EchoRunner(), drain=3)  # type: ignore[arg-type]
        assert handle.result().finish in ("stop", "length")


def test_requests_in_work_end_first_and_those_made_meanwhile_run_on_the_new_model(tmp_path: Path) -> None:
    a, b = _slow("a"), _slow("b")
    with Memory(a, tmp_path, config=SMALL) as memory:
        running = [memory.stream("word " * 20, max_tokens=60, agent=f"n{i}") for i in range(3)]
        wait_for(lambda: any(one.state == "decode" for one in running), "a row that decodes")
        swap = threading.Thread(target=memory.swap_model, args=(b,))
        swap.start()
        time.sleep(0.01)
        late = memory.generate("late", max_tokens=4, agent="n1")
        swap.join()
        assert all(one.result().usage.output_tokens == 60 for one in running)
        assert late.agent == "n1"
        assert b.calls.computed == late.usage.computed_tokens > 0


def test_without_draining_requests_are_cancelled(tmp_path: Path) -> None:
    with Memory(_slow("a"), tmp_path, config=SMALL) as memory:
        ann = memory.agent("ann", system=BRIEF)
        running = ann.stream("word " * 50, max_tokens=500)
        waiting = ann.stream("next")
        wait_for(lambda: running.state == "decode", "the first to decode")
        memory.swap_model(_slow("b"), drain=False)
        for handle in (running, waiting):
            with pytest.raises(CancelledError):
                handle.result()
        assert len(ann.messages) == 1
        assert ann.say("again", max_tokens=3).usage.output_tokens == 3


def test_a_schemas_class_that_asks_the_memory_itself_does_not_stop_a_swap() -> None:
    with Memory(EchoRunner('{"text": "x"}', identity="a"), ":memory:", config=SMALL) as memory:
        began = threading.Event()

        def from_json(text: str) -> str:
            began.set()
            time.sleep(0.05)  # the swap waits by now
            return memory.generate(text).text

        import attrs

        made = attrs.make_class("Made", {"text": attrs.field(type=str, converter=from_json)})
        handle = memory.stream("one", schema=made)
        assert began.wait(20)
        memory.swap_model(EchoRunner(identity="b"))
        assert handle.result().parsed.text == '{"text": "x"}'


def test_a_thread_of_the_library_may_not_swap() -> None:
    with Memory(EchoRunner(), ":memory:", config=SMALL) as memory:

        def process(ids: Any, logits: Any) -> Any:
            memory.swap_model(EchoRunner(identity="b"))
            return logits

        with pytest.raises(RequestError, match="no thread of the library"):
            memory.generate("one", logits_processors=[process])


def test_a_model_that_cannot_be_loaded_again_ends_the_memory(tmp_path: Path) -> None:
    class Once(EchoRunner):
        n_opened = 0

        def open(self, recorded: Any = None) -> None:
            self.n_opened += 1
            if self.n_opened > 1:
                raise ModelError("the weights are gone")

    with Memory(Once(identity="a"), tmp_path, config=SMALL) as memory:
        memory.agent("ann").say("one")
        with pytest.raises(ModelError, match="the weights are gone") as caught:
            memory.swap_model(Broken(ModelError("no such weights")))
        assert "no such weights" in str(caught.value.__context__)
    with Memory(EchoRunner(identity="a"), tmp_path, config=SMALL) as memory:
        assert len(memory.agent("ann").messages) == 2


@pytest.mark.mlx
def test_the_old_model_is_freed_wholly_and_a_second_one_of_it_hits(tmp_path: Path) -> None:
    """Weak references and the bytes that MLX counts."""
    import mlx.core as mx

    a, b = directory(tmp_path / "a", seed=1), directory(tmp_path / "b", seed=2)
    with Memory(a, tmp_path / "store", config=SMALL) as memory:
        ann = memory.agent("ann", system=BRIEF)
        first = ann.say("one", max_tokens=4)
        runner = memory._runner.current
        model, n_bytes = weakref.ref(runner._model), runner.weights_bytes  # type: ignore[attr-defined]
        gone = weakref.ref(runner)
        del runner
        active = mx.get_active_memory()
        assert active >= n_bytes > 0
        for _ in range(3):
            memory.swap_model(b)
            gc.collect()
            assert (model(), gone()) == (None, None)
            assert ann.say("two", max_tokens=4).usage.output_tokens > 0
            memory.swap_model(a)
        gc.collect()
        assert mx.get_active_memory() - active < n_bytes / 4
        back = ann.say("three", max_tokens=4)
        assert back.usage.cached_tokens >= first.usage.prompt_tokens - 1
        assert back.usage.tier == "cold"


@pytest.mark.mlx
def test_an_adapter_can_be_put_on_and_taken_off(tmp_path: Path) -> None:
    base, lora = directory(tmp_path / "a"), adapter(tmp_path / "lora", 1)
    with Memory(base, tmp_path / "store", config=SMALL) as memory:
        ann = memory.agent("ann", system=BRIEF)
        plain = ann.say("one", max_tokens=4)
        memory.swap_model(base, adapter=lora)
        assert ann.say("two", max_tokens=4).usage.cached_tokens == 0
        memory.swap_model(base)
        assert ann.say("three", max_tokens=4).usage.cached_tokens >= plain.usage.prompt_tokens - 1


@pytest.mark.mlx
def test_20_swaps_to_damaged_weights_leave_the_model_and_its_bits(tmp_path: Path) -> None:
    a, bad = directory(tmp_path / "a"), directory(tmp_path / "bad")
    weights = bad / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    bits = _bits_of(MLXRunner.named(a, config=SMALL))
    with Memory(a, ":memory:", config=SMALL) as memory:
        for _ in range(20):
            with pytest.raises(ModelError):
                memory.swap_model(bad)
        assert _bits(memory) == bits


def _bits_of(runner: Any) -> list[bytes]:
    with Memory(runner, ":memory:", config=SMALL) as memory:
        return _bits(memory)


def _bits(memory: Memory) -> list[bytes]:
    seen: list[bytes] = []

    def watch(ids: Any, logits: Any) -> Any:
        seen.append(logits.tobytes())
        return logits

    processors: list[Callable[..., Any]] = [watch]
    memory.generate(BRIEF, max_tokens=4, logits_processors=processors)
    return seen[:4]


def test_a_swap_that_waits_when_the_memory_closes_loads_no_model(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def swap() -> None:
        try:
            memory.swap_model(Broken(AssertionError("it was loaded")))
        except BaseException as error:  # noqa: BLE001 - looked at below
            found.append(error)

    memory = Memory(_slow("a"), tmp_path, config=SMALL)
    handle = memory.stream("on and on " * 20, agent="ann", max_tokens=4_000)
    wait_for(lambda: handle.state == "decode")
    swapping = threading.Thread(target=swap, daemon=True)
    swapping.start()
    wait_for(lambda: memory._asking.gate._is_closed)
    memory.close()
    swapping.join(30)
    assert not swapping.is_alive()
    [error] = found
    assert isinstance(error, ClosedError), repr(error)

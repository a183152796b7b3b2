"""Idle work of a Memory: on the engine's thread, within its time, and never in a request's way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_memory import Config, EchoRunner, Memory, Recall
from agent_memory.scheduler.idle import QUIET_S, Idle

GRID = {"chunk_tokens": 16, "prefill_tokens": 16}


@pytest.fixture
def opened() -> Iterator[Callable[..., Memory]]:
    memories: list[Memory] = []

    def make(runner: EchoRunner, path: Path | str = ":memory:", **config: Any) -> Memory:
        memories.append(Memory(runner, path, config=Config(**GRID, **config)))
        return memories[-1]

    yield make
    for memory in memories:
        memory.close()


def wait_for(is_so: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class Embedding:
    """An embedder that notes on which thread it is asked, and how often."""

    dim, fingerprint = 8, "noting 1"

    def __init__(self, seconds: float = 0.0, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error
        self.threads: list[str] = []
        self.sizes: list[int] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        self.threads.append(threading.current_thread().name)
        self.sizes.append(len(texts))
        time.sleep(self.seconds * len(texts))
        if self.error is not None:
            raise self.error
        return np.array([[1.0 + len(text) % 7, *range(7)] for text in texts], np.float32)


def test_what_is_remembered_gets_its_vectors_while_nothing_runs(opened: Callable[..., Memory]) -> None:
    embedder = Embedding()
    memory = opened(EchoRunner(), embedder=embedder)
    for n in range(40):
        memory.context.remember(f"The crane number {n} lifts {n} tons.")
    wait_for(lambda: memory.context.stats().n_vectors == 40, "vectors of all that was told")
    assert set(embedder.threads) == {"agent_memory-engine"}
    assert threading.active_count() < 12, "no thread of its own"
    assert memory.context.maintain().is_done


def test_with_upkeep_off_only_the_host_does_idle_work(opened: Callable[..., Memory]) -> None:
    embedder = Embedding()
    memory = opened(EchoRunner(), embedder=embedder, upkeep_ms=None)
    memory.context.remember("The crane lifts nine tons.")
    memory.agent("a").say("Good morning.")
    time.sleep(3 * QUIET_S)
    assert embedder.threads == []
    assert memory.context.maintain().n_embedded == 1
    assert embedder.threads == ["MainThread"]


def test_a_slow_embedder_is_asked_for_one_text_at_a_time(opened: Callable[..., Memory]) -> None:
    embedder = Embedding(seconds=0.05)
    memory = opened(EchoRunner(), embedder=embedder, upkeep_ms=10)
    for n in range(6):
        memory.context.remember(f"The crane number {n} lifts {n} tons.")
    wait_for(lambda: memory.context.stats().n_vectors == 6, "vectors")
    assert embedder.sizes == [1] * 6


def test_idle_work_that_fails_is_a_warning_and_harms_no_request(
    opened: Callable[..., Memory], caplog: pytest.LogCaptureFixture
) -> None:
    memory = opened(EchoRunner(), embedder=Embedding(error=RuntimeError("secret text")))
    memory.context.remember("The crane lifts nine tons.")
    wait_for(lambda: "idle work on long-term memory failed" in caplog.text, "a warning")
    assert "secret text" not in caplog.text
    assert memory.agent("a").say("Good morning.").text == "Good morning."


def test_idle_work_waits_for_no_writer(opened: Callable[..., Memory], tmp_path: Path) -> None:
    memory = opened(EchoRunner(), tmp_path, embedder=Embedding())
    context = memory.context
    with context._database.write():
        memory.context.remember("The crane lifts nine tons.")
        time.sleep(2 * QUIET_S)
        assert memory.generate("Hello.").text == "Hello."
    context.remember("The crane lifts ten tons.")
    wait_for(lambda: context.stats().n_vectors == 2, "vectors after the writer has gone")


def test_requests_are_answered_before_idle_work_goes_on(opened: Callable[..., Memory]) -> None:
    embedder = Embedding(seconds=0.02)
    memory = opened(EchoRunner(), embedder=embedder, upkeep_ms=20)
    for n in range(30):
        memory.context.remember(f"The crane number {n} lifts {n} tons.")
    wait_for(lambda: len(embedder.sizes) > 1, "idle work has begun")
    for _ in range(3):
        memory.generate("Hello.")
    assert len(embedder.sizes) < 30, "three requests passed while work was left"
    wait_for(lambda: sum(embedder.sizes) >= 30, "and all of it is done in the end")


def test_idle_sleeps_until_it_is_told_of_work() -> None:
    done: list[float] = []
    woken: list[None] = []
    idle = Idle(0.01, lambda: woken.append(None))
    idle.note()
    assert woken == [], "nothing is to be done at idle times yet"
    idle.work = lambda seconds: done.append(seconds)
    assert (idle.is_due, idle.sleep_s) == (False, None)
    idle.note()
    idle.note()
    assert len(woken) == 1, "the second is no news"
    assert not idle.is_due
    idle.step()
    assert done == []
    wait_for(lambda: idle.is_due, "due once it was quiet")
    idle.put_off()
    assert not idle.is_due
    wait_for(lambda: idle.is_due, "due again")
    idle.step()
    assert done == [0.01]
    assert idle.sleep_s is None, "nothing is left"


# --- the resident model reads ---


def reading(asked: str, ids: tuple[int, ...]) -> str:
    """Finds a preference in each numbered sentence with the word copper."""
    lines = [line.partition(". ") for line in asked.splitlines() if line[:1].isdigit()]
    items = [{"sentence": int(n), "kind": "preference"} for n, _, text in lines if "copper" in text]
    return json.dumps({"items": items}) if lines else "I see."


TOLD = "Good morning to you. The wharf crew leans towards copper nails."


def test_the_resident_model_reads_what_agents_said_while_nothing_runs(
    opened: Callable[..., Memory], tmp_path: Path
) -> None:
    memory = opened(EchoRunner(reading), tmp_path, extract=True)
    memory.agent("a", recall=True).say(TOLD)
    memory.flush()
    wait_for(lambda: bool(memory.context.recall("copper", kinds=["preference"])), "an item by the model")
    [hit] = memory.context.recall("copper", kinds=["preference"])
    assert hit.item.text == "The wharf crew leans towards copper nails."
    assert hit.item.found_by is not None
    assert hit.item.found_by.startswith("echo")
    assert memory.context.stats().n_unread == 0
    assert [message.content for message in memory.agent("a").messages] == [TOLD, "I see."], "a log is not touched"


def test_the_host_may_have_it_read_at_once(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner(reading), extract=True, upkeep_ms=None)
    memory.context.remember(TOLD, kind="note")
    assert memory.context.maintain(10_000).n_extracted == 1


def test_a_reading_steps_aside_for_a_request_and_is_done_later(opened: Callable[..., Memory]) -> None:
    begun = threading.Event()

    def slowly(asked: str, ids: tuple[int, ...]) -> str:
        begun.set()
        return reading(asked, ids)

    runner = EchoRunner(slowly, delay_s=0.02)
    memory = opened(runner, extract=True)
    memory.context.remember(TOLD + " And copper pans. And copper pots. And copper pipes.", kind="note")
    assert begun.wait(20), "the reading began"
    runner.delay_s = 0.0
    assert memory.generate("Hello.", max_tokens=4).text
    assert memory.context.check().ok
    wait_for(lambda: memory.context.stats().n_unread == 0, "it was read after all")
    assert len(memory.context.recall("copper", kinds=["preference"])) == 4
    assert memory.context.audit()[0].action == "extract"


def test_a_reading_that_makes_no_sense_loses_nothing(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner(lambda asked, ids: "copper? copper!"), extract=True)
    memory.context.remember(TOLD, kind="note")
    wait_for(lambda: memory.context.stats().n_unread == 0, "it was given up or held to an empty list")
    assert memory.context.recall("copper")[0].item.text.endswith("copper nails.")
    assert memory.agent("a").say("Still there?").text


def test_what_was_forgotten_while_it_was_read_stays_gone(opened: Callable[..., Memory], tmp_path: Path) -> None:
    begun = threading.Event()

    def slowly(asked: str, ids: tuple[int, ...]) -> str:
        begun.set()
        return reading(asked, ids)

    memory = opened(EchoRunner(slowly, delay_s=0.02), tmp_path, extract=True)
    memory.context.remember("The wharf crew leans towards copper nails of bramblewick.", kind="note")
    assert begun.wait(20)
    assert memory.context.forget("bramblewick") == 1
    memory.flush()
    needle, ids = b"bramblewick", np.array(memory._runner.tokenizer.encode("bramblewick"), "<u4").tobytes()
    memory.close()
    for file in (one for one in tmp_path.rglob("*") if one.is_file()):
        data = file.read_bytes()
        assert needle not in data, file
        assert ids not in data, file


# --- the resident model embeds ---


def test_the_resident_model_finds_by_meaning_of_its_early_layers(opened: Callable[..., Memory]) -> None:
    memory = opened(EchoRunner(), embedder="resident", upkeep_ms=None)
    for n in range(5):
        memory.context.remember(f"The crane number {n} lifts {n} tons.")
    assert memory.context.maintain(10_000).n_embedded == 5
    hits = memory.context.recall("crane number 3")
    assert hits[0].item.text == "The crane number 3 lifts 3 tons."
    assert hits[0].parts["similarity"] > 0
    agent = memory.agent("a", recall=Recall(k=1, remember=False))
    assert agent.say("Which crane is number 3?").recalled, "asked on a caller's thread, computed on the engine's"


def test_vectors_of_another_model_are_made_anew(opened: Callable[..., Memory], tmp_path: Path) -> None:
    first = opened(EchoRunner(identity="one"), tmp_path, embedder="resident")
    first.context.remember("The crane lifts nine tons.")
    wait_for(lambda: first.context.stats().n_vectors == 1, "a vector")
    print_of_first = first.context._embedder.fingerprint  # type: ignore[union-attr]
    first.close()
    second = opened(EchoRunner(identity="two"), tmp_path, embedder="resident", upkeep_ms=None)
    assert second.context._embedder.fingerprint != print_of_first  # type: ignore[union-attr]
    assert second.context.recall("crane")[0].parts["similarity"] == 0.0, "found by words until then"
    assert second.context.maintain(10_000).n_embedded == 1
    assert second.context.stats().n_vectors == 1, "those of the other model are gone"

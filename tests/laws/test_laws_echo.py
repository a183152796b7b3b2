"""The library's laws as properties over EchoRunner, whose answers are read back out of the KV arrays.

EchoRunner's KV carries the ids and a chain check: one wrong byte anywhere makes it answer garbage, so equal texts here
mean that the right KV was restored.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory import Config, EchoRunner, Memory

CHUNK = Config(chunk_tokens=16, prefill_tokens=16)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

words = st.text(alphabet="abé世 un believable the ing\n😀", min_size=1, max_size=40).filter(lambda t: t.strip())
ops = st.lists(
    st.tuples(
        st.sampled_from(["say", "say", "say", "evict", "restart", "rewind", "history", "plain"]),
        st.sampled_from(["alice", "bob"]),
        words,
    ),
    min_size=3,
    max_size=10,
)


class Reference:
    """What each agent would answer had it never stopped: a dict of dialogues and one fresh Memory per question."""

    def __init__(self, bos: bool) -> None:
        self.bos, self.logs = bos, {"alice": [], "bob": []}

    def answer(self, messages: list[dict[str, str]]) -> str:
        with Memory(EchoRunner(bos=self.bos), ":memory:", config=CHUNK) as fresh:
            return fresh.generate(messages, max_tokens=30).text


@pytest.mark.parametrize("bos", [False, True])
@given(ops=ops)
@few
def test_law_2_and_3_any_schedule_answers_as_if_never_stopped_and_every_token_is_counted(bos: bool, ops: Any) -> None:
    folder = tempfile.mkdtemp()
    reference = Reference(bos)
    runner = EchoRunner(bos=bos)
    memory = Memory(runner, folder, config=CHUNK)
    try:
        for what, name, text in ops:
            log = reference.logs[name]
            agent = memory.agent(name, system="Be brief. " * 9)
            system = [{"role": "system", "content": "Be brief. " * 9}]
            if what == "evict":
                memory.evict()
            elif what == "restart":
                memory.close()
                runner = EchoRunner(bos=bos)
                memory = Memory(runner, folder, config=CHUNK)
            elif what == "rewind":
                if log:
                    agent.rewind(1)
                    del log[-2:]
            else:
                fed = runner.calls.computed
                before = agent.n_tokens
                if what == "say":
                    reply = agent.say(text, max_tokens=30)
                elif what == "history":
                    given_history = [*system, *log, {"role": "user", "content": text}]
                    reply = memory.generate(given_history, agent=name, max_tokens=30)
                else:
                    reply = memory.generate([*system, *log, {"role": "user", "content": text}], max_tokens=30)
                usage = reply.usage
                assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
                assert runner.calls.computed - fed >= usage.computed_tokens
                assert usage.exactness == "exact", usage
                assert reply.text == reference.answer([*system, *log, {"role": "user", "content": text}])
                if what != "plain":
                    assert usage.cached_tokens >= min(before, usage.prompt_tokens) - 2, "only the new message"
                    log += [{"role": "user", "content": text}, {"role": "assistant", "content": reply.text}]
                    shown = [(m.role, m.content) for m in memory.agent(name).messages[1:]]
                    assert shown == [(m["role"], m["content"]) for m in log]
        memory.flush()
        assert memory.verify().ok
        assert memory.stats().damage == 0
    finally:
        memory.close()
        shutil.rmtree(folder)


def _talk(memory: Memory, name: str, texts: list[str]) -> list[Any]:
    return [memory.agent(name).say(text, max_tokens=20) for text in texts]


def test_law_1_deleting_all_kv_costs_time_and_never_an_answer(tmp_path: Path) -> None:
    texts = ["one believable thing", "two of them", "three"]
    with Memory(EchoRunner(), tmp_path / "s", config=CHUNK) as memory:
        before = _talk(memory, "a", texts)
    shutil.rmtree(tmp_path / "s" / "kv")
    with Memory(EchoRunner(), tmp_path / "s", config=CHUNK) as memory:
        assert [m.content for m in memory.agent("a").messages if m.role == "assistant"] == [r.text for r in before]
        reply = memory.agent("a").say("four")
        assert reply.text == "four"
        assert (reply.usage.cached_tokens, reply.usage.exactness) == (0, "recomputed")
        assert reply.usage.miss == "damaged"
        assert memory.stats().damage > 0
        later = memory.agent("a").say("five")
        assert later.usage.tier == "hot"
        assert later.usage.exactness == "recomputed", "what rests on recomputed KV says so"
    with Memory(EchoRunner(), tmp_path / "s", config=CHUNK) as memory:
        again = memory.agent("a").say("six")
        assert (again.usage.tier, again.usage.exactness) == ("cold", "recomputed")


@pytest.mark.parametrize("other", [{"identity": "finetune"}, {"heads": 4}, {"bos": True}, {"layers": 3}])
def test_law_4_kv_of_another_model_is_a_miss_with_a_reason(tmp_path: Path, other: dict[str, Any]) -> None:
    prompt = "the same believable prompt for both " * 5
    with Memory(EchoRunner(), tmp_path, config=CHUNK) as memory:
        memory.generate(prompt)
        first = memory.agent("a").say(prompt)
    with Memory(EchoRunner(**other), tmp_path, config=CHUNK) as memory:
        reply = memory.agent("a").say("and now?")
        assert reply.text == "and now?"
        assert reply.usage.cached_tokens == 0
        assert reply.usage.miss in ("other_model", "not_stored")
        assert reply.usage.exactness == "recomputed"
    with Memory(EchoRunner(**other), tmp_path, config=CHUNK) as memory:
        assert memory.generate(prompt + "!").usage.tier in ("cold", "none")
    with Memory(EchoRunner(), tmp_path, config=CHUNK) as memory:
        assert memory.generate(prompt).usage.tier == "cold", "the first model's KV is still there"
    assert first.text == prompt


def test_law_4_salts_never_meet(tmp_path: Path) -> None:
    prompt = "a secret believable prompt " * 5
    with Memory(EchoRunner(), tmp_path, config=Config(chunk_tokens=16, prefill_tokens=16, salt="one")) as memory:
        memory.generate(prompt)
        memory.agent("a").say("hi")
    with Memory(EchoRunner(), tmp_path, config=Config(chunk_tokens=16, prefill_tokens=16, salt="two")) as memory:
        assert memory.generate(prompt).usage.cached_tokens == 0
        assert memory.agents() == []


def test_law_6_hot_bytes_stay_within_budget(tmp_path: Path) -> None:
    budget = 400_000
    with Memory(EchoRunner(), tmp_path, config=Config(chunk_tokens=16, prefill_tokens=16, hot_bytes=budget)) as memory:
        for number in range(12):
            memory.agent(f"agent {number % 5}").say(f"number {number} " * 20, max_tokens=16)
            assert memory.stats().hot_bytes <= budget


def test_law_7_a_shared_prefix_is_computed_once_and_stored_once(tmp_path: Path) -> None:
    system = "believable rules of the house " * 40
    with Memory(EchoRunner(), tmp_path, config=CHUNK) as memory:
        memory.agent("a", system=system).say("first")
        memory.flush()
        one = memory.stats()
        memory.evict()
        reply = memory.agent("b", system=system).say("other")
        assert reply.usage.cached_tokens >= reply.usage.prompt_tokens - 40
        memory.flush()
        two = memory.stats()
        assert two.disk_bytes - one.disk_bytes < one.disk_bytes / 4


def test_law_11_importing_and_using_it_leaves_no_thread_and_logs_no_prompt(tmp_path: Path, caplog: Any) -> None:
    threads = set(threading.enumerate())
    with caplog.at_level(logging.DEBUG), Memory(EchoRunner(), tmp_path, config=CHUNK) as memory:
        memory.agent("zanzibar", system="persimmon").say("quokka")
        memory.generate("quokka")
        memory.evict()
    assert set(threading.enumerate()) == threads
    assert "quokka" not in caplog.text
    assert "persimmon" not in caplog.text
    assert "structlog" not in sys.modules


def test_two_memories_coexist(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path / "a") as one, Memory(EchoRunner(reply="other"), tmp_path / "b") as two:
        assert one.generate("mine").text == "mine"
        assert two.generate("mine").text == "other"


def test_equal_texts_here_do_mean_right_kv(tmp_path: Path) -> None:
    """The planted fault: a source that gives one wrong byte unnoticed makes the answer garbage."""
    from agent_memory.kvfile.sources import SegmentSource

    real = SegmentSource.read_into

    def faulty(self: Any, tensor: int, out: memoryview, capacity: int) -> None:
        real(self, tensor, out, capacity)
        if tensor == 1:
            view = np.frombuffer(out, np.uint8)
            view[5] ^= 1

    with Memory(EchoRunner(), tmp_path, config=CHUNK) as memory:
        memory.agent("a").say("believable " * 10)
        memory.evict()
        SegmentSource.read_into = faulty  # type: ignore[method-assign]
        try:
            assert memory.agent("a").say("again").text != "again"
        finally:
            SegmentSource.read_into = real  # type: ignore[method-assign]

"""What misled users: each of these did something else than it said, or nothing, without a word."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    Agent,
    AgentDeletedError,
    EchoRunner,
    Memory,
    StoreLockedError,
    UnknownAgentError,
    UnsupportedParameterError,
)


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(EchoRunner(), ":memory:") as memory:
        yield memory


# the store that this very process holds


def test_a_store_that_this_process_holds_says_so_and_what_to_type(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path):
        with pytest.raises(StoreLockedError) as caught:
            Memory(EchoRunner(), tmp_path)
        text = str(caught.value)
        assert f"in use by this process ({os.getpid()})" in text
        assert "type memory.close()" in text
    Memory(EchoRunner(), tmp_path).close()


def test_a_store_that_another_process_holds_names_that_one(tmp_path: Path) -> None:
    program = (
        "import sys; from agent_memory import EchoRunner, Memory\n"
        f"with Memory(EchoRunner(), {str(tmp_path)!r}): print('open', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreLockedError) as caught:
            Memory(EchoRunner(), tmp_path)
        other.communicate()
    assert f"in use by process {other.pid} on {socket.gethostname()}. Close it there" in str(caught.value)
    assert "this process" not in str(caught.value)


def test_a_memory_lives_as_long_as_an_agent_of_it_and_gives_its_store_back_then(tmp_path: Path) -> None:
    agent = Memory(EchoRunner(), tmp_path).agent("ann")
    gc.collect()
    assert agent.say("hello").text == "hello"
    del agent
    gc.collect()
    with Memory(EchoRunner(), tmp_path) as memory:
        assert memory.agent("ann").messages[0].content == "hello"


# an agent, or its name, everywhere


def test_an_agent_is_taken_wherever_its_name_is(memory: Memory) -> None:
    ann = memory.agent("ann")
    user = [{"role": "user", "content": "hi"}]
    asks: dict[str, Any] = {
        "generate": lambda agent: memory.generate("hi", agent=agent),
        "stream": lambda agent: memory.stream("hi", agent=agent).result(),
        "batch": lambda agent: memory.batch(["hi"], agent=agent),
        "prefill": lambda agent: memory.prefill("hi", agent=agent),
        "run_tools": lambda agent: memory.run_tools(agent, "hi", [ping]),
        "messages": lambda agent: memory.messages.create(agent=agent, max_tokens=9, messages=user),
        "chat": lambda agent: memory.chat.completions.create(agent=agent, messages=user),
        "evict": lambda agent: memory.evict(agent),
        "agent": lambda agent: memory.agent(agent),
    }
    for name, ask in asks.items():
        before = ann.info.n_turns
        for agent in (ann, "ann"):
            ask(agent)
        grown = 0 if name in ("prefill", "evict", "agent", "messages", "chat") else 2  # a list is a whole history
        assert name in ("messages", "chat") or ann.info.n_turns == before + grown, name
    assert [info.name for info in memory.agents()] == ["ann"]
    assert memory.agent(ann).messages == ann.messages


def ping() -> str:
    """Answer."""
    return "pong"


def test_deleting_an_agent_by_its_handle_deletes_it(memory: Memory) -> None:
    ann = memory.agent("ann", system="S")
    ann.say("hi")
    assert memory.delete(ann) is True
    assert memory.agents() == []
    assert memory.delete(ann) is False
    assert memory.delete("ann") is False
    with pytest.raises(AgentDeletedError):
        memory.agent(ann)
    assert memory.agent("ann").messages == ()


def test_a_handle_of_a_deleted_agent_deletes_no_new_one_of_its_name(memory: Memory) -> None:
    old = memory.agent("ann")
    memory.delete(old)
    memory.agent("ann").say("hi")
    assert memory.delete(old) is False
    assert [info.n_turns for info in memory.agents()] == [1]


def test_an_agent_of_another_memory_is_refused_everywhere(memory: Memory) -> None:
    with Memory(EchoRunner(), ":memory:") as other:
        ann = other.agent("ann")
        for use in (memory.delete, memory.evict, memory.agent, lambda agent: memory.prefill("hi", agent=agent)):
            with pytest.raises(UnsupportedParameterError, match="of another Memory"):
                use(ann)
        assert [info.name for info in other.agents()] == ["ann"]


def test_evicting_an_agent_that_does_not_exist_says_so(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.agent("ann").say("hi")
        with pytest.raises(UnknownAgentError, match="no agent 'anne' in this store") as caught:
            memory.evict("anne")
        assert isinstance(caught.value, LookupError)
        assert pickle.loads(pickle.dumps(caught.value)).name == "anne"
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.evict("ann")  # in the store, though nobody has opened it here
        assert memory.agent("ann").info.n_turns == 1
        assert isinstance(memory.agent("ann"), Agent)

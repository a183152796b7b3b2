"""The ``llm`` command, in processes of its own, and its models in Python."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import llm
import pytest

from agent_memory import EchoRunner, Memory, UnsupportedParameterError, open_store
from agent_memory.integrations.llm import AgentMemoryModel, AsyncAgentMemoryModel
from tests.parts.scripted import call, scripted

ROOT = Path(__file__).parents[2]
SUM = "Let me add.\n" + call("add", {"a": 1, "b": 2})
CAT = {"type": "object", "properties": {"name": {"type": "string"}, "legs": {"type": "integer"}}}

pytestmark = pytest.mark.contract


def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


def total(response: Any) -> int:
    """Tokens of a prompt and its reply, as llm counts them."""
    return int(response.input_tokens + response.output_tokens)


def cached(response: Any) -> int:
    return int(response.token_details["cached_tokens"])


def test_a_tool_loop_computes_only_what_is_new() -> None:
    with Memory(scripted(SUM, "Three.", "Bye."), ":memory:") as memory:
        conversation = AgentMemoryModel(memory).conversation(tools=[add])
        assert conversation.chain("1 + 2?", system="You are exact.").text() == "Let me add.\nThree."
        asked, answered = conversation.responses
        assert [(one.name, one.arguments) for one in asked.tool_calls()] == [("add", {"a": 1, "b": 2})]
        assert cached(answered) >= total(asked)
        last = conversation.prompt("Thanks.")
        assert last.text() == "Bye."
        assert cached(last) >= total(answered)
        assert last.response_json["usage"]["replaced_messages"] == 0
        [info] = memory.agents()
        assert (info.name, info.n_turns) == (conversation.id, 3)


def test_a_reply_is_streamed_as_it_is_written() -> None:
    with Memory(scripted("<think>A sum.</think>" + SUM), ":memory:") as memory:
        events = list(AgentMemoryModel(memory).prompt("1 + 2?", tools=[add]).stream_events())
        kinds = [event.type for event in events]
        assert kinds.count("text") > 1
        assert list(dict.fromkeys(kinds)) == ["reasoning", "text", "tool_call_name", "tool_call_args"]
        assert json.loads(events[-1].chunk) == {"a": 1, "b": 2}


def test_a_reply_is_held_to_a_schema() -> None:
    with Memory(scripted('{"name": "Tom", "legs": 4}'), ":memory:") as memory:
        response = AgentMemoryModel(memory).prompt("A cat.", schema=CAT)
        assert json.loads(response.text()) == {"name": "Tom", "legs": 4}


async def test_an_event_loop_runs_conversations_side_by_side() -> None:
    async with Memory(EchoRunner(delay_s=0.001), ":memory:") as memory:
        model = AsyncAgentMemoryModel(memory)
        conversations = [model.conversation() for _ in range(4)]
        texts = await asyncio.gather(*(one.prompt(f"number {n}").text() for n, one in enumerate(conversations)))
        assert texts == [f"number {n}" for n in range(4)]
        assert {info.name for info in memory.agents()} == {one.id for one in conversations}


async def test_a_cancelled_task_leaves_the_log_as_it_was() -> None:
    async with Memory(scripted("Hello.", "so " * 2000, delay_s=0.002), ":memory:") as memory:
        conversation = AsyncAgentMemoryModel(memory).conversation()
        await conversation.prompt("Hello?").text()

        async def go_on() -> str:
            return str(await conversation.prompt("Go on.", max_tokens=4096).text())

        task = asyncio.create_task(go_on())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [message.content for message in memory.agent(conversation.id).messages] == ["Hello?", "Hello."]
        assert memory.generate("Still there?").text == "Still there?"


def test_a_stream_that_is_left_ends_its_request() -> None:
    with Memory(scripted("so " * 2000, delay_s=0.002), ":memory:") as memory:
        conversation = AgentMemoryModel(memory).conversation()
        stream = conversation.prompt("Go on.", max_tokens=4096).stream_events()
        next(stream)
        stream.close()
        assert memory.agent(conversation.id).messages == ()
        assert memory.generate("Still there?").text == "Still there?"


def test_which_agent_a_prompt_has() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        model = AgentMemoryModel(memory)
        model.prompt("no conversation").text()
        model.conversation().prompt("none", agent="").text()
        assert memory.agents() == []
        model.conversation().prompt("an option's", agent="ann").text()
        assert [info.name for info in memory.agents()] == ["ann"]


def test_what_is_not_supported_is_refused_by_name() -> None:
    image = llm.Attachment(type="image/png", content=b"hi")
    with Memory(EchoRunner(), ":memory:") as memory:
        model = AgentMemoryModel(memory)
        with pytest.raises(ValueError, match="does not support attachments"):
            model.prompt("Look:", attachments=[image])
        with pytest.raises(UnsupportedParameterError, match="AttachmentPart is not supported"):
            model.prompt(messages=[llm.user("Look:", image)]).text()
        with pytest.raises(ValueError, match="logprobs"):
            model.prompt("Hello?", logprobs=True)
        with pytest.raises(ValueError, match="made with a Memory"):
            model.prompt("Hello?", path="elsewhere").text()


@pytest.mark.model
def test_a_conversation_is_resumed_by_another_process(tmp_path: Path) -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["llm"]
    installed = tmp_path / "site" / "agent_memory_here-0.dist-info"  # the entry point, where nothing is installed
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: agent-memory-here\nVersion: 0\n")
    (installed / "entry_points.txt").write_text("[llm]\n" + "".join(f"{a} = {b}\n" for a, b in points.items()))
    paths = os.pathsep.join([str(ROOT), str(installed.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "LLM_USER_PATH": str(tmp_path / "llm")}

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "llm", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "AgentMemoryModel: agent-memory" in run("models")
    assert not (tmp_path / "llm" / "agent-memory").exists()  # listing opens nothing
    options = ("-o", "max_tokens", "24")
    assert run("-m", "agent-memory", "-s", "You are exact.", *options, "My name is Ann.").strip()
    assert run("-c", *options, "What is my name?").strip()
    second, first = json.loads(run("logs", "--json", "-n", "2"))[::-1]
    if first["prompt"] != "My name is Ann.":
        first, second = second, first
    assert second["conversation_id"] == first["conversation_id"]
    found = json.loads(second["token_details"])["cached_tokens"]
    assert found >= first["input_tokens"] + first["output_tokens"]
    [info] = open_store(tmp_path / "llm" / "agent-memory").agents()
    assert (info.name, info.n_turns) == (first["conversation_id"], 2)

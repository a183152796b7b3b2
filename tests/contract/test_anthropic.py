"""Anthropic's memory tool on context memory: the six verbs, and the SDK's own tool runner."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.lib.tools import ToolError

from agent_memory import ContextMemory
from agent_memory.integrations.anthropic import AgentMemoryTool, AsyncAgentMemoryTool

pytestmark = pytest.mark.contract

NOTES = "/memories/notes.md"


@pytest.fixture
def context() -> Iterator[ContextMemory]:
    with ContextMemory() as context:
        yield context


def run(tool: AgentMemoryTool, verb: str, **arguments: Any) -> str:
    """What Claude reads, for a call as the API sends it."""
    return str(tool.call({"command": verb, **arguments}))


def lines(tool: AgentMemoryTool, path: str = NOTES, **arguments: Any) -> list[str]:
    """A file's lines, by the tool's view."""
    return [one.split("\t", 1)[1] for one in run(tool, "view", path=path, **arguments).split("\n")[1:]]


def test_a_file_is_created_viewed_and_edited(context: ContextMemory) -> None:
    tool = AgentMemoryTool(context)
    assert run(tool, "create", path=NOTES, file_text="Ann likes tea.\nBob likes coffee.\n") == (
        f"File created successfully at: {NOTES}"
    )
    assert run(tool, "view", path=NOTES) == (
        f"Here's the content of {NOTES} with line numbers:\n     1\tAnn likes tea.\n     2\tBob likes coffee.\n     3\t"
    )
    edited = run(tool, "str_replace", path=NOTES, old_str="tea", new_str="mate")
    assert "     1\tAnn likes mate.\n     2\tBob likes coffee." in edited
    run(tool, "insert", path=NOTES, insert_line=0, insert_text="People\n")
    run(tool, "insert", path=NOTES, insert_line=3, insert_text="The end.")
    assert lines(tool) == ["People", "Ann likes mate.", "Bob likes coffee.", "The end.", ""]
    assert lines(tool, view_range=[2, 3]) == ["Ann likes mate.", "Bob likes coffee."]
    assert lines(tool, view_range=[4, -1]) == ["The end.", ""]


def test_an_edit_back_and_an_edit_to_the_same_are_edits(context: ContextMemory) -> None:
    tool = AgentMemoryTool(context)
    run(tool, "create", path=NOTES, file_text="a")
    run(tool, "create", path="/memories/same.md", file_text="a")
    for old, new in (("a", "b"), ("b", "a"), ("a", "a"), ("a", "a\u2028b"), ("a\u2028b", "")):
        run(tool, "str_replace", path=NOTES, old_str=old, new_str=new)
        assert lines(tool) == [new]
    assert lines(tool, "/memories/same.md") == ["a"]
    assert context.workspace("memories").stats().n_texts == 2


def test_directories_are_listed_renamed_and_deleted(context: ContextMemory) -> None:
    tool = AgentMemoryTool(context)
    assert run(tool, "view", path="/memories").splitlines()[1:] == ["0.0K\t/memories"]
    for path in ("/memories/a.md", "/memories/people/ann.md", "/memories/people/old/eve.md"):
        run(tool, "create", path=path, file_text="x" * 512)
    assert run(tool, "view", path="/memories").splitlines()[1:] == [
        "1.5K\t/memories", "0.5K\t/memories/a.md", "1.0K\t/memories/people/", "0.5K\t/memories/people/ann.md",
        "0.5K\t/memories/people/old/",
    ]  # fmt: skip
    run(tool, "rename", old_path="/memories/people", new_path="/memories/staff")
    assert lines(tool, "/memories/staff/old/eve.md") == ["x" * 512]
    with pytest.raises(ToolError, match="does not exist"):
        run(tool, "view", path="/memories/people")
    run(tool, "delete", path="/memories/staff")
    assert run(tool, "view", path="/memories").splitlines()[1:] == ["0.5K\t/memories", "0.5K\t/memories/a.md"]
    tool.clear_all_memory()
    assert run(tool, "view", path="/memories").splitlines()[1:] == ["0.0K\t/memories"]


def test_files_outlive_the_process_and_are_recalled(tmp_path: Path) -> None:
    with ContextMemory(tmp_path / "recall.sqlite") as context:
        tool = AgentMemoryTool(context)
        run(tool, "create", path=NOTES, file_text="The spare key is under the blue pot.")
        run(tool, "str_replace", path=NOTES, old_str="blue", new_str="green")
    with ContextMemory(tmp_path / "recall.sqlite") as context:
        assert lines(AgentMemoryTool(context)) == ["The spare key is under the green pot."]
        [hit] = context.workspace("memories").recall("Where is the spare key?")
        assert "green pot" in hit.item.text
        assert context.recall("Where is the spare key?") == []  # another workspace
        run(AgentMemoryTool(context), "delete", path=NOTES)
    assert b"green pot" not in b"".join(one.read_bytes() for one in tmp_path.iterdir())
    assert b"blue pot" not in b"".join(one.read_bytes() for one in tmp_path.iterdir())


def test_killed_between_the_revisions_the_newer_one_counts(
    context: ContextMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = AgentMemoryTool(context)
    run(tool, "create", path=NOTES, file_text="a")
    with monkeypatch.context() as patched:
        patched.setattr(ContextMemory, "forget", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tool, "str_replace", path=NOTES, old_str="a", new_str="b")
    tool = AgentMemoryTool(context)
    assert lines(tool) == ["b"]
    run(tool, "str_replace", path=NOTES, old_str="b", new_str="c")
    assert context.workspace("memories").stats().n_texts == 1


def test_mistakes_are_told_to_the_model(context: ContextMemory) -> None:
    tool = AgentMemoryTool(context)
    run(tool, "create", path=NOTES, file_text="so so\nso")
    mistakes: list[tuple[str, str, dict[str, Any]]] = [
        ("must start with /memories", "view", {"path": "/etc/passwd"}),
        ("must start with /memories", "view", {"path": "/memories/../etc"}),
        ("must start with /memories", "view", {"path": "/memories.md"}),
        ("characters; 200 at most", "create", {"path": "/memories/" + "x" * 200, "file_text": ""}),
        ("does not exist", "view", {"path": "/memories/none"}),
        ("already exists", "create", {"path": NOTES, "file_text": ""}),
        ("is a file, not a directory", "create", {"path": f"{NOTES}/x", "file_text": ""}),
        ("in lines: 1, 1, 2. Please", "str_replace", {"path": NOTES, "old_str": "so", "new_str": ""}),
        ("did not appear", "str_replace", {"path": NOTES, "old_str": "no", "new_str": ""}),
        ("should be within \\[0, 2\\]", "insert", {"path": NOTES, "insert_line": 3, "insert_text": ""}),
        ("Cannot delete the /memories", "delete", {"path": "/memories"}),
        ("does not exist", "delete", {"path": "/memories/none"}),
        ("Cannot rename the /memories", "rename", {"old_path": "/memories", "new_path": "/memories/x"}),
        ("into itself|not a directory", "rename", {"old_path": NOTES, "new_path": f"{NOTES}/x"}),
        ("90,000 at most", "create", {"path": "/memories/big", "file_text": "x" * 90_001}),
    ]
    for message, verb, arguments in mistakes:
        with pytest.raises(ToolError, match=message):
            run(tool, verb, **arguments)
    assert lines(tool) == ["so so", "so"]


CALLS: list[dict[str, Any]] = [
    {"command": "create", "path": NOTES, "file_text": "Ann likes tea."},
    {"command": "view", "path": "/memories/none"},
    {"command": "view", "path": NOTES},
]


def answering(seen: list[Any]) -> httpx.MockTransport:
    """Anthropic's API, which asks for the calls one after another, then ends; ``seen`` gets the tool results."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        last, n = asked["messages"][-1]["content"], len(seen)
        if isinstance(last, list):
            seen.append(last[-1])
            n += 1
        else:
            assert asked["tools"] == [{"type": "memory_20250818", "name": "memory"}]
        call = {"type": "tool_use", "id": f"call-{n}", "name": "memory", "input": CALLS[n] if n < len(CALLS) else {}}
        content = [call] if n < len(CALLS) else [{"type": "text", "text": "Done."}]
        reply = {
            "id": "m", "type": "message", "role": "assistant", "model": "claude", "content": content,
            "stop_reason": "tool_use" if n < len(CALLS) else "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }  # fmt: skip
        return httpx.Response(200, json=reply)

    return httpx.MockTransport(answer)


def checked(seen: list[Any]) -> None:
    """What the three calls give."""
    assert [one.get("is_error", False) for one in seen] == [False, True, False]
    assert "Ann likes tea." in json.dumps(seen[2]["content"])


ASKED: Any = {"model": "claude", "max_tokens": 64, "messages": [{"role": "user", "content": "Remember: tea."}]}


def test_the_sdks_tool_runner_uses_it(context: ContextMemory) -> None:
    seen: list[Any] = []
    client = Anthropic(api_key="none", http_client=httpx.Client(transport=answering(seen)))
    last = client.beta.messages.tool_runner(tools=[AgentMemoryTool(context)], **ASKED).until_done()
    assert last.content[0].text == "Done."
    checked(seen)


async def test_the_sdks_async_tool_runner_uses_it(context: ContextMemory) -> None:
    seen: list[Any] = []
    client = AsyncAnthropic(api_key="none", http_client=httpx.AsyncClient(transport=answering(seen)))
    tool = AsyncAgentMemoryTool(context)
    await client.beta.messages.tool_runner(tools=[tool], **ASKED).until_done()
    checked(seen)
    await tool.clear_all_memory()
    assert context.workspace("memories").stats().n_texts == 0

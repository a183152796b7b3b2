"""Model Context Protocol: our example server under the SDK's own client, and servers' tools in ``run_tools``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from mcp import Client, StdioServerParameters
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ListToolsResult, Tool
from pydantic import BaseModel

from agent_memory import Memory
from agent_memory.integrations.mcp_tools import MCPToolError, mcp_tools
from agent_memory.tools import as_tools
from tests.parts.scripted import call, scripted

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[2]


def memory_server(folder: Path, *words: str) -> StdioServerParameters:
    """The example, as a process of its own."""
    arguments = [str(ROOT / "examples" / "mcp_stdio.py"), "--path", str(folder / "memory.sqlite"), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return StdioServerParameters(command=sys.executable, args=arguments, env=environment)


async def asked(client: Client, name: str, **arguments: Any) -> Any:
    """What a tool returned."""
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result.content
    return result.structured_content.get("result", result.structured_content)


async def test_the_sdks_client_remembers_and_recalls_across_processes(tmp_path: Path) -> None:
    async with Client(memory_server(tmp_path)) as client:
        listed = {tool.name for tool in (await client.list_tools()).tools}
        assert listed == {
            "remember", "recall", "working_set", "forget", "start_episode", "record_step", "complete_episode",
            "recommend",
        }  # fmt: skip
        assert not (await asked(client, "remember", text="The spare key is under the blue pot."))["known_before"]
        episode = await asked(client, "start_episode", task="deploy the shop")
        numbers = [await asked(client, "record_step", episode=episode, tool=tool) for tool in ("build", "release")]
        assert numbers == sorted(numbers)
        assert await asked(client, "complete_episode", episode=episode, success=True) > 0
        failed = await client.call_tool("record_step", {"episode": episode, "tool": "build"})
        assert failed.is_error
        assert "completed" in failed.content[0].text
    async with Client(memory_server(tmp_path)) as client:
        [hit] = await asked(client, "recall", query="Where is the spare key?")
        assert "blue pot" in hit["text"]
        assert "blue pot" in await asked(client, "working_set", task="Find the spare key.")
        advice = await asked(client, "recommend", task="deploy the shop")
        assert advice[0]["tools"][0] == "build"
    async with Client(memory_server(tmp_path, "--workspace", "other")) as client:
        assert await asked(client, "recall", query="Where is the spare key?") == []
    async with Client(memory_server(tmp_path)) as client:
        assert await asked(client, "forget", ids=[hit["id"]]) == 1
    assert b"blue pot" not in (tmp_path / "memory.sqlite").read_bytes()


def test_an_agent_uses_a_servers_tools(tmp_path: Path) -> None:
    runner = scripted(
        call("remember", {"text": "Ann likes tea."}), call("recall", {"query": "What does Ann like?"}), "Tea."
    )
    with Memory(runner, ":memory:") as memory, mcp_tools(memory_server(tmp_path)) as functions:
        reply = memory.run_tools("ann", "Ann likes tea. What does she like?", functions)
        assert reply.text == "Tea."
        results = [one.content for one in memory.agent("ann").messages if one.role == "tool"]
        assert len(results) == 2
        assert "Ann likes tea." in results[1]
        assert reply.usage.miss is None


async def test_a_program_with_an_event_loop_may_block_it(tmp_path: Path) -> None:
    with Memory(scripted(call("add", {"a": 1, "b": 2}), "Three."), ":memory:") as memory, mcp_tools(toy()) as functions:
        assert memory.run_tools("ann", "1 + 2?", functions, concurrent=True).text == "Three."


class Place(BaseModel):
    street: str
    number: int = 1


def toy() -> MCPServer:
    """A server in this process."""
    server = MCPServer("toy")

    @server.tool()
    def add(a: int, b: int = 1) -> int:
        """Add two whole numbers."""
        return a + b

    @server.tool()
    def paint(
        colour: Literal["red", "blue"], walls: list[str], share: float | None = None, lasting: bool = True
    ) -> str:
        """Paint walls."""
        return f"{colour} {walls} {share} {lasting}"

    @server.tool()
    def visit(place: Place) -> str:
        """Go there."""
        return f"{place.number} {place.street}"

    @server.tool()
    def fail() -> str:
        """Fail."""
        raise ToolError("no luck")

    return server


def test_schemas_become_types_and_back() -> None:
    with mcp_tools(toy(), names=["add", "paint", "visit"], prefix="toy.") as functions:
        add, paint, visit = as_tools(functions)
        assert (add.name, add.description) == ("toy.add", "Add two whole numbers.")
        assert add.parameters == {
            "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"]
        }  # fmt: skip
        assert paint.parameters["properties"] == {
            "colour": {"type": "string", "enum": ["red", "blue"]},
            "walls": {"type": "array", "items": {"type": "string"}},
            "share": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "lasting": {"type": "boolean"},
        }
        assert visit.parameters["properties"] == {"place": {}}  # a reference: the server checks it
        assert functions[0](a=1) == "2"
        assert functions[1](colour="red", walls=["north"]) == "red ['north'] None True"
        assert functions[2](place={"street": "Elm Street"}) == "1 Elm Street"
        with pytest.raises(MCPToolError, match="street"):
            functions[2](place={})


def test_what_fails_is_told_to_the_model() -> None:
    runner = scripted(call("fail", {}), "Sorry.")
    with Memory(runner, ":memory:") as memory, mcp_tools(toy()) as functions:
        assert memory.run_tools("ann", "Try.", functions).text == "Sorry."
        [failed] = [one.content for one in memory.agent("ann").messages if one.role == "tool"]
        assert "MCPToolError" in failed
        assert "no luck" in failed


def test_a_tool_that_the_server_has_not_is_named() -> None:
    with (
        pytest.raises(LookupError, match="the server has no tool 'sub'; it has add, paint"),
        mcp_tools(toy(), names=["sub"]),
    ):
        pass


def test_all_pages_are_read_and_names_that_python_has_not_are_spelled_otherwise() -> None:
    start = {"type": "string", "description": "where\nit is"}
    schema: dict[str, Any] = {"type": "object", "properties": {"from": start, "x-y": {"type": ["integer", "null"]}}}
    pages = {
        None: Tool(name="move", description="Move it.", input_schema=schema),
        "2": Tool(name="rest", input_schema={"type": "object"}),
    }

    async def listed(_: Any, asked: Any) -> ListToolsResult:
        cursor = asked.cursor if asked else None
        return ListToolsResult(tools=[pages[cursor]], next_cursor="2" if cursor is None else None)

    async def called(_: Any, asked: Any) -> CallToolResult:
        return CallToolResult(content=[], structured_content=asked.arguments)

    with mcp_tools(Server("odd", on_list_tools=listed, on_call_tool=called)) as functions:
        move, rest = as_tools(functions)
        assert (move.description, rest.name) == ("Move it.", "rest")
        assert move.parameters["properties"] == {
            "from_": {"type": "string", "description": "where it is"},
            "x_y": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        }
        assert functions[0](from_="here", x_y=1) == '{"from": "here", "x-y": 1}'

"""Long-term memory for any Model Context Protocol client: a server over stdio that no model and no port belongs to.

    pip install '.[mcp]'
    python examples/mcp_stdio.py --path memory.sqlite [--workspace NAME]

Context memory and episodes stand in one file, which several servers may share. In a client's configuration the command
is ``python`` with the arguments above. What a call returned for is durable.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import wraps
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from agent_memory import AgentMemoryError, ContextMemory, EpisodicMemory, Outcome


def tool(server: MCPServer) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Offer a function as a tool whose errors the model reads."""

    def offer(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def told(**arguments: Any) -> Any:
            try:
                return function(**arguments)
            except AgentMemoryError as error:
                raise ToolError(str(error)) from error

        return server.tool()(told)

    return offer


def server_of(context: ContextMemory, episodes: EpisodicMemory) -> MCPServer:
    server = MCPServer("agent-memory", instructions="Recall before you begin; remember what is worth knowing later.")

    @tool(server)
    def remember(text: str, source: str | None = None) -> dict[str, object]:
        """Keep a text, word for word. source: the conversation or file that it belongs to."""
        report = context.remember(text, source=source)
        return {"ids": list(report.ids), "known_before": report.n_texts == 0}

    @tool(server)
    def recall(query: str, k: int = 5) -> list[dict[str, object]]:
        """Find what was remembered earlier, best first. Give the words that it would contain."""
        return [{"id": hit.item.id, "text": hit.item.text, "kind": hit.item.kind} for hit in context.recall(query, k=k)]

    @tool(server)
    def working_set(task: str, budget_tokens: int = 2000) -> str:
        """Collect what a task needs within a budget, in an order that keeps a prompt's beginning."""
        return context.working_set(task, budget_tokens=budget_tokens).text

    @tool(server)
    def forget(ids: list[int]) -> int:
        """Delete remembered texts, so that no byte of them stays; the number of texts."""
        return context.forget(ids)

    @tool(server)
    def start_episode(task: str) -> int:
        """Begin to record how a task is done; the episode's id."""
        return episodes.start(task).id

    @tool(server)
    def record_step(episode: int, tool: str, action: str = "", ok: bool = True, observation: str = "") -> int:
        """Record that a tool was used, and what came back; the step's number."""
        return episodes.resume(episode).step(tool, action, ok=ok, observation=observation)

    @tool(server)
    def complete_episode(episode: int, success: bool, result: str = "") -> float:
        """End an episode; what it was worth."""
        return episodes.resume(episode).complete(Outcome(success=success, result=result)).total

    @tool(server)
    def recommend(task: str, k: int = 3) -> list[dict[str, object]]:
        """Advice for a task from earlier episodes, best first."""
        return [{"text": one.text, "tools": list(one.tools)} for one in episodes.recommend(task, k=k)]

    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="memory.sqlite", help="the file; made where there is none")
    parser.add_argument("--workspace", default="default", help="what is remembered in one is not seen in another")
    args = parser.parse_args()
    with (
        ContextMemory(args.path, workspace=args.workspace) as context,
        EpisodicMemory(args.path, workspace=args.workspace) as episodes,
    ):
        server_of(context, episodes).run("stdio")


if __name__ == "__main__":
    main()

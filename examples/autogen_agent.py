"""An AutoGen agent with a tool whose conversation goes on after a restart, and what each of its replies computed.

    pip install '.[cpu,grammar,autogen]' 'autogen-agentchat>=0.7'
    python examples/autogen_agent.py [--model NAME_OR_FOLDER]

Each reply must be a call, and a grammar holds it to the tool's schema: the starter model (135 million parameters) is
too small to call well by itself. AutoGen keeps the messages in the agent's state, the ``Memory`` their KV.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Mapping
from typing import Any, Literal

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import ToolCallRequestEvent

from agent_memory import Memory
from agent_memory.integrations.autogen import AgentMemoryClient

QUESTIONS = ["How many blue tools are there?", "And how many red ones?", "Say the blue ones again."]


async def count(what: Literal["red tools", "blue tools"]) -> int:
    """Count what is in the shed."""
    return {"red tools": 3, "blue tools": 14}[what]


def keeper(memory: Memory) -> AssistantAgent:
    client = AgentMemoryClient(memory, "shed", tool_choice="required", max_tokens=48)
    return AssistantAgent("keeper", client, tools=[count], system_message="You keep the shed.")


async def ask(agent: AssistantAgent, question: str) -> Mapping[str, Any]:
    result = await agent.run(task=question)
    for said in result.messages:
        if isinstance(said, ToolCallRequestEvent):
            used: Any = said.models_usage
            shown = f"{said.content[0].name}({said.content[0].arguments})"
            print(f"{used.cached_tokens:5,} of {used.prompt_tokens:5,} prompt tokens were there   {shown}")
    return await agent.save_state()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id, mlx-lm folder or .gguf file; default: the starter model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        async with Memory.aopen(args.model, folder) as memory:
            agent = keeper(memory)
            for question in QUESTIONS[:2]:
                state = await ask(agent, question)
        async with Memory.aopen(args.model, folder) as memory:  # another process, another day
            print("after a restart:")
            agent = keeper(memory)
            await agent.load_state(state)
            await ask(agent, QUESTIONS[2])


if __name__ == "__main__":
    asyncio.run(main())

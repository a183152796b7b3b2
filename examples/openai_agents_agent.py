"""An agent of OpenAI's Agents SDK with a tool whose session goes on after a restart, and what each reply computed.

    pip install '.[cpu,grammar,openai-agents]'
    python examples/openai_agents_agent.py [--model NAME_OR_FOLDER]

The first reply of a run must be a call, and a grammar holds it to the tool's schema: the starter model (135 million
parameters) is too small to call well by itself. The session is the log of the agent of its name.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from typing import Literal

from agents import Agent, ModelSettings, RunConfig, Runner, function_tool
from agents.tracing import set_tracing_disabled

from agent_memory import Memory
from agent_memory.integrations.openai_agents import AgentMemorySession


@function_tool
def count(what: Literal["red tools", "blue tools"]) -> int:
    """Count what is in the shed."""
    return {"red tools": 3, "blue tools": 14}[what]


KEEPER = Agent(
    name="keeper",
    instructions="You keep the shed. Answer in one sentence.",
    tools=[count],
    model_settings=ModelSettings(tool_choice="required", max_tokens=48),
)


async def ask(memory: Memory, question: str) -> None:
    session = AgentMemorySession(memory, "shed")
    result = await Runner.run(KEEPER, question, session=session, run_config=RunConfig(model=session.model))
    for reply in result.raw_responses:
        used = reply.usage
        cached, [said, *_] = used.input_tokens_details.cached_tokens, reply.output
        shown = f"{said.name}({said.arguments})" if said.type == "function_call" else result.final_output
        print(f"{cached:5,} of {used.input_tokens:5,} prompt tokens were there   {' '.join(shown.split())[:60]}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id, mlx-lm folder or .gguf file; default: the starter model")
    args = parser.parse_args()
    set_tracing_disabled(True)  # traces would be sent to OpenAI
    with tempfile.TemporaryDirectory() as folder:
        async with Memory.aopen(args.model, folder) as memory:
            await ask(memory, "How many blue tools are there?")
        async with Memory.aopen(args.model, folder) as memory:  # another process, another day
            print("after a restart:")
            await ask(memory, "And how many red ones?")


if __name__ == "__main__":
    asyncio.run(main())

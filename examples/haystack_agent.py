"""A Haystack agent with a tool whose conversation goes on after a restart, and what each of its replies computed.

    pip install '.[cpu,grammar,haystack]'
    python examples/haystack_agent.py [--model NAME_OR_FOLDER]

Each reply must be a call, and a grammar holds it to the tool's schema: the starter model (135 million parameters) is
too small to call well by itself. The agent ends its run when the tool has answered.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Literal

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # Haystack reports usage otherwise

from haystack.components.agents import Agent
from haystack.dataclasses import ChatMessage
from haystack.tools import tool

from agent_memory import Memory
from agent_memory.integrations.haystack import AgentMemoryChatGenerator

QUESTIONS = ["How many blue tools are there?", "And how many red ones?", "Say the blue ones again."]


@tool
def count(what: Literal["red tools", "blue tools"]) -> int:
    """Count what is in the shed."""
    return {"red tools": 3, "blue tools": 14}[what]


def ask(memory: Memory, question: str, history: list[ChatMessage]) -> list[ChatMessage]:
    generator = AgentMemoryChatGenerator(memory, "shed", {"tool_choice": "required", "max_tokens": 48})
    agent = Agent(
        chat_generator=generator, tools=[count], exit_conditions=["count"], system_prompt="You keep the shed."
    )
    messages = agent.run([*history, ChatMessage.from_user(question)])["messages"]
    asked, answer = messages[-2:]
    used = asked.meta["usage"]
    shown = f"{asked.tool_call.tool_name}({asked.tool_call.arguments}) = {answer.tool_call_result.result}"
    cached, prompt = used["prompt_tokens_details"]["cached_tokens"], used["prompt_tokens"]
    print(f"{cached:5,} of {prompt:5,} prompt tokens were there   {shown}")
    return messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id, mlx-lm folder or .gguf file; default: the starter model")
    args = parser.parse_args()
    history: list[ChatMessage] = []
    with tempfile.TemporaryDirectory() as folder:
        with Memory(args.model, folder) as memory:
            for question in QUESTIONS[:2]:
                history = ask(memory, question, history)
        with Memory(args.model, folder) as memory:  # another process, another day
            print("after a restart:")
            ask(memory, QUESTIONS[2], history)


if __name__ == "__main__":
    main()

"""A Pydantic AI agent with typed output whose conversation goes on after a restart, and what each request computed.

    pip install '.[cpu,grammar,pydantic-ai]'
    python examples/pydantic_ai_agent.py [--model NAME_OR_FOLDER]

The output is the call of a tool, and a grammar holds it to its schema: the starter model (135 million parameters) fills
the fields, with whatever it believes. The conversation's id is the name of the agent.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse

from agent_memory import Memory
from agent_memory.integrations.pydantic_ai import AgentMemoryModel

QUESTIONS = ["A hammer, red, on the left wall.", "A saw, blue, in the drawer.", "And a red saw, also in the drawer."]


class Item(BaseModel):
    """Something in the shed."""

    name: Literal["hammer", "saw"]
    colour: Literal["red", "blue"]


def ask(memory: Memory, question: str, history: Sequence[ModelMessage]) -> list[ModelMessage]:
    agent = Agent(AgentMemoryModel(memory), output_type=Item, instructions="You keep the list of what is in the shed.")
    result = agent.run_sync(question, conversation_id="shed", message_history=history)
    for reply in result.new_messages():
        if isinstance(reply, ModelResponse):
            used = reply.usage
            print(f"{used.cache_read_tokens:5,} of {used.input_tokens:5,} prompt tokens were there   {result.output!r}")
    return result.all_messages()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id, mlx-lm folder or .gguf file; default: the starter model")
    args = parser.parse_args()
    history: list[ModelMessage] = []
    with tempfile.TemporaryDirectory() as folder:
        with Memory(args.model, folder) as memory:
            for question in QUESTIONS[:2]:
                history = ask(memory, question, history)
        with Memory(args.model, folder) as memory:  # another process, another day
            print("after a restart:")
            ask(memory, QUESTIONS[2], history)


if __name__ == "__main__":
    main()

"""A smolagents agent that calls tools, asked twice, and what each of its steps computed.

    pip install '.[cpu,grammar,smolagents]'
    python examples/smolagents_agent.py [--model NAME_OR_FOLDER]

Each step of a ToolCallingAgent must be a call, and a grammar holds it to the tools' schemas. Which tool it is, and with
which values, is the model's choice, and the starter model (135 million parameters) is far too small to choose well.
smolagents' own instructions are 1,200 tokens long here: they are computed once.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Literal

from smolagents import ActionStep, LogLevel, ToolCallingAgent, tool

from agent_memory import Memory
from agent_memory.integrations.smolagents import AgentMemoryModel


@tool
def count(colour: Literal["red", "blue"]) -> int:
    """Count the tools of one colour in the shed.

    Args:
        colour: the colour
    """
    return {"red": 3, "blue": 14}[colour]


@tool
def final_answer(answer: int) -> int:
    """Answer the task.

    Args:
        answer: the number that was asked for
    """
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id, mlx-lm folder or .gguf file; default: the starter model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Memory(args.model, folder) as memory:
        model = AgentMemoryModel(memory, "shed", max_tokens=96)
        agent = ToolCallingAgent([count, final_answer], model, max_steps=2, verbosity_level=LogLevel.OFF)
        for task in ("How many blue tools are there?", "And how many red ones?"):
            print(f"{task}   {' '.join(str(agent.run(task, reset=False)).split())[:60]}")
        for step in agent.memory.steps:
            if isinstance(step, ActionStep) and step.tool_calls and step.token_usage is not None:
                calls = ", ".join(f"{call.name}({call.arguments})" for call in step.tool_calls)
                used = step.token_usage
                print(f"{used.cached_tokens:5,} of {used.input_tokens:5,} prompt tokens were there   {calls[:60]}")


if __name__ == "__main__":
    main()

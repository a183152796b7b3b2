"""An agent with a calculator and a folder of notes: the model calls, plain Python functions answer.

    pip install "llguidance>=1.9.1,<2"
    python examples/tools.py [--model NAME_OR_FOLDER]

The first reply to each task must be a call, and a grammar holds it to the tool's schema: every call is well formed and
can be run. Which tool it is, and with which values, is the model's choice, and the starter model (135 million
parameters) is far too small to choose well. Name one of a few billion that was trained to call tools to see it work.
"""

from __future__ import annotations

import argparse
import operator
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from agent_memory import Memory, Reply, ToolCall, ToolResult

NOTES = {"shed.txt": "3 red tools, 14 blue tools.", "loans.txt": "A loan lasts 21 days."}
TASKS = [
    "What is 137 * 24? Use the calculator.",
    "Which notes are there?",
    "How many tools are in the shed, in all? Read the note shed.txt.",
]
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def calculate(left: float, sign: Literal["+", "-", "*", "/"], right: float) -> str:
    """Calculate with two numbers.

    Args:
        left: The first number.
        sign: What to do with them.
        right: The second number.
    """
    return f"{OPERATORS[sign](left, right):g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=None, help="hub id, mlx-lm folder or .gguf file (default: the starter model)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Memory(args.model, Path(folder) / "store") as memory:
        notes = Path(folder) / "notes"
        notes.mkdir()
        for name, text in NOTES.items():
            (notes / name).write_text(text, encoding="utf-8")

        def list_notes() -> list[str]:
            """The names of all notes."""
            return sorted(path.name for path in notes.iterdir())

        def read_note(name: Literal["shed.txt", "loans.txt"]) -> str:  # no other path can be asked for
            """The text of one note."""
            return (notes / name).read_text(encoding="utf-8")

        for number, task in enumerate(TASKS):
            functions = {function.__name__: function for function in (calculate, list_notes, read_note)}
            agent = memory.agent(f"worker {number}", system="Answer in one sentence.", tools=list(functions.values()))
            print(f"\nTask: {task}")
            reply = agent.say(task, tool_choice="required", max_tokens=96)
            for call in reply.tool_calls:  # one, or none where max_tokens cut it
                result = run(call, functions[call.name])
                print(f"  calls    {call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})")
                print(f"  result   {result.content}")
                reply = agent.give(result, max_tokens=48)
            show(reply)


def run(call: ToolCall, function: Callable[..., Any]) -> ToolResult:
    """Run one call; what it raises is the model's to read."""
    try:
        return ToolResult(call.id, str(function(**call.arguments)))
    except Exception as error:  # noqa: BLE001 - as above
        return ToolResult(call.id, f"{type(error).__name__}: {error}", is_error=True)


def show(reply: Reply) -> None:
    """The last reply of a task."""
    for call in reply.rejected_calls:
        print(f"  refused  {call.name or 'a call'}: {call.detail}")
    print(f"  {reply.finish:8} {' '.join(reply.text.split())[:200]}")
    usage = reply.usage
    print(f"  {usage.cached_tokens:,} of {usage.prompt_tokens:,} prompt tokens were there already")


if __name__ == "__main__":
    main()

"""A LangChain conversation with a tool call that goes on after a restart, and what each turn computed.

    pip install '.[cpu,grammar,langchain]'
    python examples/langchain_agent.py [--model NAME_OR_FOLDER]

The first reply must be a call, and a grammar holds it to the tool's schema: the starter model (135 million parameters)
is too small to call well by itself. The thread's id is the name of the agent, here and in any LangGraph graph.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool

from agent_memory import Memory
from agent_memory.integrations.langchain import ChatAgentMemory

THREAD: Any = {"configurable": {"thread_id": "shed"}}


@tool
def count(what: Literal["red tools", "blue tools"]) -> int:
    """Count what is in the shed."""
    return {"red tools": 3, "blue tools": 14}[what]


def show(reply: AIMessage) -> None:
    calls = ", ".join(f"{call['name']}({call['args']})" for call in reply.tool_calls)
    assert reply.usage_metadata is not None
    cached, prompt = reply.usage_metadata["input_token_details"]["cache_read"], reply.usage_metadata["input_tokens"]
    print(f"{cached:5,} of {prompt:5,} prompt tokens were there   {calls or ' '.join(reply.text.split())[:60]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id, mlx-lm folder or .gguf file; default: the starter model")
    args = parser.parse_args()
    history: list[BaseMessage] = [SystemMessage("You keep the shed. Answer in one sentence.")]
    with tempfile.TemporaryDirectory() as folder:
        with Memory(args.model, folder) as memory:
            model = ChatAgentMemory(memory=memory, max_tokens=48)
            history.append(HumanMessage("How many blue tools are there?"))
            asked = model.bind_tools([count], tool_choice="any").invoke(history, THREAD)
            show(asked)
            history += [asked, *(count.invoke(call) for call in asked.tool_calls)]
            answer = model.bind_tools([count]).invoke(history, THREAD)
            show(answer)
        with Memory(args.model, folder) as memory:  # another process, another day
            model = ChatAgentMemory(memory=memory, max_tokens=48)
            history += [answer, HumanMessage("Thank you. Is that many?")]
            print("after a restart:")
            show(model.bind_tools([count]).invoke(history, THREAD))


if __name__ == "__main__":
    main()

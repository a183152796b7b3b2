"""A LlamaIndex conversation with a tool call that goes on after a restart, and what each turn computed.

    pip install '.[cpu,grammar,llama-index]'
    python examples/llama_index_agent.py [--model NAME_OR_FOLDER]

The first reply must be a call, and a grammar holds it to the tool's schema: the starter model (135 million parameters)
is too small to call well by itself. A FunctionAgent takes the same LLM: ``FunctionAgent(tools=[count], llm=llm)``.
"""

import argparse  # no annotations as text in this file: LlamaIndex reads the types of the tool
import tempfile
from typing import Literal

from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.tools import FunctionTool

from agent_memory import Memory
from agent_memory.integrations.llama_index import AgentMemoryLLM


def count(what: Literal["red tools", "blue tools"]) -> int:
    """Count what is in the shed."""
    return {"red tools": 3, "blue tools": 14}[what]


TOOLS = [FunctionTool.from_defaults(count)]


def show(said: ChatResponse, calls: str = "") -> ChatMessage:
    used = said.additional_kwargs
    text = calls or " ".join((said.message.content or "").split())[:60]
    print(f"{used['cached_tokens']:5,} of {used['prompt_tokens']:5,} prompt tokens were there   {text}")
    return said.message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id, mlx-lm folder or .gguf file; default: the starter model")
    args = parser.parse_args()
    history = [
        ChatMessage(role="system", content="You keep the shed. Answer in one sentence."),
        ChatMessage(role="user", content="How many blue tools are there?"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        with Memory(args.model, folder) as memory:
            llm = AgentMemoryLLM(memory, "shed", max_tokens=48)
            asked = llm.chat_with_tools(TOOLS, chat_history=history, tool_required=True)
            [call] = llm.get_tool_calls_from_response(asked)
            history.append(show(asked, f"{call.tool_name}({call.tool_kwargs})"))
            answers = {"tool_call_id": call.tool_id}
            history.append(ChatMessage(role="tool", content=str(count(**call.tool_kwargs)), additional_kwargs=answers))
            history.append(show(llm.chat_with_tools(TOOLS, chat_history=history)))
        with Memory(args.model, folder) as memory:  # another process, another day
            llm = AgentMemoryLLM(memory, "shed", max_tokens=48)
            print("after a restart:")
            show(llm.chat_with_tools(TOOLS, "Thank you. Is that many?", chat_history=history))


if __name__ == "__main__":
    main()

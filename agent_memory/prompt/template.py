"""Messages -> the chat template's text -> ids, keeping the ids that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from agent_memory.errors import UnsupportedParameterError
from agent_memory.prompt.messages import as_dicts
from agent_memory.prompt.tokens import reuse
from agent_memory.prompt.toolprompt import spelled
from agent_memory.protocols import Tokenizer
from agent_memory.tools import as_functions
from agent_memory.types import Message, Tool


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    variables: Mapping[str, Any] | None = None,
    generation_prompt: bool = True,
    now: datetime | None = None,
) -> str:
    """The text that the model reads. A tokenizer without a chat template gets ``Role: text`` paragraphs.

    A template that knows no tools gets them, their calls and results as text. Raises UnsupportedParameterError where
    the template refuses the messages.
    """

    def write(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        return tokenizer.render(
            as_dicts(messages),
            tools=as_functions(tools),
            generation_prompt=generation_prompt,
            variables=variables,
            now=now,
        )

    if not tokenizer.has_template:
        return _paragraphs(spelled(messages, tools), generation_prompt)
    has_tools = bool(tools) or any(message.tool_calls or message.role == "tool" for message in messages)
    if not has_tools or tokenizer.knows_tools:
        return write(messages, tools)
    try:
        return write(spelled(messages, tools))
    except UnsupportedParameterError:  # some templates have no system message
        if not tools or messages[0].role == "system":
            raise
        return write(spelled(messages, tools, has_system=False))


def writes_calls(tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> bool:
    """True if the template writes calls itself; otherwise they are text when it sees them."""
    has_tools = bool(tools) or any(message.tool_calls or message.role == "tool" for message in messages)
    return not has_tools or tokenizer.knows_tools


def _paragraphs(messages: Sequence[Message], generation_prompt: bool) -> str:
    parts = [f"{message.role.capitalize()}: {message.content}\n\n" for message in messages]
    return "".join(parts) + ("Assistant:" if generation_prompt else "")


def prompt_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    known: Sequence[int] = (),
    *,
    tools: Sequence[Tool] = (),
    variables: Mapping[str, Any] | None = None,
    generation_prompt: bool = True,
    now: datetime | None = None,
) -> list[int]:
    """Return a conversation's ids, taken from ``known`` where the text is equal. BOS is where the template puts it."""
    text = render(tokenizer, messages, tools=tools, variables=variables, generation_prompt=generation_prompt, now=now)
    return reuse(tokenizer.encode(text), known, tokenizer)


def raw_ids(tokenizer: Tokenizer, text: str, known: Sequence[int] = ()) -> list[int]:
    """Ids of bare text after the ``known`` ones; BOS once, at the very beginning, where the tokenizer puts one."""
    return [*known, *tokenizer.encode(text, bos=not known)]

"""A call that ``max_tokens`` has cut short stands in the next prompt as the model wrote it: law 12."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_memory import Config, Memory, Tool
from tests.parts.templated import says, templated, uneven
from tests.parts.templates import NATIVE

TOOL = Tool("look", "Looks.", {"type": "object", "properties": {"at": {"type": "string"}}})
#: Mistral's template moves its tools with each message, whatever the reply was.
NAMES = [name for name in NATIVE if not name.startswith("mistral")]


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("words", ["", "I look. "])
@pytest.mark.parametrize("name", NAMES)
def test_a_cut_call_is_computed_once(name: str, words: str) -> None:
    tokenizer: Any = templated(name)
    call = tokenizer.call.format(name="look", args=json.dumps({"at": "the lamp, the lens and the stair"}))
    written = len(uneven(tokenizer, words + call))
    for n_tokens in (4, written // 2, 2 * written // 3):
        runner = says(tokenizer, words + call)
        with Memory(runner, ":memory:", config=Config(chunk_tokens=16)) as memory:
            agent = memory.agent("a", tools=[TOOL])
            first = agent.say("Look.", max_tokens=n_tokens)
            assert (first.finish, len(first.token_ids), first.tool_calls) == ("length", n_tokens, ())
            usage = agent.say("Go on.", max_tokens=1).usage
        assert usage.miss is None, (n_tokens, usage.miss_detail)
        assert usage.cached_tokens == first.usage.prompt_tokens + n_tokens, n_tokens

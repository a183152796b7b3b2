"""What a model's tokenizer says of tools: whether its template knows them, how calls are written, and its marks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent_memory import Memory, ToolResult
from agent_memory.toolcall import FORMATS

pytestmark = pytest.mark.mlx
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LISTS = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}" + PLAIN
QWEN = LISTS + "{% for tool_call in [] %}<tool_call>{{ tool_call.name }}</tool_call>{% endfor %}"


def tokenizer(template: str | None, *added: str, special: tuple[str, ...] = ()) -> Any:
    """A byte-level tokenizer with this template and these added tokens."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from agent_memory.runner.tokenizer import HFTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(mark, special=True) for mark in ("<eos>", *special)])
    inner.add_tokens(list(added))
    hf = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    hf.add_special_tokens({"additional_special_tokens": list(special)})
    hf.chat_template = template
    return HFTokenizer(TokenizerWrapper(hf))


def test_a_template_that_writes_tools_knows_them_and_another_does_not() -> None:
    assert [tokenizer(template).knows_tools for template in (LISTS, PLAIN, None)] == [True, False, False]
    assert not tokenizer("{{ raise_exception('no') }}").knows_tools


def test_the_format_of_calls_follows_from_template_and_vocabulary() -> None:
    assert tokenizer(QWEN).tool_format == "json_tools"
    assert tokenizer(LISTS + "<|python_tag|>").tool_format == "llama3"
    assert tokenizer(LISTS + "[TOOL_CALLS]").tool_format == "mistral"
    assert tokenizer(PLAIN).tool_format is tokenizer(None).tool_format is None
    assert tokenizer(PLAIN, "<|tool_call_start|>", "<|tool_call_end|>").tool_format == "pythonic"
    assert {"json_tools", "llama3", "mistral", "pythonic"} < set(FORMATS)


def test_the_marks_of_reasoning_follow_from_the_vocabulary() -> None:
    assert tokenizer(PLAIN).reasoning is None
    assert tokenizer(PLAIN, "<think>", "</think>").reasoning == ("<think>", "</think>")


def test_special_tokens_are_text_where_they_are_marks_and_never_the_end() -> None:
    made = tokenizer(PLAIN, special=("[TOOL_CALLS]",))
    ids = made.encode("a[TOOL_CALLS]b<eos>")
    for marks, shown in ((False, "ab"), (True, "a[TOOL_CALLS]b")):
        stream = made.detokenizer(marks=marks)
        assert "".join(map(stream.add, ids)) + stream.end() == shown


def forcing(ids: list[int]) -> Any:
    """A logits processor under which the model says exactly these ids; the model is asked one step ahead."""
    rest = list(ids)

    def process(_: Any, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        out = np.full_like(logits, -1e9)
        out[rest.pop(0) if len(rest) > 1 else rest[0]] = 0.0
        return out

    return process


@pytest.mark.model
def test_the_starter_model_calls_is_answered_and_computes_only_what_is_new() -> None:
    def get_weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    said = 'I look.\n{"tool_use":{"name":"get_weather","input":{"city":"Zürich"}}}'  # not spaced as we would write it
    with Memory(path=":memory:") as memory:
        ann = memory.agent("ann", tools=[get_weather])
        inner = memory._runner.tokenizer
        ids = [*inner.encode(said), min(inner.eos_ids)]
        asked = ann.say("How is the weather in Zürich?", logits_processors=[forcing(ids)])
        assert (asked.text, asked.finish) == ("I look.\n", "tool_calls")
        assert [(c.name, c.arguments) for c in asked.tool_calls] == [("get_weather", {"city": "Zürich"})]
        answered = ann.give(ToolResult(asked.tool_calls[0].id, "sunny"), max_tokens=4)
        assert answered.usage.cached_tokens >= asked.usage.prompt_tokens + asked.usage.output_tokens - 1
        assert "get_weather" in inner.decode(ann._log.ids[: asked.usage.prompt_tokens].tolist())

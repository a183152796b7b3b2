"""Which format a model writes its calls in, and how it marks its thoughts: told by its chat template and vocabulary."""

from __future__ import annotations

from collections.abc import Container

from attrs import frozen

from agent_memory.errors import repr_of
from agent_memory.protocols import Tokenizer
from agent_memory.toolcall.formats import format_of


@frozen
class Choice:
    """The format of a model's calls, one of ``FORMATS`` (None: any JSON form), and why. ``reasoning``: its marks."""

    format: str | None
    reason: str
    reasoning: tuple[str, str] | None = None


#: What a template must hold, all of it, for a format; the first that fits counts.
_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("harmony", ("<|channel|>", "<|message|>")),
    ("minimax_m3", ("]<]minimax[>[",)),
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("deepseek_v32", ("｜DSML｜", "function_calls>")),
    ("deepseek_v4", ("｜DSML｜", "tool_calls>")),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("gemma4", ("<|tool_call>", "<tool_call|>")),
    ("function_gemma", ("<start_function_call>",)),
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
    ("kimi_k3", ("<|open|>", "<|close|>", "<|sep|>")),
    ("longcat", ("<longcat_tool_call>",)),
    ("glm47", ("<arg_key>",)),
    ("seed_oss", ("<seed:tool_call>",)),
    ("muse_spark", ("<atem:function_calls>",)),
    ("minicpm5", ('<function name="', '<param name="')),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("functionary_v32", (">>>all", ">>>${recipient}")),
    ("functionary_v31", ("<{start_tag}={function_name}>",)),
    ("functionary_v31", ("<function=",)),
    ("command_r7b", ("<|START_ACTION|>",)),
    ("command_r", ("Action:", "tool_name", "directly-answer")),
    ("nemotron", ("<TOOLCALL>",)),
    ("apriel", ("<tool_calls>[",)),
    ("apertus", ("<|tools_prefix|>",)),
    ("gigachat", ("<|function_call|>",)),
    ("gigachat", ("<|role_sep|>", "function call")),
    ("phi4_mini", ("<|/tool_call|>",)),
    ("phi4_mini", ("functools", "<|end|>")),
    ("firefunction", ("functools",)),
    ("granite", ("<|tool_call|>", "<|start_of_role|>")),
    ("pythonic", ("<|tool_list_start|>",)),
    ("pythonic", ("<|tool_call_start|>",)),
    ("llama_pythonic", ("func_name1(params_name1=",)),
    ("llama_pythonic", ("<|python_start|>",)),
    ("llama3", ("<|python_tag|>",)),
    ("llama3", ('{"name": function name, "parameters"',)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("json_tools", ("<tool_call>", "tool_call.name")),
    ("json_tools", ("<tool_call>", '"name"')),
)
#: The same of a vocabulary, for templates that leave the marks to the model.
_TOKENS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("harmony", ("<|channel|>", "<|message|>", "<|call|>")),
    ("kimi_k3", ("<|open|>", "<|close|>", "<|sep|>")),
    ("pythonic", ("<|tool_call_start|>", "<|tool_call_end|>")),
    ("command_r7b", ("<|START_ACTION|>", "<|END_ACTION|>")),
    ("apertus", ("<|tools_prefix|>", "<|tools_suffix|>")),
)
#: Marks of reasoning that are tokens of a vocabulary, or stand in a template.
_THOUGHTS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|think:start|>", "<|think:end|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)


def choice_of(tokenizer: Tokenizer) -> Choice:
    """The choice that a tokenizer has made, or what it says of itself."""
    made = getattr(tokenizer, "call_choice", None)
    if isinstance(made, Choice):
        return made
    return Choice(tokenizer.tool_format, "its tokenizer names it", tokenizer.reasoning)


def choose(template: str | None, vocabulary: Container[str] = (), named: str | None = None) -> Choice:
    """The format by a chat template, else by a vocabulary, else the one that a configuration has ``named``."""
    format, reason = _format(template or "", vocabulary, named)
    return Choice(format, reason, _reasoning(format, template or "", vocabulary))


def _format(template: str, vocabulary: Container[str], named: str | None) -> tuple[str | None, str]:
    for format, signs in _SIGNS:
        if all(sign in template for sign in signs):
            return format, f"its chat template holds {' and '.join(map(repr, signs))}"
    for format, signs in _TOKENS:
        if all(sign in vocabulary for sign in signs):
            return format, f"its vocabulary has the tokens {' and '.join(map(repr, signs))}"
    if named is not None:
        return named, f"its configuration names {repr_of(named)}"
    known = "its chat template holds no marks of a known format" if template else "it has no chat template"
    return None, f"{known}: every JSON form is read"


def _reasoning(format: str | None, template: str, vocabulary: Container[str]) -> tuple[str, str] | None:
    if format is not None and (marks := format_of(format).reasoning) is not None:
        return marks
    for marks in _THOUGHTS:
        if marks[0] in vocabulary and marks[1] in vocabulary:
            return marks
    return next((marks for marks in _THOUGHTS if marks[1] in template), None)

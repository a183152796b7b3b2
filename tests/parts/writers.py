"""Writes calls in every format, and cuts texts: what the tests of this room share."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agent_memory.toolcall import Parsed, ToolParser
from agent_memory.types import CallArguments, CallEnd, Event, Text

Call = tuple[str, dict[str, Any]]


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> str:
    """A value as the XML-like formats write it: text bare, everything else as JSON."""
    return value if isinstance(value, str) else dumps(value)


def _each(write: Callable[[str, dict[str, Any]], str], between: str = "\n") -> Callable[[Sequence[Call]], str]:
    return lambda calls: between.join(write(name, args) for name, args in calls)


QUOTE = '<|"|>'
_TYPES = {str: "string", bool: "boolean", type(None): "null", dict: "object", list: "array"}


def _pairs(args: dict[str, Any], form: str, value: Callable[[Any], str] = plain) -> str:
    return "".join(form.format(k=k, v=value(v), t=_TYPES.get(type(v), "number")) for k, v in args.items())


def _gemma_value(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_gemma_value(v, quote)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_gemma_value(v, quote) for v in value) + "]"
    return dumps(value)


def _function_gemma(name: str, args: dict[str, Any]) -> str:
    return f"<start_function_call>call:{name}{_gemma_value(args, '<escape>')}<end_function_call>"


def _gemma4(name: str, args: dict[str, Any]) -> str:
    return f"<|tool_call>call:{name}{_gemma_value(args, QUOTE)}<tool_call|>"


def _glm(prefix: str) -> Callable[[Sequence[Call]], str]:
    pair = f"<{prefix}arg_key>{{k}}</{prefix}arg_key><{prefix}arg_value>{{v}}</{prefix}arg_value>\n"
    return _each(lambda name, args: f"<{prefix}tool_call>{name}\n{_pairs(args, pair)}</{prefix}tool_call>")


def _kimi_k2(calls: Sequence[Call]) -> str:
    inner = "".join(
        f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{dumps(args)}<|tool_call_end|>"
        for i, (name, args) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"


def _kimi_k3(calls: Sequence[Call]) -> str:
    argument = '<|open|>argument key="{k}" type="{t}"<|sep|>{v}<|close|>argument<|sep|>'
    inner = "".join(
        f'<|open|>call tool="{name}" index="{i}"<|sep|>{_pairs(args, argument)}<|close|>call<|sep|>'
        for i, (name, args) in enumerate(calls)
    )
    return f"<|open|>tools<|sep|>{inner}<|close|>tools<|sep|>"


def _minicpm5(name: str, args: dict[str, Any]) -> str:
    def value(v: Any) -> str:
        return f"<![CDATA[{plain(v)}]]>" if any(c in plain(v) for c in "<&\n") else plain(v)

    pairs = "".join(f'<param name="{k}">{value(v)}</param>' for k, v in args.items())
    return f'<function name="{name}">{pairs}</function>'


def _minimax(calls: Sequence[Call]) -> str:
    pair = '<parameter name="{k}">{v}</parameter>\n'
    inner = "".join(f'<invoke name="{name}">\n{_pairs(args, pair)}</invoke>\n' for name, args in calls)
    return f"<minimax:tool_call>\n{inner}</minimax:tool_call>"


def _muse(calls: Sequence[Call]) -> str:
    pair = '<atem:parameter name="{k}">{v}</atem:parameter>\n'
    inner = "".join(f'<atem:invoke name="{name}">\n{_pairs(args, pair)}</atem:invoke>\n' for name, args in calls)
    return f"<atem:function_calls>\n{inner}</atem:function_calls>"


def _qwen3_coder(name: str, args: dict[str, Any]) -> str:
    pair = "<parameter={k}>\n{v}\n</parameter>\n"
    return f"<tool_call>\n<function={name}>\n{_pairs(args, pair)}</function>\n</tool_call>"


def _array(start: str, end: str, name_key: str = "name", key: str = "arguments") -> Callable[[Sequence[Call]], str]:
    return lambda calls: start + dumps([{name_key: name, key: args} for name, args in calls]) + end


def _deepseek_v3(calls: Sequence[Call]) -> str:
    each = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{dumps(args)}\n```<｜tool▁call▁end｜>"
        for name, args in calls
    )
    return f"<｜tool▁calls▁begin｜>{each}<｜tool▁calls▁end｜>"


def _deepseek_v31(calls: Sequence[Call]) -> str:
    each = "".join(f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{dumps(args)}<｜tool▁call▁end｜>" for name, args in calls)
    return f"<｜tool▁calls▁begin｜>{each}<｜tool▁calls▁end｜>"


def _dsml(group: str) -> Callable[[Sequence[Call]], str]:
    def value(name: str, v: Any) -> str:
        said = "true" if isinstance(v, str) else "false"
        return f'<｜DSML｜parameter name="{name}" string="{said}">{plain(v)}</｜DSML｜parameter>'

    def write(calls: Sequence[Call]) -> str:
        each = "\n".join(
            f'<｜DSML｜invoke name="{name}">\n'
            + "\n".join(value(k, v) for k, v in args.items())
            + "\n</｜DSML｜invoke>"
            for name, args in calls
        )
        return f"<｜DSML｜{group}>\n{each}\n</｜DSML｜{group}>"

    return write


_NS = "]<]minimax[>["


def _m3_value(tag: str, value: Any) -> str:
    if isinstance(value, dict):
        inner = "".join(_m3_value(k, v) for k, v in value.items())
    elif isinstance(value, list):
        inner = "".join(_m3_value("item", v) for v in value)
    else:
        inner = plain(value)
    return f"{_NS}<{tag}>{inner}{_NS}</{tag}>"


def _minimax_m3(calls: Sequence[Call]) -> str:
    each = "".join(
        f'{_NS}<invoke name="{name}">{"".join(_m3_value(k, v) for k, v in args.items())}{_NS}</invoke>\n'
        for name, args in calls
    )
    return f"{_NS}<tool_call>\n{each}{_NS}</tool_call>"


def _seed(name: str, args: dict[str, Any]) -> str:
    pairs = _pairs(args, "<parameter={k}>{v}</parameter>\n")
    return f"<seed:tool_call>\n<function={name}>\n{pairs}</function>\n</seed:tool_call>"


def _harmony(calls: Sequence[Call]) -> str:
    each = (
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dumps(args)}<|call|>"
        for name, args in calls
    )
    return "<|start|>assistant".join(each)


def _python_list(start: str, end: str) -> Callable[[Sequence[Call]], str]:
    def write(calls: Sequence[Call]) -> str:
        inner = ", ".join(f"{name}({', '.join(f'{k}={v!r}' for k, v in args.items())})" for name, args in calls)
        return f"{start}[{inner}]{end}"

    return write


#: How a model of each format writes calls.
WRITERS: dict[str, Callable[[Sequence[Call]], str]] = {
    "tool_use": _each(lambda name, args: dumps({"tool_use": {"name": name, "input": args}})),
    "function_call": _each(lambda name, args: dumps({"function_call": {"name": name, "arguments": args}})),
    "json_tools": _each(lambda n, args: f"<tool_call>\n{dumps({'name': n, 'arguments': args})}\n</tool_call>"),
    "llama3": _each(lambda name, args: dumps({"name": name, "parameters": args}), "; "),
    "granite": _array("<|tool_call|>", ""),
    "phi4_mini": _each(lambda n, args: f"<|tool_call|>{dumps({'name': n, 'arguments': args})}<|/tool_call|>"),
    "firefunction": _array(" functools", ""),
    "nemotron": _array("<TOOLCALL>", "</TOOLCALL>"),
    "apriel": _array("\n<tool_calls>", "</tool_calls>"),
    "command_r": _array("\nAction:\n```json\n", "```", "tool_name", "parameters"),
    "command_r7b": _array("<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters"),
    "apertus": lambda calls: f"<|tools_prefix|>{dumps([{name: args} for name, args in calls])}<|tools_suffix|>",
    "gigachat": _each(lambda n, args: f"<|function_call|>{dumps({'name': n, 'arguments': args})}"),
    "harmony": _harmony,
    "mistral": lambda calls: "[TOOL_CALLS]" + "".join(f"{name}[ARGS]{dumps(args)}" for name, args in calls),
    "deepseek_v3": _deepseek_v3,
    "deepseek_v31": _deepseek_v31,
    "kimi_k2": _kimi_k2,
    "functionary_v31": _each(lambda name, args: f"<function={name}>{dumps(args)}</function>", ""),
    "functionary_v32": _each(lambda name, args: f"{name}\n{dumps(args)}", ">>>"),  # the prompt ends with the first mark
    "pythonic": _python_list("<|tool_call_start|>", "<|tool_call_end|>"),
    "llama_pythonic": _python_list("", ""),
    "function_gemma": _each(_function_gemma),
    "gemma4": _each(_gemma4),
    "qwen3_coder": _each(_qwen3_coder),
    "seed_oss": _each(_seed),
    "minimax_m2": _minimax,
    "minimax_m3": _minimax_m3,
    "deepseek_v32": _dsml("function_calls"),
    "deepseek_v4": _dsml("tool_calls"),
    "glm47": _glm(""),
    "laguna": _glm(""),
    "longcat": _glm("longcat_"),
    "minicpm5": _each(_minicpm5),
    "muse_spark": _muse,
    "kimi_k3": _kimi_k3,
}


def summary(parsed: Parsed) -> tuple[Any, ...]:
    """What was found, without the calls' random ids."""
    calls = [(call.name, dict(call.arguments), call.source) for call in parsed.tool_calls]
    return parsed.text, parsed.reasoning, calls, list(parsed.rejected_calls)


def found(parsed: Parsed) -> list[Call]:
    return [(call.name, dict(call.arguments)) for call in parsed.tool_calls]


def run(parser: ToolParser, chunks: Sequence[str]) -> tuple[list[Event], Parsed]:
    """Feed and end; checks what holds for every text: nothing is lost, and calls come in order."""
    events = [event for chunk in chunks for event in parser.feed(chunk)] + parser.end()
    assert "".join(event.source for event in events) == "".join(chunks)
    assert "".join(event.text for event in events if isinstance(event, Text)) == parser.parsed.text
    for rejected in parser.parsed.rejected_calls:
        assert rejected.reason != "malformed" or rejected.source in parser.parsed.text
    ends = [event for event in events if isinstance(event, CallEnd)]
    assert [event.index for event in ends] == list(range(len(ends)))
    for end in ends:
        pieces = [e.text for e in events if isinstance(e, CallArguments) and e.index == end.index]
        if end.call is not None:
            assert "".join(pieces) == end.call.source
            assert json.loads(end.call.source) == end.call.arguments
    assert parser.parsed.tool_calls == tuple(end.call for end in ends if end.call)
    assert len({call.id for call in parser.parsed.tool_calls}) == len(parser.parsed.tool_calls)
    return events, parser.parsed


def cut(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def cuts(text: str, marks: Sequence[str] = (), seed: int = 7) -> Iterator[list[str]]:
    """The same text cut in every way that has ever broken a parser."""
    yield [text]
    for size in (1, 2, 3, 5, 8, 13):
        yield cut(text, size)
    places = {place + off for mark in marks for place in _places(text, mark) for off in (-1, 0, 1, len(mark))}
    for place in sorted(p for p in places if 0 < p < len(text)):
        yield [text[:place], text[place:]]
    draw = random.Random(seed)
    for _ in range(4):
        at = sorted(draw.sample(range(len(text) + 1), min(len(text), 6)))
        yield [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def _places(text: str, mark: str) -> Iterator[int]:
    place = text.find(mark)
    while place >= 0:
        yield place
        place = text.find(mark, place + 1)

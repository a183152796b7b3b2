"""Constrained decoding: whatever the weights want, the reply fits its schema, and nobody else's reply changes."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from attrs import frozen
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent_memory import EchoRunner, Memory, MissingExtraError, Sampling, Tool, UnsupportedParameterError
from agent_memory.echo.tokenizer import EchoTokenizer
from agent_memory.grammar import schemas
from agent_memory.grammar.grammar import Grammars, call_grammar, forced_format, value_grammar
from agent_memory.toolcall import FORMATS, parse
from agent_memory.toolcall.choice import _SIGNS
from agent_memory.toolcall.formats import forms
from agent_memory.toolcall.forms import ChannelForm, FramedForm, ObjectForm
from agent_memory.tools import as_tools, from_json, to_json

pytest.importorskip("llguidance")

MOVE = Tool(
    "move",
    "Moves the crane.",
    {
        "type": "object",
        "properties": {
            "to": {"enum": ["left", "right", "höher"]},
            "steps": {"type": "integer", "minimum": 1, "maximum": 40},
            "note": {"type": "string", "maxLength": 8},
        },
        "required": ["to", "steps"],
    },
)
WAIT = Tool("wait")
TOOLS = [MOVE, WAIT]
ECHO = EchoTokenizer()
GRAMMARS = Grammars(ECHO)
NATIVE = ("mistral", "kimi_k2")  #: whose arguments are JSON


def valid(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether JSON fits a schema, of the keywords that these tests use; objects have no other properties."""
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema["type"]
    if kind == "object":
        named = schema["properties"]
        is_whole = isinstance(value, dict) and set(schema.get("required", ())) <= value.keys() <= named.keys()
        return is_whole and all(valid(part, named[name]) for name, part in value.items())
    if kind == "array":
        return (
            isinstance(value, list)
            and len(value) <= schema["maxItems"]
            and all(valid(v, schema["items"]) for v in value)
        )
    if kind == "integer":
        return type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    if kind == "string":
        return isinstance(value, str) and len(value) <= schema["maxLength"]
    return kind == "boolean" and isinstance(value, bool)


def is_valid_call(call: Any) -> bool:
    """Of the tools above."""
    schema = next(tool.parameters for tool in TOOLS if tool.name == call.name)
    return valid(call.arguments, {"properties": {}, **schema})


def allowed(words: np.ndarray[Any, Any]) -> list[int]:
    """The ids of a mask."""
    return [int(i) for i in np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))]


def wander(grammar: str, seed: int, most: int = 2_000, begun: str = "") -> str | None:
    """What weights that want nothing in particular write behind ``begun``; None where they do not come to an end.

    Blanks, of which a grammar allows many kinds between two marks, are drawn less often: a walk would not end in time.
    """
    draw, matcher, said = random.Random(seed), GRAMMARS.matcher(grammar), []
    assert matcher.skip(begun)
    for _ in range(most):
        ids = allowed(matcher.mask())
        if set(ids) & ECHO.eos_ids and matcher.is_accepting and (matcher.is_stopped or draw.random() < 0.5):
            return ECHO.decode(said)
        ids = [i for i in ids if i not in ECHO.eos_ids]
        words = [i for i in ids if ECHO.decode([i]).strip()]
        said.append(draw.choice(words if words and draw.random() < 0.9 else ids))
        matcher.accept(said[-1])
    return None


leaves = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "integer", "minimum": -3, "maximum": 120},
        {"type": "string", "maxLength": 5},
        {"enum": ["a", 'qu"ote', "</tool_call>", 7, None]},
    ]
)
names = st.lists(st.sampled_from(["a", "b", "näme", "properties", "type"]), unique=True, max_size=3)


@st.composite
def objects(draw: st.DrawFn, parts: st.SearchStrategy[Any]) -> dict[str, Any]:
    keys = draw(names)
    return {
        "type": "object",
        "properties": {key: draw(parts) for key in keys},
        "required": keys[: draw(st.integers(0, len(keys)))],
    }


arrays = leaves.map(lambda items: {"type": "array", "items": items, "maxItems": 3})
described = objects(st.one_of(leaves, arrays, objects(leaves)))


@settings(deadline=None, max_examples=150)
@given(schema=described, format=st.sampled_from(FORMATS), seed=st.integers(0, 2**32))
def test_any_walk_through_the_grammar_is_a_valid_call_that_the_parser_finds_23(
    schema: dict[str, Any], format: str, seed: int
) -> None:
    tools = [Tool(name, "", schemas.checked(one, name)) for name, one in (("do", schema), ("wait", WAIT.parameters))]
    try:
        grammar = call_grammar(tools, forms(format)[0], ECHO)
    except UnsupportedParameterError:  # such a name, or such a text, has no place in the format's calls
        assert not isinstance(forms(format)[0], (ObjectForm, FramedForm, ChannelForm))
        assume(False)
    text = wander(grammar, seed)
    assert text is not None
    [call] = check_calls(text, tools, format)
    assert valid(call.arguments, schema) if call.name == "do" else call.arguments == {}


def check_calls(text: str, tools: list[Tool], format: str) -> tuple[Any, ...]:
    """The calls that are all there is in a text, each of a declared tool."""
    parsed = parse(text, tools, format)
    assert (parsed.text.strip(), parsed.rejected_calls) == ("", ())
    assert {call.name for call in parsed.tool_calls} <= {tool.name for tool in tools}
    return parsed.tool_calls


#: How a model may have begun a call when it is seen: in the formats above, behind the start mark.
BEGUN = {
    "tool_use": ['{"tool_use"', '{ "tool_use":{"name"', '{\n  "tool_use": {\n    "name": "do",'],
    "function_call": ['{"function_call": ', '{"function_call":\n{"type": "function", "id":"7","na'],
    "json_tools": ["", "\n{", '{"name": "do", "arguments": {', '{"name":"do","arguments":{'],
    "llama3": ['{"name": "do"', '{"type": "function", "name": "do", "parameters": {', '{"name":"do","arguments"'],
    "mistral": ["", " ", "do", "do[ARGS]{", "[", ' [{"name": "do"', '[{"id": "a1", "name"'],
    "kimi_k2": ["", "<|tool_call_begin|>functions.do:0<|tool_", "<|tool_call_begin|>functions.wait:12"],
    "granite": ["", "[", ' [ {"name": "do", "arg'],
    "phi4_mini": ["", '{"name":"wait",'],
    "nemotron": ["[", '[{"name": "do", "arguments": {'],
    "apriel": ["\n[", '[{"name":"wait"'],
    "command_r": ["\n[", '\n[\n    {\n        "tool_name": "do"'],
    "command_r7b": ["", '[\n    {"tool_call_id": "0", "tool_name": "do", "parameters": '],
    "apertus": ["", '[{"do": '],
    "gigachat": ["", '{"name": "do", "arguments": {'],
    "deepseek_v3": ["", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>do\n```json\n{"],
    "deepseek_v31": ["", "<｜tool▁call▁begin｜>wait<｜tool▁sep｜>"],
    "functionary_v31": ["", "do>", "do>{"],
    "functionary_v32": ["", "wait\n", "do\n{"],
    "pythonic": ["", "[", "[wait(", "[do("],
    "gemma4": ["", "call:do", "call:wait{"],
    "function_gemma": ["", "call:do{"],
    "qwen3_coder": ["", "\n<function=do>\n", "<function=wait>"],
    "seed_oss": ["\n<function=wait>\n"],
    "minimax_m2": ["", '\n<invoke name="do">\n'],
    "deepseek_v32": ["", '\n<｜DSML｜invoke name="do">\n'],
    "glm47": ["", "do", "wait\n"],
    "kimi_k3": ["", '<|open|>call tool="wait" index="1"<|sep|>'],
}


@settings(deadline=None, max_examples=200)
@given(schema=described, begun=st.sampled_from([(f, b) for f, some in BEGUN.items() for b in some]), data=st.data())
def test_any_walk_from_a_call_that_was_opened_is_a_valid_call_23(
    schema: dict[str, Any], begun: tuple[str, str], data: st.DataObject
) -> None:
    format, written = begun
    form, seed, is_single = forms(format)[0], data.draw(st.integers(0, 2**32)), data.draw(st.booleans())
    tools = [Tool("do", "", schemas.checked(schema, "do")), Tool("wait", "", schemas.checked(WAIT.parameters, "wait"))]
    try:
        grammar = call_grammar(tools, form, ECHO, is_open=True, is_single=is_single)
    except UnsupportedParameterError:
        assert not isinstance(form, (ObjectForm, FramedForm))
        assume(False)
    text = wander(grammar, seed, begun=written)
    assert text is not None
    calls = check_calls(f"{form.start}{written}{text}", tools, format)
    assert calls
    assert all(valid(call.arguments, schema) if call.name == "do" else call.arguments == {} for call in calls)
    assert len(calls) == 1 or not is_single


@pytest.mark.parametrize(
    ("written", "is_right"),
    [
        ('[{"id":"a","name":"wait"', True),
        ('[{"type":"function","id":"a","name":"wait"', True),
        ('[{"id":"a","type":"function","name":"wait"', True),
        ('[{"id":"a","id":"b"', False),
        ('[{"type":"function","type":"function"', False),
    ],
)
def test_a_call_has_a_type_and_an_id_at_most_once(written: str, is_right: bool) -> None:
    tools = [Tool("wait", "", schemas.checked(WAIT.parameters, "wait"))]
    grammar = call_grammar(tools, forms("nemotron")[0], ECHO, is_open=True, is_single=False)
    assert GRAMMARS.matcher(grammar).skip(written) is is_right


@settings(deadline=None, max_examples=40)
@given(schema=described, seed=st.integers(0, 2**32))
def test_any_walk_through_a_schemas_grammar_is_a_valid_value(schema: dict[str, Any], seed: int) -> None:
    text = wander(value_grammar(schemas.checked(schema, "schema")), seed)
    assert text is not None
    assert valid(json.loads(text), schema)


@pytest.mark.parametrize("choice", ["required", "any", {"name": "move"}], ids=str)
def test_a_forced_choice_gives_one_valid_call_whatever_the_model_says_14_15_16(choice: Any) -> None:
    for said in ("I would rather not.", '{"tool_use": {"name": "move", "input": {"to": 3}}}', ""):
        with Memory(EchoRunner(said), ":memory:") as memory:
            reply = memory.generate("go", tools=TOOLS, tool_choice=choice)
            assert (reply.finish, reply.text, reply.rejected_calls) == ("tool_calls", "", ())
            assert len(reply.tool_calls) == 1
            assert is_valid_call(reply.tool_calls[0])
            assert choice != {"name": "move"} or reply.tool_calls[0].name == "move"


def test_the_model_still_chooses_among_what_is_valid() -> None:
    wanted = '<tool_call>\n{"name": "move", "arguments": {"to": "höher", "steps": 17, "note": "ä\\n"}}\n</tool_call>'
    with Memory(EchoRunner(wanted), ":memory:") as memory:
        agent = memory.agent("ann", tools=TOOLS)
        reply = agent.say("go", tool_choice="required")
        assert reply.tool_calls[0].arguments == {"to": "höher", "steps": 17, "note": "ä\n"}
        assert agent.messages[-1].tool_calls == reply.tool_calls


def test_a_forced_call_that_max_tokens_cuts_is_no_call_17() -> None:
    with Memory(EchoRunner("no"), ":memory:") as memory:
        reply = memory.generate("go", tools=TOOLS, tool_choice="required", max_tokens=20)
    assert (reply.finish, reply.tool_calls, len(reply.rejected_calls)) == ("length", (), 1)
    assert reply.rejected_calls[0].reason == "truncated"


def test_a_forced_call_waits_for_the_end_of_reasoning_that_the_template_opened() -> None:
    inside = {"reply_prefix": "<think>\n"}
    with Memory(EchoRunner("move or wait?</think>\n\nwell"), ":memory:") as memory:
        reply = memory.generate("go", tools=TOOLS, tool_choice="required", template=inside)
        assert (reply.reasoning, reply.text, reply.finish) == ("move or wait?", "", "tool_calls")
        value = memory.generate("go", schema={"type": "boolean"}, template=inside)
        assert (value.reasoning, value.parsed) == ("move or wait?", True)
    with Memory(EchoRunner("never done"), ":memory:") as memory:  # the end of the reply is no way out
        reply = memory.generate("go", tools=TOOLS, tool_choice="required", template=inside, max_tokens=60)
        assert (reply.finish, reply.tool_calls) == ("length", ())


NOTE = Tool("note", "", {"type": "object"})
NOTES = '{"name": "note", "arguments": {"any": [1, {}]}}'
MOVES = '{"tool_use": {"name": "move", "input": {"to": "left", "steps": 3}}}'
STRICT = [Tool("move", "Moves the crane.", MOVE.parameters, strict=True), WAIT]


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)


def say(said: str, tools: Any = TOOLS, format: str | None = None, **asked: Any) -> Any:
    """The reply of a model that says this, with a template of this format of calls."""
    runner = EchoRunner(said)
    runner._tokenizer = Template(format)
    with Memory(runner, ":memory:") as memory:
        return memory.generate("go", tools=tools, **asked)


class Template(EchoTokenizer):
    """A tokenizer whose template has a format of its own."""

    def __init__(self, format: str | None) -> None:
        super().__init__()
        self._format = format

    @property
    def tool_format(self) -> str | None:
        return self._format


BAD = [
    'So:\n<tool_call>{"name": "fly", "arguments": {"to": "the moon"}}</tool_call>\nDone.',
    'So:\n<tool_call>\n{"name": "move", "arguments": {"to": 3, "steps": 900}}\n</tool_call>\nDone.',
    'So:\n{"tool_use": {"name": "move", "input": {"steps": "many"}}}\nDone.',
    'So:\n{"tool_use":{"name":"fly"}}\nDone.',
    'So:\n{"function_call": {"arguments": {}, "name": "move"}}\nDone.',
    'So:\n{"name": "move", "parameters": {"way": "up"}}\nDone.',
]


@pytest.mark.parametrize("tools", [TOOLS, STRICT], ids=["", "strict"])
@pytest.mark.parametrize("said", BAD)
def test_a_call_that_is_opened_freely_is_held_from_there_on_11_23(said: str, tools: list[Tool]) -> None:
    reply = say(said, tools, parallel_tool_calls=False, max_tokens=900)
    assert (reply.finish, reply.text, reply.rejected_calls) == ("tool_calls", "So:\n", ())
    assert is_valid_call(reply.tool_calls[0])


@pytest.mark.parametrize("said", BAD)
def test_without_the_extra_the_same_calls_are_free(said: str, no_extra: None) -> None:
    assert not any(map(is_valid_call, say(said).tool_calls))


FITTING = [
    "No call, but a brace: {x} and <tool_c.", '{"name": "Bob", "age": 3}',
    '```\n{"tool_use": {"name": "fly"}}\n```',
    f"One.\n<tool_call>\n{NOTES}\n</tool_call>\nTwo.\n{MOVES}\nThree {{.",
    '<think><tool_call>{"name": "fly"}</think>Fine.',
    json.dumps(json.loads(MOVES), separators=(",", ":")), json.dumps(json.loads(MOVES), indent=4),
    '<tool_call>{"type": "function", "name": "wait", "arguments":{}}</tool_call>',
    '{"name": "note", "parameters": {"a": {"b": [1.5e3, null, "\\n\\"ü"]}}}; {"name": "wait", "parameters": {}}',
]  # fmt: skip


@pytest.mark.parametrize("said", FITTING)
def test_text_and_calls_that_fit_are_as_they_would_be_free(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = [*STRICT, NOTE]
    held = say(said, tools)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    free = say(said, [*TOOLS, NOTE])
    assert (held.text, held.message.source, held.finish) == (free.text, free.message.source, free.finish)
    assert [call.arguments for call in held.tool_calls] == [call.arguments for call in free.tool_calls]


def kimi(*calls: tuple[str, str]) -> str:
    """A section of Kimi K2's calls."""
    some = [
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"
        for number, (name, arguments) in enumerate(calls)
    ]
    return f"<|tool_calls_section_begin|>{''.join(some)}<|tool_calls_section_end|>"


NATIVE_BAD = [
    ("mistral", 'So: [TOOL_CALLS]move[ARGS]{"to": 3}'),
    ("mistral", "So: [TOOL_CALLS]fly[ARGS]{}"),
    ("mistral", 'So: [TOOL_CALLS] [{"name": "fly", "arguments": {"to": 3}}]'),
    ("kimi_k2", f"So: {kimi(('fly', '{}'))}"),
]


@pytest.mark.parametrize("tools", [TOOLS, STRICT], ids=["", "strict"])
@pytest.mark.parametrize(("format", "said"), NATIVE_BAD)
def test_native_calls_whose_arguments_are_json_are_held_too_23(format: str, said: str, tools: list[Tool]) -> None:
    reply = say(said, tools, format, parallel_tool_calls=False, max_tokens=900)
    assert (reply.finish, reply.text, reply.rejected_calls) == ("tool_calls", "So: ", ())
    [call] = reply.tool_calls
    assert is_valid_call(call)


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("mistral", '[TOOL_CALLS]wait[ARGS]{}move[ARGS]{"to": "up", "steps": 0}'),
        ("mistral", '[TOOL_CALLS]wait[ARGS]{}[TOOL_CALLS]move[ARGS]{"to": "up", "steps": 0}'),
        (
            "mistral",
            '[TOOL_CALLS][{"name": "wait", "arguments": {}}, {"name":"move","arguments":{"to":"left","steps":3}}]',
        ),
        ("kimi_k2", kimi(("wait", "{}"), ("move", '{"to": "left", "steps": 3}'))),
    ],
)
def test_each_of_several_native_calls_is_held_23(format: str, said: str) -> None:
    reply = say(said, TOOLS, format)
    assert ([call.name for call in reply.tool_calls], reply.rejected_calls) == (["wait", "move"], ())
    assert all(map(is_valid_call, reply.tool_calls))
    assert reply.message.source == said or "0}" in said  # what fits is left as it is


@pytest.mark.parametrize("format", NATIVE)
def test_a_forced_call_is_written_in_a_native_format_whose_arguments_are_json_14(format: str) -> None:
    reply = say("I would rather not.", TOOLS, format, tool_choice="required")
    assert (reply.finish, reply.text, len(reply.tool_calls)) == ("tool_calls", "", 1)
    assert is_valid_call(reply.tool_calls[0])
    assert reply.message.source.startswith(forms(format)[0].start)
    dotted = Tool("crane.move", "", MOVE.parameters)
    [call] = say("no", [dotted], format, tool_choice="required").tool_calls
    assert call.name == "crane.move"


def test_what_a_format_without_json_cannot_hold_is_free_and_refused_of_a_strict_tool_23() -> None:
    said = '<|tool_call>call:do{to:{<|"|>a b<|"|>:3}}<tool_call|>'
    odd = {"type": "object", "properties": {"to": {"type": "object", "properties": {"a b": {"type": "integer"}}}}}
    [call] = say(said, [Tool("do", "", odd)], "gemma4").tool_calls
    assert call.arguments == {"to": {"a b": 3}}
    with pytest.raises(UnsupportedParameterError, match=r"do\.parameters\.properties\.to\.properties\.a b"):
        say(said, [Tool("do", "", odd, strict=True)], "gemma4")
    forced = say(said, [Tool("do", "", odd, strict=True)], "gemma4", tool_choice="required")
    assert forced.message.source.startswith("<tool_call>")  # JSON holds it


HELD_TEXTS = [
    ("qwen3_coder", "<tool_call>\n<function=move>\n<parameter=to>\nup\n</parameter>\n</function>\n</tool_call>"),
    ("minimax_m2", '<minimax:tool_call>\n<invoke name="fly">\n</invoke>\n</minimax:tool_call>'),
    ("gemma4", '<|tool_call>call:move{to:<|"|>up<|"|>,steps:300}<tool_call|>'),
    ("pythonic", '<|tool_call_start|>[fly(to="up")]<|tool_call_end|>'),
    ("glm47", "<tool_call>move\n<arg_key>steps</arg_key>\n<arg_value>many</arg_value>\n</tool_call>"),
    ("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>fly<｜tool▁sep｜>{}"),
    ("granite", '<|tool_call|>[{"name": "move", "arguments": {"to": 3}}]'),
    ("seed_oss", "<seed:tool_call>\n<function=fly>\n</function>\n</seed:tool_call>"),
]


@pytest.mark.parametrize("tools", [TOOLS, STRICT], ids=["", "strict"])
@pytest.mark.parametrize(("format", "said"), HELD_TEXTS)
def test_calls_that_are_opened_freely_are_held_in_formats_of_every_kind_11_23(
    format: str, said: str, tools: list[Tool]
) -> None:
    reply = say(f"So: {said}", tools, format, parallel_tool_calls=False, max_tokens=900)
    assert (reply.finish, reply.text, reply.rejected_calls) == ("tool_calls", "So: ", ())
    assert is_valid_call(reply.tool_calls[0])


@pytest.mark.parametrize("format", FORMATS)
def test_a_forced_call_is_written_in_the_models_own_format_14(format: str) -> None:
    reply = say("I would rather not.", TOOLS, format, tool_choice="required", max_tokens=900)
    assert (reply.finish, reply.text, len(reply.tool_calls)) == ("tool_calls", "", 1)
    assert is_valid_call(reply.tool_calls[0])
    start = forms(format)[0].start
    assert reply.message.source.startswith(start) or format == "functionary_v32"


UNHELD = {"type": "object", "not": {"required": ["b"]}}


def test_a_tool_whose_schema_cannot_be_held_has_free_arguments_unless_it_is_strict() -> None:
    said = '<tool_call>{"name": "do", "arguments": {"b": [3]}}</tool_call>'
    [call] = say(said, [Tool("do", "", UNHELD), MOVE]).tool_calls
    assert call.arguments == {"b": [3]}
    [held] = say(said.replace("do", "move"), [Tool("do", "", UNHELD), MOVE], parallel_tool_calls=False).tool_calls
    assert is_valid_call(held)
    with pytest.raises(UnsupportedParameterError, match=r"do\.parameters\.not"):
        say(said, [Tool("do", "", UNHELD, strict=True), MOVE])


def test_a_call_that_its_grammar_loses_goes_on_free_unless_a_tool_is_strict() -> None:
    def off() -> list[Any]:
        return [begin_with(ECHO, "<tool_call>", then=hold(ECHO.encode("x")))]

    lost = say("-", TOOLS, logits_processors=off(), max_tokens=40)
    assert (lost.finish, [call.reason for call in lost.rejected_calls]) == ("length", ["malformed"])
    assert "xxxx" in lost.text
    with pytest.raises(UnsupportedParameterError, match="cannot be held"):
        say("-", STRICT, logits_processors=off(), max_tokens=40)


def test_strict_stays_with_an_agents_tools() -> None:
    assert from_json(to_json(STRICT)) == tuple(STRICT)
    as_dict = {"type": "function", "function": {"name": "f", "strict": True}}
    assert as_tools([as_dict]) == as_tools([{"name": "f", "strict": True}]) == (Tool("f", strict=True),)


def test_what_was_compiled_is_kept_and_each_reply_has_a_matcher_of_its_own_24() -> None:
    with Memory(EchoRunner("no"), ":memory:") as memory:
        asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required"}
        first = memory.generate("go", **asked)
        grammars = memory._asking._requests.grammars
        vocabulary, kept = grammars._vocabulary, grammars._compiled.cache_info()
        again = memory.generate("once more", **asked)
        assert grammars._vocabulary is vocabulary
        assert grammars._compiled.cache_info().misses == kept.misses == 1
        assert first.tool_calls[0].arguments == again.tool_calls[0].arguments
        memory.generate("go", tools=TOOLS)  # free, and no call: compiled all the same, before it starts
        misses = grammars._compiled.cache_info().misses
        memory.generate("go", tools=TOOLS)
        assert grammars._compiled.cache_info().misses == misses


@frozen
class Point:
    x: int
    y: int | None = None


@frozen
class Path:
    points: list[Point]
    names: dict[str, Point]
    is_closed: bool = False


def test_a_schema_gives_the_value_and_an_attrs_class_an_instance() -> None:
    said = '{"points": [{"x": 1}, {"x": 2, "y": 3}], "names": {"home": {"x": 0, "y": null}}, "is_closed": true}'
    with Memory(EchoRunner(said), ":memory:") as memory:
        reply = memory.generate("where?", schema=Path, max_tokens=200)
        assert reply.parsed == Path([Point(1), Point(2, 3)], {"home": Point(0)}, True)
        assert (reply.text, reply.finish) == (said, "stop")
        assert memory.generate("?", schema={"enum": ["yes", "no"]}).parsed in ("yes", "no")
        assert memory.generate("where?", schema=Path, max_tokens=9).parsed is None
        assert memory.generate("where?").parsed is None


def test_the_tools_of_an_agent_stay_in_the_prompt_of_a_structured_turn() -> None:
    with Memory(EchoRunner("[1, 2]"), ":memory:") as memory:
        agent = memory.agent("ann", tools=TOOLS)
        agent.say("hi")
        schema = {"type": "array", "items": {"type": "integer"}, "maxItems": 4}
        reply = agent.say("two numbers", schema=schema)
        assert reply.parsed == [1, 2]
        assert reply.usage.computed_tokens < 40


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems"),
        ({"properties": {"a": {"not": {"type": "null"}}}}, "schema.properties.a.not"),
        ({"$defs": {"d": {"type": "array", "contains": {}}}, "$ref": "#/$defs/d"}, r"schema\.\$defs\.d\.contains"),
        ({"anyOf": [{"type": "null"}, {"items": {"if": {}, "then": {}}}]}, r"schema.anyOf\[1\].items.(if|then)"),
        ({"items": {"type": "string", "pattern": "(?=a)b"}}, "schema.items: regex parse error: look-around"),
        ({"properties": {"a": {"not": {}, "x-guidance": {"lenient": True}}}}, r"schema\.properties\.a\.not"),
        ({"type": "dict"}, "schema: Invalid type: dict"),
        ({"properties": {"l": {"items": [{"type": "null"}]}}}, "schema.properties.l.items"),
        ({"$ref": "https://example.org/s.json"}, "schema: "),
        ({"const": 2**53 + 1}, r"schema\.const: 9007199254740993 is beyond 2\*\*53"),
        ({"items": {"enum": [1, {"a": [-(10**30)]}]}}, r"schema\.items\.enum: -1000000000000000000000000000000 is"),
        ({"properties": {"n": {"type": "integer", "minimum": 2**60}}}, r"schema\.properties\.n\.minimum"),
        ({"type": "integer", "maximum": 2**53 + 2}, r"schema\.maximum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_keyword_that_cannot_be_held_is_refused_by_its_path_before_any_work_23(schema: Any, path: str) -> None:
    runner = EchoRunner()
    with Memory(runner, ":memory:") as memory:
        with pytest.raises(UnsupportedParameterError, match=path):
            memory.generate("go", schema=schema)
        tool = Tool("do", "", {"type": "object", "properties": {"it": schema}})
        with pytest.raises(UnsupportedParameterError, match=r"do\.parameters\.properties\.it"):
            memory.generate("go", tools=[tool], tool_choice="required")
    assert runner.calls.computed == 0


def test_objects_are_closed_but_where_schemas_are_composed() -> None:
    inner = {"properties": {"a": {"type": "null"}}}
    closed = schemas.checked({"properties": {"b": inner}, "items": {"type": "object"}}, "schema")
    assert closed["additionalProperties"] is closed["properties"]["b"]["additionalProperties"] is False
    assert "additionalProperties" not in closed["items"]
    composed = {"allOf": [inner, {"properties": {"b": {"type": "null"}}}]}
    assert schemas.checked(composed, "schema") == composed


@pytest.mark.parametrize(
    "asked", [{"schema": {"type": "null"}}, {"tools": TOOLS, "tool_choice": "required"}, {"tools": STRICT}], ids=str
)
def test_without_the_extra_an_error_names_the_command(asked: Any, no_extra: None) -> None:
    with Memory(EchoRunner("free"), ":memory:") as memory:
        with pytest.raises(MissingExtraError, match='pip install "llguidance>='):
            memory.generate("go", **asked)
        assert memory.generate("go", tools=TOOLS).text == "free"


@pytest.mark.parametrize(
    "asked",
    [
        {"tool_choice": "required"}, {"tool_choice": {"name": "fly"}, "tools": TOOLS}, {"tool_choice": 3},
        {"tool_choice": {"name": "move", "x": 1}, "tools": TOOLS}, {"schema": {}, "tools": TOOLS}, {"schema": int},
        {"schema": {"type": "null"}, "tool_choice": "required"}, {"schema": {"enum": [object]}},
        {"schema": {"enum": [float("nan")]}},
    ],
    ids=str,
)  # fmt: skip
def test_a_choice_or_schema_that_means_nothing_is_refused(asked: Any) -> None:
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(UnsupportedParameterError):
        memory.generate("go", **asked)


def test_a_forced_call_is_written_in_the_models_format_where_that_is_known() -> None:
    assert forced_format("llama3", knows_tools=True) == "llama3"
    assert [forced_format(None, knows_tools=knows) for knows in (True, False)] == ["json_tools", "tool_use"]
    assert [forced_format(format, knows_tools=True) for format in FORMATS] == list(FORMATS)


def test_no_escape_can_write_half_a_character() -> None:
    matcher = GRAMMARS.matcher(value_grammar({"type": "string", "maxLength": 4}))
    for token in ECHO.encode('"\\'):
        matcher.accept(token)
    assert {ECHO.key([i])[0] for i in allowed(matcher.mask())} == set('"\\bfnrt')


def test_a_reply_that_leaves_its_grammar_is_an_error_of_its_own() -> None:
    matcher = GRAMMARS.matcher(value_grammar({"type": "boolean"}))
    with pytest.raises(UnsupportedParameterError, match="cannot be held"):
        matcher.accept(ECHO.encode("x")[0])
    finished = GRAMMARS.matcher(value_grammar({"type": "null"}))
    for token in (*ECHO.encode("null"), ECHO.end_id, 7):
        finished.accept(token)
    assert finished.is_stopped
    assert set(allowed(finished.mask())) == ECHO.eos_ids


def hold(words: list[int]) -> Any:
    """A logits processor that leaves nothing of what a grammar would want."""

    def process(ids: Any, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits[:] = -np.inf
        logits[words] = 0.0
        return logits

    return process


def begin_with(tokenizer: Any, text: str, then: Any = None) -> Any:
    """A logits processor under which a reply begins with a text; ``then``: what goes on from there."""
    opening, seen = tokenizer.encode(text), []

    def process(ids: Any, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        seen.append(len(ids))
        place = len(ids) - seen[0]
        if place < len(opening):
            return hold(opening[place : place + 1])(ids, logits)
        return then(ids, logits) if then else logits

    return process


def test_a_row_that_leaves_its_grammar_fails_alone() -> None:
    with Memory(EchoRunner("one and two"), ":memory:") as memory:
        other = memory.stream("hi")
        lost = memory.stream("hi", schema={"type": "null"}, logits_processors=[hold(ECHO.encode("x"))])
        with pytest.raises(UnsupportedParameterError, match="cannot be held"):
            lost.result(60)
        assert other.result(60).text == "one and two"
        assert memory.generate("hi", schema={"type": "null"}).parsed is None


QWEN = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{# <tool_call> tool_call.name #}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


def tiny_memory(name: str, *marks: str, special: bool = False) -> Memory:
    """A tiny random model; with ``marks``, one whose template knows tools and whose vocabulary has these."""
    from agent_memory import MLXRunner
    from tests.parts import tiny
    from tests.parts.tinytokenizer import tokenizer

    made = tokenizer()
    if marks:
        made.add_tokens(list(marks), special_tokens=special)
        made.chat_template = QWEN
    return Memory(MLXRunner(tiny.model(name), made, name=f"tiny {name}"), ":memory:")


@pytest.mark.mlx
@pytest.mark.parametrize("special", [False, True])
def test_a_mark_of_the_vocabulary_is_written_as_its_own_id(special: bool) -> None:
    with tiny_memory("llama", "<tool_call>", "</tool_call>", special=special) as memory:
        reply = memory.generate("go", tools=TOOLS, tool_choice="required", max_tokens=200)
        start, end = (memory._asking.ensure_open().encode(mark) for mark in ("<tool_call>", "</tool_call>"))
        assert (len(start), reply.finish) == (1, "tool_calls")
        assert [reply.token_ids[0], reply.token_ids[-1]] == start + end


@pytest.mark.mlx
@pytest.mark.parametrize(
    ("format", "marks", "begun"),
    [
        ("mistral", ["[TOOL_CALLS]", "[ARGS]"], ["wait[ARGS]", "wa", " wait[ARGS]{"]),
        (
            "kimi_k2",
            ["<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"],
            ["<|tool_call_begin|>functions.wait:0<|tool_call_argument_begin|>", "<|tool_call_begin|>funct"],
        ),
    ],
)
def test_a_call_that_was_opened_in_marks_of_the_vocabulary_is_taken_up(
    format: str, marks: list[str], begun: list[str]
) -> None:
    from agent_memory.runner.tokenizer import HFTokenizer
    from tests.parts.tinytokenizer import tokenizer

    made = tokenizer()
    made.add_tokens(marks, special_tokens=True)
    grammars = Grammars(HFTokenizer(made))
    tools = [Tool("wait", "", schemas.checked(WAIT.parameters, "wait"))]
    grammar = call_grammar(tools, forms(format)[0], grammars.tokenizer, is_open=True)
    assert [grammars.matcher(grammar).skip(text) for text in [*begun, "go{"]] == [True] * len(begun) + [False]


@pytest.mark.mlx
def test_a_constrained_row_and_seven_free_ones_each_say_what_they_say_alone() -> None:
    asks: list[dict[str, Any]] = [
        {"sampling": Sampling(temperature=1.0, seed=n) if n % 2 else Sampling()} for n in range(8)
    ]
    asks[3] |= {"tools": TOOLS, "tool_choice": "required", "max_tokens": 120}
    with tiny_memory("llama") as memory:
        prompts = [f"Say {'something ' * n}about {n}." for n in range(8)]
        alone = [
            memory.generate(prompt, **{"max_tokens": 30, **ask}) for prompt, ask in zip(prompts, asks, strict=True)
        ]
    with tiny_memory("llama") as memory:
        handles = [
            memory.stream(prompt, **{"max_tokens": 30, **ask}) for prompt, ask in zip(prompts, asks, strict=True)
        ]
        together = [handle.result(120) for handle in handles]
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]
    assert is_valid_call(together[3].tool_calls[0])


@pytest.mark.mlx
def test_random_weights_that_open_a_call_are_held_to_it_from_there_on() -> None:
    with tiny_memory("llama") as memory:
        begin = begin_with(memory._asking.ensure_open(), "Well.\n<tool_call>")
        others = [memory.stream(f"Say {n}.", max_tokens=50) for n in range(3)]
        reply = memory.generate(
            "go", tools=STRICT[:1], logits_processors=[begin], parallel_tool_calls=False, max_tokens=200
        )
        assert {other.result(120).usage.output_tokens for other in others} <= set(range(51))
    assert (reply.text, reply.finish) == ("Well.\n", "tool_calls")
    assert is_valid_call(reply.tool_calls[0])


def ask_many(memory: Memory, n: int) -> tuple[int, int]:
    """Complete and cut calls of ``n`` prompts, half of them sampled; anything else fails."""
    n_complete = 0
    handles = [
        memory.stream(
            f"Task {number}: move the crane.",
            tools=TOOLS,
            tool_choice="required",
            max_tokens=100,
            sampling=Sampling(temperature=1.0, seed=number) if number % 2 else Sampling(),
        )
        for number in range(n)
    ]
    for handle in handles:
        reply = handle.result(600)
        assert all(map(is_valid_call, reply.tool_calls))
        assert reply.finish == ("tool_calls" if reply.tool_calls else "length")
        assert reply.tool_calls or [call.reason for call in reply.rejected_calls] == ["truncated"]
        n_complete += bool(reply.tool_calls)
    return n_complete, n


@pytest.mark.mlx
def test_random_weights_call_a_tool_that_exists_with_arguments_that_fit_14() -> None:
    with tiny_memory("llama") as memory:
        n_complete, n = ask_many(memory, 6)
    assert n_complete >= 0.6 * n


@pytest.mark.mlx
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3_next"])
def test_a_hundred_prompts_to_random_weights_14(name: str) -> None:
    with tiny_memory(name) as memory:
        n_complete, n = ask_many(memory, 100)
    assert n_complete >= 0.6 * n


TOLD = sorted({format for format, _ in _SIGNS})  #: formats that a template tells


def memory_of(format: str) -> Memory:
    """A tiny random model whose template knows tools and tells a format, and whose vocabulary has its start mark."""
    from agent_memory import MLXRunner
    from tests.parts import tiny
    from tests.parts.tinytokenizer import tokenizer

    made = tokenizer()
    signs = next(signs for known, signs in _SIGNS if known == format)
    if (start := forms(format)[0].start).startswith("<|"):
        made.add_tokens([start] if format != "kimi_k3" else list(signs), special_tokens=True)
    listed = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    said = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    made.chat_template = f"{{# {' '.join(signs)} #}}{listed}{said}{'>>>' if format == 'functionary_v32' else ''}"
    return Memory(MLXRunner(tiny.model("llama"), made, name=f"tiny {format}"), ":memory:")


@pytest.mark.mlx
def test_a_held_call_may_end_with_a_mark_that_ends_the_reply() -> None:
    from agent_memory import MLXRunner
    from tests.parts import tiny
    from tests.parts.tinytokenizer import tokenizer

    made = tokenizer()
    made.add_tokens(["<|channel|>", "<|message|>", "<|call|>", "<|constrain|>"], special_tokens=True)
    made.eos_token = "<|call|>"
    made.chat_template = (
        "{% for t in tools or [] %}{{ t }}{% endfor %}{{ messages[0].content }}{# <|channel|> <|message|> #}"
    )
    with Memory(MLXRunner(tiny.model("llama"), made, name="tiny channels"), ":memory:") as memory:
        tokenizer_of = memory._runner.tokenizer
        begin = begin_with(tokenizer_of, "<|channel|>commentary to=functions.")
        for asked in ({"logits_processors": [begin]}, {"tool_choice": "required"}):
            reply = memory.generate("go", tools=[Tool("wait", strict=True)], max_tokens=60, **asked)
            assert (reply.finish, reply.rejected_calls, reply.text) == ("tool_calls", (), "")
            assert reply.token_ids[-1] in tokenizer_of.eos_ids or reply.tool_calls


def hold_many(format: str, n: int) -> int:
    """Complete calls of ``n`` prompts, half of them forced, half opened by the model; each is valid or cut."""
    with memory_of(format) as memory:
        tokenizer = memory._runner.tokenizer
        assert tokenizer.tool_format == format
        start = forms(format)[0].start
        opening = "<|channel|>commentary to=functions." if format == "harmony" else start or "["
        opening = {
            "tool_use": '{"tool_use"',
            "llama3": '{"name": "move", "parameters": {',
            "functionary_v32": "move\n{",
        }.get(format, opening)
        handles = []
        for number in range(n):
            asked: dict[str, Any] = {"tools": STRICT, "max_tokens": 180, "parallel_tool_calls": False}
            asked["sampling"] = Sampling(temperature=1.0, seed=number) if number % 4 > 1 else Sampling()
            if number % 2:
                asked["tool_choice"] = "required"
            else:
                asked["logits_processors"] = [begin_with(tokenizer, opening)]
            handles.append(memory.stream(f"Task {number}: move the crane.", **asked))
        n_complete = 0
        for handle in handles:
            reply = handle.result(600)
            assert all(map(is_valid_call, reply.tool_calls)), (format, reply)
            assert reply.finish == ("tool_calls" if reply.tool_calls else "length"), (format, reply)
            n_complete += bool(reply.tool_calls)
        return n_complete


@pytest.mark.mlx
@pytest.mark.parametrize("format", ["qwen3_coder", "gemma4", "harmony"])
def test_random_weights_are_held_to_valid_calls_in_formats_of_every_kind_14_23(format: str) -> None:
    assert hold_many(format, 4) >= 1


@pytest.mark.mlx
@pytest.mark.slow
@pytest.mark.parametrize("format", TOLD)
def test_fifty_prompts_to_random_weights_in_every_format_14_23(format: str) -> None:
    assert hold_many(format, 50) >= 1


@pytest.mark.model
@pytest.mark.slow
def test_a_hundred_prompts_to_the_starter_model_14() -> None:
    with Memory(None, ":memory:") as memory:
        n_complete, n = ask_many(memory, 100)
    assert n_complete >= 0.6 * n


OPENAPI = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "nullable": True},
        "kind": {"type": "string", "enum": ["a", "b"], "nullable": True},
        "box": {"$ref": "#/$defs/Box[int]", "nullable": True},
        "sure": {"type": "boolean", "nullable": False},
        "nullable": {"type": "integer"},
    },
    "required": ["name", "kind", "box", "sure", "nullable"],
    "$defs": {"Box[int]": {"type": "object", "properties": {"of": {"type": "integer"}}, "required": ["of"]}},
}


@pytest.mark.parametrize("is_null", [True, False])
def test_openapis_nullable_and_references_with_brackets_are_honoured(is_null: bool) -> None:
    values = {"name": "x", "kind": "a", "box": {"of": 3}}
    value = {**(dict.fromkeys(values) if is_null else values), "sure": True, "nullable": 1}
    assert say(json.dumps(value), tools=(), schema=OPENAPI).parsed == value
    assert OPENAPI["properties"]["name"] == {"type": "string", "nullable": True}  # type: ignore[index]


def test_what_is_not_nullable_stays_so() -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean", "nullable": False}}, "required": ["sure"]}
    assert say('{"sure": null}', tools=(), schema=schema).parsed["sure"] in (True, False)


def test_a_root_that_is_nullable_keeps_its_definitions() -> None:
    for value in (None, {"box": {"of": 3}}):
        schema = {"type": "object", "nullable": True, "properties": {"box": {"$ref": "#/$defs/B[i]"}},
                  "required": ["box"], "$defs": {"B[i]": OPENAPI["$defs"]["Box[int]"]}}  # type: ignore[index]  # fmt: skip
        assert say(json.dumps(value), tools=(), schema=schema).parsed == value


def test_an_unknown_format_is_a_warning_and_the_rest_of_its_schema_holds(caplog: pytest.LogCaptureFixture) -> None:
    schema = {"type": "object", "properties": {"phone": {"type": "string", "format": "phone", "maxLength": 4}},
              "required": ["phone"]}  # fmt: skip
    assert say('{"phone": "123456"}', tools=(), schema=schema).parsed == {"phone": "1234"}
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage().startswith("schema.properties.phone: the format 'phone' is not enforced")

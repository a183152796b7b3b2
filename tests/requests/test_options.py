"""Options have one definition: signatures, help, completion and checks say the same."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import attrs
import jedi
import numpy
import pytest

from agent_memory import Agent, EchoRunner, Memory, Options, Sampling, ToolResult, UnsupportedParameterError
from agent_memory.requests.options import DRAWING, Settings, takes_options

NAMES = list(attrs.fields_dict(Settings))
WAYS: dict[str, Callable[..., Any]] = {
    "Memory.generate": Memory.generate,
    "Memory.stream": Memory.stream,
    "Memory.batch": Memory.batch,
    "Memory.best_of": Memory.best_of,
    "Memory.run_tools": Memory.run_tools,
    "Agent.say": Agent.say,
    "Agent.stream": Agent.stream,
    "Agent.give": Agent.give,
    "Memory.explain": Memory.explain,
    "Agent.explain": Agent.explain,
}


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(EchoRunner(), ":memory:") as memory:
        yield memory


def test_the_types_and_the_defaults_of_options_have_the_same_names_in_the_same_order() -> None:
    assert list(Options.__annotations__) == NAMES
    assert Options.__optional_keys__ == frozenset(NAMES)


def test_the_options_that_are_fields_of_sampling_have_its_types() -> None:
    fields, options = get_type_hints(Sampling), get_type_hints(Options, localns={"np": numpy})
    assert [name for name in NAMES if name in fields] == list(DRAWING)
    for name in DRAWING:
        assert options[name] == fields[name] | None


def test_every_method_with_options_is_known_here() -> None:
    found = {
        f"{owner.__name__}.{name}"
        for owner in (Memory, Agent)
        for name, method in vars(owner).items()
        if inspect.isfunction(method)
        and not name.startswith("_")
        and "max_tokens" in inspect.signature(method).parameters
    }
    assert found == set(WAYS)


@pytest.mark.parametrize("name", WAYS)
def test_a_signature_shows_the_name_type_and_default_of_each_option(name: str) -> None:
    shown = inspect.signature(WAYS[name]).parameters
    refused = {"tools"} if name == "Memory.run_tools" else set()
    assert [one for one in shown if one in NAMES] == [one for one in NAMES if one not in refused]
    assert shown["max_tokens"].default == 512
    assert shown["sampling"].default == Sampling()
    assert shown["temperature"].annotation == "float | None"
    assert {shown[one].kind for one in NAMES if one in shown} == {inspect.Parameter.KEYWORD_ONLY}
    for one in attrs.fields(Settings):
        if one.name in shown:
            assert shown[one.name].default == one.default


@pytest.mark.parametrize("name", WAYS)
def test_help_shows_each_option_with_its_type_default_and_a_sentence(name: str) -> None:
    text = pydoc.plain(pydoc.render_doc(WAYS[name]))
    assert re.search(r"max_tokens: '?int'? = 512", text)
    for one in attrs.fields(Settings):
        if not (name == "Memory.run_tools" and one.name == "tools"):
            assert f"{one.name}: {one.metadata['sentence']}" in text


@pytest.mark.parametrize("call", ["memory.generate('hi', ", "agent.say('hi', ", "agent.stream('hi', ", "agent.give("])
def test_an_editor_completes_the_names_of_options_and_shows_their_types_and_defaults(call: str, memory: Memory) -> None:
    """jedi, as Jupyter and IPython use it: on objects that live."""
    names = {"memory": memory, "agent": memory.agent("a")}
    editor = jedi.Interpreter(call + "max_t", [names])
    assert "max_tokens=" in [one.name for one in editor.complete()]
    [signature] = jedi.Interpreter(call, [names]).get_signatures()
    shown = {one.name: one.to_string() for one in signature.params}
    assert [one for one in shown if one in NAMES] == NAMES
    assert shown["max_tokens"].replace("'", "") == "max_tokens: int=512"
    assert "temperature: float | None=None" in shown["temperature"].replace("'", "")


def asked(memory: Memory) -> dict[str, Callable[..., Any]]:
    agent = memory.agent("a")
    return {
        "Memory.generate": lambda **options: memory.generate("hi", **options),
        "Memory.stream": lambda **options: memory.stream("hi", **options),
        "Memory.batch": lambda **options: memory.batch(["hi"], **options),
        "Memory.best_of": lambda **options: memory.best_of("a", "hi", 1, len, **options),
        "Memory.run_tools": lambda **options: memory.run_tools("a", "hi", [ping], **options),
        "Agent.say": lambda **options: agent.say("hi", **options),
        "Agent.stream": lambda **options: agent.stream("hi", **options),
        "Agent.give": lambda **options: agent.give(ToolResult("1", "x"), **options),
        "Memory.explain": lambda **options: memory.explain("hi", **options),
        "Agent.explain": lambda **options: agent.explain("hi", **options),
    }


def ping() -> str:
    """Answer."""
    return "pong"


@pytest.mark.parametrize("name", WAYS)
def test_an_unknown_option_is_refused_with_the_method_and_the_nearest_one(name: str, memory: Memory) -> None:
    with pytest.raises(UnsupportedParameterError) as caught:
        asked(memory)[name](max_tokns=3)
    assert str(caught.value) == f"{name} has no option 'max_tokns'; did you mean 'max_tokens'?"
    with pytest.raises(UnsupportedParameterError, match=f"{name} has no option 'zzz'; it has .*timeout_s"):
        asked(memory)[name](zzz=3)
    assert memory.agent("a").messages == ()


def test_a_keyword_that_is_no_option_is_suggested_too(memory: Memory) -> None:
    with pytest.raises(UnsupportedParameterError, match="did you mean 'agent'"):
        memory.generate("hi", agnet="a")  # type: ignore[call-arg]
    with pytest.raises(UnsupportedParameterError, match=r"Memory\.run_tools has no option 'tools'"):
        memory.run_tools("a", "hi", [ping], tools=[ping])


@pytest.mark.parametrize(("option", "value"), [("raw", "yes"), ("parallel_tool_calls", 1), ("timeout_s", True)])
def test_a_value_of_another_type_is_refused_with_its_name(option: str, value: Any, memory: Memory) -> None:
    with pytest.raises(UnsupportedParameterError, match=f"{option} must be "):
        memory.generate("hi", **{option: value})


def test_a_new_method_gets_the_options_in_its_signature_and_docstring() -> None:
    @takes_options(without=["stop"])
    def method(first: int, *, second: int = 2, **options: Any) -> None:
        """Do it."""

    assert list(inspect.signature(method).parameters) == ["first", "second", *(n for n in NAMES if n != "stop")]
    assert (method.__doc__ or "").startswith("Do it.\n\nOptions:\n    tools: ")
    assert "\n    stop:" not in (method.__doc__ or "")


# options of Sampling, one by one

SAMPLINGS = {"temperature": 0.7, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7, "repetition_penalty": 1.2}


@pytest.mark.parametrize("name", WAYS)
def test_options_of_sampling_are_taken_beside_the_others_and_refused_beside_sampling(name: str, memory: Memory) -> None:
    for option, value in SAMPLINGS.items():
        with pytest.raises(
            UnsupportedParameterError, match=f"{re.escape(name)}: give sampling= or {option}=, not both"
        ):
            asked(memory)[name](sampling=Sampling(), **{option: value})
    settings = Settings.of(WAYS[name], SAMPLINGS)
    assert settings.sampling == Sampling(**SAMPLINGS)  # type: ignore[arg-type]
    assert Settings.of(WAYS[name], {"sampling": Sampling(seed=3), "seed": None}).sampling == Sampling(seed=3)


def test_a_temperature_draws_as_the_same_sampling_does(memory: Memory) -> None:
    one = memory.generate("a b c d e f", temperature=5.0, seed=3).text
    assert one == memory.generate("a b c d e f", sampling=Sampling(temperature=5.0, seed=3)).text
    with pytest.raises(UnsupportedParameterError, match="temperature must be a number, 0 or more"):
        memory.generate("hi", temperature=-1)

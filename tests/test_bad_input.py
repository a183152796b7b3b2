"""Bad input: a typed error or a working result, and the agent is as if nothing had happened.

A folder that cannot be written is stood in for by a path inside a file and, where there is one, by a path in /proc:
mode bits do not stop the superuser, as whom tests often run.
"""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from agent_memory import Config, EchoRunner, Memory, Message, Sampling, ToolResult
from agent_memory.errors import (
    AgentMemoryError,
    ClosedError,
    ConfigError,
    DamagedModelError,
    ModelError,
    ModelNotFoundError,
    PromptTooLongError,
    StoreError,
    StoreLockedError,
    ToolResultError,
    UnknownAgentError,
    UnsupportedParameterError,
    repr_of,
)
from agent_memory.requests.options import Settings

SMALL = Config(chunk_tokens=16, prefill_tokens=16)
CONTEXT = 400


@attrs.define
class Scene:
    """A Memory, an agent with two turns, and what must not change."""

    memory: Memory
    runner: EchoRunner

    def state(self) -> tuple[Any, ...]:
        agent = self.memory.agent("a")
        return agent.messages, agent.n_tokens, agent.info.n_turns

    def assert_intact(self, before: tuple[Any, ...]) -> None:
        """Nothing in the log, nothing in the KV: the next turn reuses all of it and answers right."""
        assert self.state() == before
        reply = self.memory.agent("a").say("and next?", max_tokens=30)
        assert reply.text == "and next?"
        assert reply.usage.cached_tokens >= before[1] - 2
        assert reply.usage.cached_tokens + reply.usage.computed_tokens == reply.usage.prompt_tokens


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    runner = EchoRunner(context_tokens=CONTEXT)
    with Memory(runner, tmp_path / "store", config=SMALL) as memory:
        for text in ("first believable thing", "second"):
            memory.agent("a", system="Be brief.").say(text, max_tokens=30)
        yield Scene(memory, runner)


class Odd:
    """A value of no known kind."""


PROMPTS: dict[str, Any] = {
    "empty": "",
    "None": None,
    "number": 7,
    "bytes": b"hi",
    "object": Odd(),
    "empty list": [],
    "list of numbers": [1, 2],
    "empty message": [{"role": "user", "content": ""}],
    "no content": [{"role": "user"}],
    "number as content": [{"role": "user", "content": 3}],
    "image block": [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
    "unknown role": [{"role": "wizard", "content": "hi"}],
    "role of another type": [{"role": ["user"], "content": "hi"}],
    "unknown key": [{"role": "user", "content": "hi", "contents": "hi"}],
    "no role": [{"content": "hi"}],
    "tool without id": [{"role": "tool", "content": "hi"}],
    "Message of an unknown role": Message("wizard", "hi"),  # type: ignore[arg-type]
    "Message of a number": Message("user", 3),  # type: ignore[arg-type]
    "lone surrogate": "a \ud800 b",
    "lone surrogate in a history": [{"role": "user", "content": "\udfff"}],
    "number as name": [{"role": "user", "content": "hi", "name": 3}],
    "number as reasoning": [{"role": "assistant", "content": "x", "reasoning": 3}, {"role": "user", "content": "hi"}],
    "number as tool_calls": [{"role": "assistant", "content": "x", "tool_calls": 3}, {"role": "user", "content": "hi"}],
    "number as tool_call_id": [{"role": "tool", "content": "x", "tool_call_id": 3}],
    "lone surrogate in a tool call": [
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": "\ud800"}, "id": "1"}]},
        {"role": "user", "content": "hi"},
    ],
    "unserialisable tool call": [
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": Odd()}, "id": "1"}]},
        {"role": "user", "content": "hi"},
    ],
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_a_bad_prompt_is_refused_before_any_work(scene: Scene, prompt: Any) -> None:
    before, fed = scene.state(), scene.runner.calls.computed
    for ask in (scene.memory.agent("a").say, scene.memory.generate, scene.memory.agent("a").stream):
        with pytest.raises(UnsupportedParameterError) as caught:
            ask(prompt)
        assert len(str(caught.value)) > 20
    with pytest.raises(UnsupportedParameterError):
        scene.memory.count_tokens(prompt)
    assert scene.runner.calls.computed == fed
    scene.assert_intact(before)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers_before_any_work(scene: Scene) -> None:
    before, calls = scene.state(), attrs.evolve(scene.runner.calls)
    long = "word " * 2000
    with pytest.raises(PromptTooLongError) as caught:
        scene.memory.agent("a").say(long)
    n_tokens = scene.memory.count_tokens([*scene.memory.agent("a").messages, {"role": "user", "content": long}])
    assert caught.value.limit == CONTEXT
    assert abs(caught.value.n_tokens - n_tokens) < 40, "the log's own ids need not be those of its text"
    assert f"{caught.value.n_tokens:,}" in str(caught.value)
    assert str(CONTEXT) in str(caught.value)
    with pytest.raises(PromptTooLongError):
        scene.memory.generate(long)
    with pytest.raises(PromptTooLongError):
        scene.memory.prefill(long)
    assert scene.runner.calls == calls
    scene.assert_intact(before)


BAD_SETTINGS: dict[str, dict[str, Any]] = {
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens negative": {"max_tokens": -5},
    "max_tokens float": {"max_tokens": 1.5},
    "max_tokens bool": {"max_tokens": True},
    "max_tokens text": {"max_tokens": "many"},
    "timeout negative": {"timeout_s": -1},
    "timeout 0": {"timeout_s": 0},
    "timeout text": {"timeout_s": "soon"},
    "timeout nan": {"timeout_s": float("nan")},
    "priority text": {"priority": "high"},
    "empty stop": {"stop": ""},
    "empty stop in a list": {"stop": ["ok", ""]},
    "stop number": {"stop": 3},
    "stop bytes": {"stop": b"x"},
    "stop list of numbers": {"stop": [3]},
    "stop lone surrogate": {"stop": ["\ud800"]},
    "sampling dict": {"sampling": {"temperature": 1}},
    "sampling None": {"sampling": None},
    "tools": {"tools": [{"name": "f", "schema": {}}]},
    "tools with raw": {"tools": [{"name": "f"}], "raw": True},
    "tools text": {"tools": "f"},
    "tool_choice required": {"tools": [], "tool_choice": "required"},
    "tool_choice of another": {"tools": [{"name": "f"}], "tool_choice": {"name": "g"}},
    "parallel_tool_calls": {"parallel_tool_calls": 1},
    "tool_choice": {"tool_choice": "f"},
    "schema": {"schema": {"type": "object", "not": {}}},
    "processors number": {"logits_processors": 3},
    "processors of numbers": {"logits_processors": [3]},
    "template number": {"template": 3},
    "template with a callable": {"template": {"strftime_now": lambda form: form}},
    "template with a NaN": {"template": {"top": float("nan")}},
    "template without end": {"template": (lambda d: d.update(d=d) or d)({})},
    "raw without text": {"raw": True, "prompt": [{"role": "user", "content": "hi"}]},
}


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "value", [10**5_000, [-(10**5_000)], {1: (10**400,)}, Mute(), [Mute()], "x" * 10_000], ids=type
)
def test_any_value_is_shown_in_few_characters(value: object) -> None:
    assert 0 < len(repr_of(value)) <= 1_100


@pytest.mark.parametrize("settings", BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_a_bad_setting_is_refused_before_any_work(scene: Scene, settings: dict[str, Any]) -> None:
    before, fed = scene.state(), scene.runner.calls.computed
    settings = dict(settings)
    prompt = settings.pop("prompt", "hi")
    with pytest.raises(UnsupportedParameterError):
        scene.memory.agent("a").say(prompt, **settings)
    with pytest.raises(UnsupportedParameterError):
        scene.memory.batch([prompt], **settings)
    assert scene.runner.calls.computed == fed
    scene.assert_intact(before)


def test_an_unknown_keyword_is_refused_with_the_method_and_the_nearest_one(scene: Scene) -> None:
    before, agent = scene.state(), scene.memory.agent("a")
    calls = {"Memory.generate": scene.memory.generate, "Memory.stream": scene.memory.stream, "Agent.say": agent.say}
    for name, call in calls.items():
        with pytest.raises(UnsupportedParameterError) as caught:
            call("hi", temprature=1)  # type: ignore[call-arg]
        assert str(caught.value) == f"{name} has no option 'temprature'; did you mean 'temperature'?"
    scene.assert_intact(before)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1}, {"temperature": "hot"}, {"temperature": float("nan")}, {"temperature": float("inf")},
        {"temperature": None}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"top_k": 1.5}, {"top_k": True},
        {"min_p": 2}, {"repetition_penalty": 0}, {"repetition_context": 0}, {"seed": -1}, {"seed": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_sampling_values_are_typed_errors_naming_field_and_value(values: dict[str, Any]) -> None:
    ((name, value),) = values.items()
    with pytest.raises(UnsupportedParameterError, match=name) as caught:
        Sampling(**values)
    assert repr(value) in str(caught.value)
    assert isinstance(caught.value, ValueError)


NAMES = ["a/b", "../../etc/passwd", "..", ".", "nul\0byte", "x" * 300, "🙂🙂", " ", "con", "-rf", "a\nb", "A"]
NAMES += ["ä", "a\u0308"]  # the same to the eye: composed and decomposed


def test_any_non_empty_name_works_and_no_two_meet(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store"
    names = ["a", *NAMES]
    with Memory(EchoRunner(), path, config=SMALL) as memory:
        for name in names:
            assert memory.agent(name).say(f"I am {name!r}", max_tokens=400).text == f"I am {name!r}"
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    assert not [p for p in path.rglob("*") if p.name in names]
    files = [str(p).lower() for p in path.rglob("*")]
    assert len(set(files)) == len(files), "a file system that ignores case would mix these up"
    with Memory(EchoRunner(), path, config=SMALL) as memory:
        assert {info.name for info in memory.agents()} == set(names)
        for name in names:
            assert memory.agent(name).messages[0].content == f"I am {name!r}"
        assert memory.delete("A")
        assert memory.agent("a").say("still here", max_tokens=30).text == "still here"


@pytest.mark.parametrize("name", ["", None, 3, b"a", "\ud800", ("a",)], ids=repr)
def test_what_is_no_name_is_a_config_error(scene: Scene, name: Any) -> None:
    before = scene.state()
    with pytest.raises(ConfigError):
        scene.memory.agent(name)
    if name is not None:
        with pytest.raises(ConfigError):
            scene.memory.generate("hi", agent=name)
    assert scene.memory.delete(name) is False
    scene.assert_intact(before)


def test_another_system_prompt_or_a_bad_one_is_refused(scene: Scene) -> None:
    before = scene.state()
    with pytest.raises(ConfigError, match="another system prompt"):
        scene.memory.agent("a", system="Be verbose.")
    for bad in ("", 3, "\ud800"):
        with pytest.raises(AgentMemoryError):
            scene.memory.agent("new", system=bad)  # type: ignore[arg-type]
    assert [info.name for info in scene.memory.agents()] == ["a"]
    scene.assert_intact(before)


@pytest.mark.parametrize("turns", [0, -1, 3, 1.0, True, "1", None], ids=repr)
def test_rewind_out_of_range_is_refused(scene: Scene, turns: Any) -> None:
    before = scene.state()
    with pytest.raises(UnsupportedParameterError, match="turns"):
        scene.memory.agent("a").rewind(turns)
    scene.assert_intact(before)


def test_a_tool_result_without_an_open_call_is_refused(scene: Scene) -> None:
    before = scene.state()
    for results in ((ToolResult("1", "x"),), ()):
        with pytest.raises(ToolResultError):
            scene.memory.agent("a").give(*results)
    scene.assert_intact(before)


def test_evict_to_nowhere_or_of_an_unknown_agent_is_refused(scene: Scene) -> None:
    before = scene.state()
    with pytest.raises(UnsupportedParameterError, match="nowhere"):
        scene.memory.evict(to="nowhere")
    with pytest.raises(UnsupportedParameterError, match="warm_bytes"):
        scene.memory.evict(to="warm")
    with pytest.raises(UnknownAgentError, match="no agent 'nobody' in this store"):
        scene.memory.evict("nobody")
    scene.memory.evict("a")
    scene.assert_intact(before)


def test_batch_of_one_text_is_refused_and_one_bad_prompt_harms_no_agent(scene: Scene) -> None:
    before = scene.state()
    with pytest.raises(UnsupportedParameterError):
        scene.memory.batch("hi")
    with pytest.raises(UnsupportedParameterError):
        scene.memory.batch(["fine", ""], agent="a")
    scene.assert_intact(before)


def _truncated_gguf(path: Path) -> Path:
    """A header that promises a tensor and a key, and ends there."""
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + b"\x04\0\0\0")
    return path


@pytest.mark.mlx
def test_an_unknown_model_or_file_is_a_typed_error_and_leaves_no_store_locked(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.gguf").write_bytes(b"")
    cases: list[tuple[Any, type[ModelError]]] = [
        (tmp_path / "nothing", ModelError),
        (str(tmp_path / "nothing.gguf"), ModelNotFoundError),
        (tmp_path / "empty", ModelError),
        (tmp_path / "notes.txt", ModelError),
        (tmp_path / "empty.gguf", DamagedModelError),
        (_truncated_gguf(tmp_path / "cut.gguf"), DamagedModelError),
        ("./no/such/folder/at all", ModelError),
    ]
    for model, kind in cases:
        with pytest.raises(kind) as caught:
            Memory(model, tmp_path / "store", config=SMALL)
        assert len(str(caught.value)) > 20, model
    with Memory(EchoRunner(), tmp_path / "store", config=SMALL) as memory:
        assert memory.generate("hi").text == "hi"


@pytest.mark.parametrize(
    "arguments",
    [{"model": 3}, {"model": Odd()}, {"path": 3}, {"path": ""}, {"config": {}}],
    ids=lambda a: next(iter(a)),
)
def test_bad_arguments_of_memory_are_config_errors(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Memory(**{"model": EchoRunner(), "path": tmp_path, **arguments})


def _folders_that_cannot_be(tmp_path: Path) -> list[Path]:
    file = tmp_path / "file"
    file.write_text("not a folder")
    found = [file, file / "below", tmp_path / ("x" * 300)]
    return found + ([Path("/proc/agent_memory")] if Path("/proc/self").exists() else [])


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    for path in _folders_that_cannot_be(tmp_path):
        with pytest.raises(StoreError, match="Give another path"):
            Memory(EchoRunner(), path, config=SMALL)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_store_that_this_process_holds_is_locked(scene: Scene, tmp_path: Path) -> None:
    before = scene.state()
    with pytest.raises(StoreLockedError, match=str(os.getpid())):
        Memory(EchoRunner(), tmp_path / "store", config=SMALL)
    scene.assert_intact(before)


HOLDER = """
import sys
from agent_memory import EchoRunner, Memory
with Memory(EchoRunner(), sys.argv[1]) as memory:
    memory.agent("theirs").say("hi")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_store_that_another_process_holds_is_locked_and_names_the_holder(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(StoreLockedError, match=str(child.pid)):
        Memory(EchoRunner(), tmp_path)
    child.communicate()
    with Memory(EchoRunner(), tmp_path) as memory:
        assert memory.agent("theirs").messages[-1].content == "hi"


def _uses(memory: Memory, agent: Any) -> dict[str, Callable[[], object]]:
    return {
        "generate": lambda: memory.generate("hi"),
        "stream": lambda: memory.stream("hi"),
        "batch": lambda: memory.batch(["hi"]),
        "prefill": lambda: memory.prefill("hi"),
        "count_tokens": lambda: memory.count_tokens("hi"),
        "agent": lambda: memory.agent("a"),
        "new agent": lambda: memory.agent("new"),
        "agents": memory.agents,
        "delete": lambda: memory.delete("a"),
        "evict": memory.evict,
        "stats": memory.stats,
        "verify": memory.verify,
        "doctor": memory.doctor,
        "flush": memory.flush,
        "say": lambda: agent.say("hi"),
        "agent.stream": lambda: agent.stream("hi"),
        "rewind": agent.rewind,
        "pin": agent.pin,
        "agent.delete": agent.delete,
    }


def test_every_use_after_close_is_a_closed_error_and_closing_again_is_none(tmp_path: Path) -> None:
    memory = Memory(EchoRunner(), tmp_path, config=SMALL)
    agent = memory.agent("a")
    agent.say("first")
    done = memory.stream("hi", agent="a")
    done.result(30)
    messages = agent.messages
    memory.close()
    memory.close()
    asyncio.run(memory.aclose())
    assert _not_closed_errors(_uses(memory, agent)) == []
    assert done.result(30).text == "hi", "a reply that was given stays given"
    assert agent.messages == messages
    with Memory(EchoRunner(), tmp_path, config=SMALL) as again:
        assert again.agent("a").messages == messages
        assert again.agent("a").say("next").text == "next"


def _in_a_forked_child(look: Callable[[], list[str]]) -> list[str]:
    """What ``look`` finds in a forked child, which then ends without any cleaning up."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.write(write, "\n".join(look()).encode() or b"nothing wrong")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = pipe.read()
    os.waitpid(pid, 0)
    assert found, "the child ended without a word"
    return [] if found == "nothing wrong" else found.splitlines()


def _not_closed_errors(uses: dict[str, Callable[[], object]]) -> list[str]:
    wrong = []
    for what, use in uses.items():
        try:
            use()
            wrong.append(f"{what}: worked")
        except ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - a child must tell, not raise
            wrong.append(f"{what}: {error!r}")
    return wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_gets_closed_errors_and_the_parent_goes_on(tmp_path: Path) -> None:
    with Memory(EchoRunner(delay_s=0.01), tmp_path / "store", config=SMALL) as memory:
        scene = Scene(memory, EchoRunner())
        memory.agent("a", system="Be brief.").say("first", max_tokens=30)
        before = scene.state()
        running = memory.stream("a long believable message " * 20, agent="b")

        async def iterate() -> None:
            async for _ in running:
                pass

        async def wait() -> None:
            await running

        uses = {
            **_uses(memory, memory.agent("a")),
            "result": lambda: running.result(10),
            "iterate": lambda: list(running),
            "await": lambda: asyncio.run(asyncio.wait_for(wait(), 10)),
            "async for": lambda: asyncio.run(asyncio.wait_for(iterate(), 10)),
        }

        def look() -> list[str]:
            wrong = _not_closed_errors(uses)
            running.cancel()
            memory.close()
            with Memory(EchoRunner(), ":memory:", config=SMALL) as own:
                return wrong + ([] if own.generate("mine").text == "mine" else ["a Memory of the child's own fails"])

        assert _in_a_forked_child(look) == []
        assert running.result(30).text.startswith("a long believable")
        scene.assert_intact(before)


class BytesPath:
    """A PathLike that gives bytes."""

    def __fspath__(self) -> bytes:
        return b"somewhere"

    def __repr__(self) -> str:
        return "BytesPath()"  # a test's id, the same in every process


UNUSABLE_PATHS: list[Any] = ["a\0b", "\ud800", BytesPath(), b"bytes", 3, ""]


@pytest.mark.parametrize("path", UNUSABLE_PATHS, ids=ascii)
def test_a_path_that_no_folder_can_have_is_a_config_error(path: Any) -> None:
    with pytest.raises(ConfigError, match="path"):
        Memory(EchoRunner(), path)


@pytest.mark.mlx
@pytest.mark.parametrize("model", UNUSABLE_PATHS[:-1], ids=ascii)
def test_a_model_that_no_file_can_be_is_a_typed_error(model: Any, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ModelNotFoundError)):
        Memory(model, tmp_path)
    with pytest.raises(ConfigError):
        Memory("somebody/something", tmp_path, adapter=model)


@pytest.mark.parametrize("name", ["m" * 5000, "owner/" + "m" * 5000, "m" * 5000 + ".gguf"], ids=["a", "b", "c"])
def test_a_model_whose_name_is_too_long_is_not_found(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such directory or file"):
        Memory(name, tmp_path)


def test_a_config_nested_too_deeply_is_damage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(DamagedModelError, match="config.json"):
        Memory(tmp_path, ":memory:")


@pytest.mark.parametrize("identity", ["\ud800", 3, None, b"x"], ids=ascii)
def test_an_echo_runner_without_a_name_in_text_is_a_config_error(identity: Any) -> None:
    with pytest.raises(ConfigError, match="identity must be"):
        EchoRunner(identity=identity)


@pytest.mark.parametrize("agent", [["a"], 3, b"a", {}], ids=repr)
def test_what_is_no_agents_name_cannot_be_evicted(scene: Scene, agent: Any) -> None:
    before = scene.state()
    with pytest.raises(UnsupportedParameterError, match="agent must be a name"):
        scene.memory.evict(agent)
    scene.assert_intact(before)


class NoRepr:
    """A value whose own repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def nested(kind: type) -> Any:
    """A list or a dict 3,000 deep: its repr raises RecursionError."""
    found = kind()
    for _ in range(3000):
        found = [found] if kind is list else {"a": found}
    return found


ASKS: dict[str, Callable[[Memory, Any], object]] = {
    **{
        name: lambda memory, value, name=name: memory.generate("x", **{name: value})
        for name in attrs.fields_dict(Settings)
    },
    "agent": lambda memory, value: memory.generate("x", agent=value),
    "prompt": lambda memory, value: memory.generate(value),
    "a message": lambda memory, value: memory.generate([value]),
    "content": lambda memory, value: memory.generate([{"role": "user", "content": value}]),
    "role": lambda memory, value: memory.generate([{"role": value, "content": "x"}]),
    "an agent's name": lambda memory, value: memory.agent(value),
    "an agent's system prompt": lambda memory, value: memory.agent("a", system=value),
    "evict to": lambda memory, value: memory.evict(to=value),
    "close": lambda memory, value: memory.close(drain_s=value),
    "a codec": lambda memory, value: memory.measure_codec(value, ["a"]),
    "config": lambda memory, value: Config(chunk_tokens=value),
    **{
        f"messages.create {name}": lambda memory, value, name=name: memory.messages.create(
            **{"model": "x", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], name: value}
        )
        for name in ("messages", "max_tokens", "system", "tools", "tool_choice", "temperature", "thinking")
    },
    **{
        f"chat.completions.create {name}": lambda memory, value, name=name: memory.chat.completions.create(
            **{"model": "x", "messages": [{"role": "user", "content": "x"}], name: value}
        )
        for name in ("messages", "tools", "tool_choice", "response_format", "stop", "n", "logit_bias", "temperature")
    },
}


@pytest.mark.parametrize("value", [nested(list), nested(dict), NoRepr()], ids=["list", "dict", "no repr"])
@pytest.mark.parametrize("place", ASKS)
def test_a_value_that_cannot_be_printed_is_refused_as_any_other(place: str, value: Any) -> None:
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(AgentMemoryError):
        ASKS[place](memory, value)

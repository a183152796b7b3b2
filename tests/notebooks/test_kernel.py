"""In a real kernel: progress, Ctrl-C, opening twice, and errors that point at the caller's own line."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.parts.kernel import Kernel, kernel

pytest.importorskip("ipykernel")

OPEN = """
from agent_memory import Config, EchoRunner, Memory
runner = EchoRunner(delay_s=0.3)
memory = Memory(runner, "agents", config=Config(hot_bytes=1 << 30))
ann = memory.agent("ann")

def later(hours: int) -> str:
    '''Tell the time.'''
    return "noon"

LONG = "many words of a long prompt " * 500
"""


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with kernel(tmp_path_factory.mktemp("kernel")) as found:
        assert found.run(OPEN).error == ""
        yield found


def is_shown(cell: Kernel) -> bool:
    return any(
        kind == "display_data" and "prefill" in content["data"].get("text/plain", "") for kind, content in cell.sent
    )


def test_progress_appears_while_a_long_prompt_is_computed_and_is_replaced_in_place(jupyter: Kernel) -> None:
    began = time.monotonic()
    jupyter.run("memory.generate(LONG[:4600], max_tokens=1).usage", until=is_shown)  # 18 steps of 0.3 s
    shown_s = time.monotonic() - began
    assert is_shown(jupyter)
    jupyter.follow()
    assert jupyter.error == ""
    updates = [content for kind, content in jupyter.sent if kind == "update_display_data"]
    assert updates
    assert all("<progress" in one["data"]["text/html"] for one in updates[:-1])
    assert "prefill: " in updates[-1]["data"]["text/plain"]
    assert "<progress" not in updates[-1]["data"]["text/html"]
    assert shown_s < time.monotonic() - began  # before the end, not with it
    assert not [content for kind, content in jupyter.sent if kind == "stream"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        "ann.say(LONG.replace('many', '1'), max_tokens=1)",
        "memory.generate(LONG.replace('many', '2'), max_tokens=1)",
        "memory.prefill(LONG.replace('many', '3'))",
        "memory.batch([LONG.replace('many', '4'), LONG.replace('many', '5')], max_tokens=1)",
        "for piece in ann.stream(LONG.replace('many', '6'), max_tokens=1): pass",
        "await ann.stream(LONG.replace('many', '7'), max_tokens=1)",
        "memory.run_tools(ann, LONG.replace('many', '8'), [later], max_tokens=1)",
    ],
)
def test_ctrl_c_in_a_long_call_leaves_the_kernel_and_the_agent_usable(call: str, jupyter: Kernel) -> None:
    before = jupyter.run("len(ann.messages)").text
    jupyter.run(call, until=is_shown)
    assert is_shown(jupyter)
    jupyter.interrupt()
    jupyter.follow()
    assert jupyter.error in ("KeyboardInterrupt", "CancelledError")
    assert jupyter.run("len(ann.messages)").text == before
    assert jupyter.run("memory.stats().running + memory.stats().waiting, ann.say('hi', max_tokens=4).text").error == ""
    assert "hi" in jupyter.text
    assert jupyter.run("ann.rewind()").error == ""


def test_running_the_opening_cell_again_says_what_to_do(jupyter: Kernel) -> None:
    jupyter.run(OPEN)
    assert jupyter.error == "StoreLockedError"
    said = "".join(jupyter.traceback)
    assert "this very process" in said or "this process" in said
    assert "close()" in said
    assert jupyter.run("memory.close(); del memory, ann").error == ""
    assert jupyter.run(OPEN).error == ""


@pytest.mark.parametrize(
    "call",
    [
        "Config(hot_bytes=-1)",
        "memory.generate('hi', max_tokens=0)",
        "memory.generate('hi', tools=[3])",
        "memory.batch(['hi'], schema=3)",
        "ann.say(7)",
        "ann.say([{'role': 'x'}])",
        "memory.agent('')",
    ],
)
def test_an_error_of_validation_shows_few_frames_of_the_library(call: str, jupyter: Kernel) -> None:
    jupyter.run(call)
    assert jupyter.error in ("ConfigError", "UnsupportedParameterError")
    frames = [one for one in jupyter.traceback if "agent_memory/" in one]
    assert len(frames) <= 5


def test_a_model_opens_without_a_warning_of_tqdm(jupyter: Kernel) -> None:
    pytest.importorskip("mlx_lm")
    jupyter.run(
        "import warnings\n"
        "from agent_memory.models.resolve import import_mlx_lm\n"
        "import_mlx_lm()\n"
        "import huggingface_hub.utils, transformers\n"
    )
    assert jupyter.error == ""
    assert "tqdm" not in jupyter.text.lower()
    assert "IProgress" not in jupyter.text

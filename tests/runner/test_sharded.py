"""A model that several processes share is refused at once, by what this one has of it and by how it was started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Memory, MLXRunner, UnsupportedModelError
from tests.parts import tiny
from tests.parts.tinytokenizer import tokenizer

pytestmark = pytest.mark.mlx

CHILD = """
import sys
import mlx.core as mx
from agent_memory import Memory, MLXRunner, UnsupportedModelError
from tests.parts import tiny
from tests.parts.tinytokenizer import tokenizer
group = mx.distributed.init(strict=True, backend="ring")
for name in ("llama", "deepseek_v3"):
    model = tiny.model(name)
    model.shard(group)
    try:
        MLXRunner(model, tokenizer(), name="a part")
    except UnsupportedModelError as error:
        print(name, error)
"""


def launched(monkeypatch: pytest.MonkeyPatch, folder: Path, n: int) -> None:
    """Be a process that mlx.launch has started over its ring."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{5000 + rank}"] for rank in range(n)]), encoding="utf-8")
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))


def test_a_process_of_a_group_opens_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    launched(monkeypatch, tmp_path, 2)
    says = r"mlx\.launch has started this process as number 0 of 2\. .* without mlx\.launch, or with -n 1"
    with pytest.raises(UnsupportedModelError, match=says):
        MLXRunner(model, tokenizer(), name="host")
    with pytest.raises(UnsupportedModelError, match=says):
        Memory("no/such-model", tmp_path / "store")
    assert not (tmp_path / "store").exists()
    launched(monkeypatch, tmp_path, 1)
    with Memory(MLXRunner(model, tokenizer(), name="host"), ":memory:") as memory:
        assert memory.generate("hi", max_tokens=2).usage.output_tokens


@pytest.mark.parametrize(("variable", "value"), [("MLX_WORLD_SIZE", "3"), ("MLX_IBV_DEVICES", "devices.json")])
def test_other_backends_of_mlx_launch_are_known(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("devices.json").write_text(json.dumps([None, None, None]), encoding="utf-8")
    monkeypatch.setenv(variable, value)
    runner = MLXRunner(tiny.model("llama"), tokenizer(), name="not launched, whatever is set")
    assert runner.name
    monkeypatch.setenv("MLX_RANK", "2")
    with pytest.raises(UnsupportedModelError, match="number 2 of 3"):
        MLXRunner(tiny.model("llama"), tokenizer())


@pytest.mark.parametrize("text", ["", "{", "7", "nothing"])
def test_a_list_of_hosts_that_cannot_be_read_is_no_group(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, tmp_path, 2)
    (tmp_path / "hosts.json").write_text(text, encoding="utf-8")
    assert MLXRunner(tiny.model("llama"), tokenizer()).name


def test_a_pipeline_is_refused_and_a_group_of_one_is_none() -> None:
    import mlx.core as mx

    model: Any = tiny.model("deepseek_v3")
    model.shard(mx.distributed.init())
    assert MLXRunner(model, tokenizer(), name="whole").name
    model.model.pipeline_size = 2
    with pytest.raises(UnsupportedModelError, match="half: its layers are a pipeline of 2 processes"):
        MLXRunner(model, tokenizer(), name="half")


@pytest.mark.slow
def test_a_part_of_a_sharded_model_is_refused_in_each_process(tmp_path: Path) -> None:
    hosts = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            hosts.append([f"127.0.0.1:{free.getsockname()[1]}"])
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps(hosts), encoding="utf-8")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(file)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for child in children:
        printed, _ = child.communicate(timeout=300)
        assert child.returncode == 0
        assert [line.split(":")[0] for line in printed.splitlines()] == ["llama a part", "deepseek_v3 a part"]
        assert printed.count("is sharded over a group of 2 processes") == 2

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent_memory.errors import INSTALL, ConfigError, DamagedModelError, ModelNotFoundError, UnsupportedModelError
from agent_memory.models import directory
from agent_memory.models import resolve as room
from agent_memory.models.resolve import HubId, locate, resolve, total_memory_bytes
from tests.parts.gguf_writer import tiny_llama

_ROOT = Path(__file__).parents[2]
_PLAIN = {"progress": False, "trust_remote_code": False}


def _safetensors(path: Path, **shapes: tuple[int, ...]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(end))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    _safetensors(folder / "model.safetensors", a=(4, 8), b=(3,))
    return folder


def test_a_whole_directory_passes_and_is_named_by_its_last_part(model: Path) -> None:
    assert locate(str(model)) == locate(model) == model
    found = resolve(model, weights_dtype="float32", is_cpu=True, **_PLAIN)
    assert (found.path, found.name, found.weights_dtype, found.source) == (model, "my-model", "float32", "directory")


def test_every_truncation_of_the_weights_is_found_with_the_bytes(model: Path) -> None:
    file = model / "model.safetensors"
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        with pytest.raises(DamagedModelError, match=rf"\b{cut:,}\b"):
            locate(model)
    file.write_bytes(whole + b"x")
    with pytest.raises(DamagedModelError):
        locate(model)


@pytest.mark.parametrize(
    ("gone", "error"),
    [("config.json", ModelNotFoundError), ("tokenizer.json", UnsupportedModelError),
     ("model.safetensors", UnsupportedModelError)],
)  # fmt: skip
def test_a_missing_file_is_named(model: Path, gone: str, error: type[Exception]) -> None:
    (model / gone).unlink()
    with pytest.raises(error, match=gone.partition(".")[0]):
        locate(model)


def test_a_missing_shard_is_damage(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedModelError, match="model-00002-of-00002"):
        locate(model)


def test_names_that_are_nothing_are_refused_and_hub_ids_are_left_for_later(tmp_path: Path) -> None:
    assert locate(None) is None
    assert locate("mlx-community/some-model-4bit") == HubId("mlx-community/some-model-4bit")
    for name in (str(tmp_path / "none"), "./a/b", "../a", "plainname", tmp_path / "a"):
        with pytest.raises(ModelNotFoundError, match="no such directory"):
            locate(name)
    with pytest.raises(ModelNotFoundError):
        locate(Path("owner/name"))
    with pytest.raises(ConfigError):
        locate("")
    with pytest.raises(ConfigError):
        locate(3)  # type: ignore[arg-type]
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModelError, match="a file"):
        locate(tmp_path / "model.bin")


def test_a_truncated_gguf_is_found_at_once(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a.gguf")
    locate(tmp_path / "a.gguf")
    os.truncate(tmp_path / "a.gguf", (tmp_path / "a.gguf").stat().st_size // 2)
    with pytest.raises(DamagedModelError, match="truncated"):
        locate(tmp_path / "a.gguf")


def test_an_unknown_dtype_is_a_config_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="int3"):
        resolve(model, weights_dtype="int3", is_cpu=True, **_PLAIN)


def test_float32_is_chosen_on_cpu_up_to_a_quarter_of_memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert total_memory_bytes() > 1 << 28
    needed = directory.count_values(model) * 4
    assert needed == 35 * 4
    for memory, expected in ((needed * 4, "float32"), (needed * 4 - 4, None)):
        monkeypatch.setattr(room, "total_memory_bytes", lambda memory=memory: memory)
        assert resolve(model, weights_dtype=None, is_cpu=True, **_PLAIN).weights_dtype == expected
    assert resolve(model, weights_dtype=None, is_cpu=False, **_PLAIN).weights_dtype is None


@pytest.mark.mlx
def test_a_gguf_is_converted_once_for_each_content_and_dtype(tmp_path: Path) -> None:
    file, cache = tmp_path / "a.gguf", tmp_path / "cache"
    tiny_llama(file, "Q8_0")

    def path(dtype: str | None, source: Path = file) -> Path:
        return resolve(source, weights_dtype=dtype, is_cpu=False, cache_dir=cache, **_PLAIN).path

    stored, dense = path(None), path("float32")
    stamp = (stored / "config.json").stat().st_mtime_ns
    assert path(None) == stored != dense
    assert (stored / "config.json").stat().st_mtime_ns == stamp
    moved = shutil.copy2(file, tmp_path / "c.gguf")
    assert path(None, Path(moved)).name.split("-")[1] == stored.name.split("-")[1]
    kept = file.stat()
    tiny_llama(file, "Q8_0", seed=1)
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert path(None) != stored
    assert directory.count_values(stored) == directory.count_values(dense)


def _child(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=_ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.mlx
def test_importing_mlx_lm_keeps_the_limits_of_the_process() -> None:
    code = """
import resource
original = resource.setrlimit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (777, hard))
before = {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")}
from agent_memory.models.resolve import import_mlx_lm
module = import_mlx_lm()
assert module is import_mlx_lm() and module.load
assert before == {n: resource.getrlimit(getattr(resource, n)) for n in before}, "limits changed"
assert resource.setrlimit is original
"""
    assert _child(code) == ""


@pytest.mark.mlx
def test_looking_at_a_model_imports_no_mlx_and_no_hub(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a.gguf")
    code = f"""
import sys
from agent_memory.models.resolve import locate
locate({str(tmp_path / "a.gguf")!r}); locate(None); locate("a/b")
print([m for m in ("mlx", "mlx.core", "mlx_lm", "huggingface_hub", "transformers") if m in sys.modules])
"""
    assert _child(code) == "[]\n"


def test_a_missing_backend_names_the_command() -> None:
    code = """
import sys
sys.modules["mlx.core"] = None
from agent_memory.errors import BackendMissingError
from agent_memory.models.resolve import import_mlx_lm
try:
    import_mlx_lm()
except BackendMissingError as error:
    print(error)
"""
    said = _child(code)
    assert [extra for extra in ("cpu", "cuda12", "cuda13") if INSTALL[extra] not in said] == []


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    code = f"""
import os
os.environ.update(HF_HOME={str(tmp_path)!r}, HF_HUB_OFFLINE="1")
from agent_memory.errors import ModelNotFoundError
from agent_memory.models.resolve import HubId, resolve
try:
    resolve(HubId("owner/name"), weights_dtype=None, progress=False, trust_remote_code=False, is_cpu=True)
except ModelNotFoundError as error:
    print(error, error.__cause__ is not None)
"""
    said = _child(code)
    assert "'owner/name'" in said
    assert "could not be reached" in said
    assert said.endswith("True\n")


def test_only_this_threads_file_limit_is_kept() -> None:
    original, seen = resource.setrlimit, []
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    with room.limits_kept():
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, 1))
        resource.setrlimit(resource.RLIMIT_CORE, limits)

        def other() -> None:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (5, 4))
            except ValueError as error:
                seen.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert resource.setrlimit is original
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1
    assert len(seen) == 1

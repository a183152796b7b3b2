"""The redirect is run in child processes: it lasts as long as its process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from agent_memory.errors import INSTALL
from agent_memory.runner import blas

pytestmark = [pytest.mark.mlx, pytest.mark.skipif(sys.platform != "linux", reason="Linux only")]

_LOOK = """
import ctypes, json, sys
import numpy as np
import mlx.core as mx
from agent_memory.runner import blas
if mx.default_device() != mx.Device(mx.cpu):
    print(json.dumps({"skip": True})); sys.exit()
def pointers():
    regions = blas.memory_regions()
    library = blas.loaded_library(regions)
    base = blas._load_address(library, regions)
    slots = blas.pointer_slots(library)
    values = {n: ctypes.c_uint64.from_address(base + s).value for n, s in slots.items()}
    at = lambda address: blas.region_of(address, regions)
    return {n: [v, at(v).path, at(base + slots[n]).permissions] for n, v in values.items()}
def products():
    out = []
    for shape in ((3, 5, 7), (64, 576, 192), (257, 301, 129)):
        m, k, n = shape
        rng = np.random.default_rng(m)
        a, b = rng.standard_normal((m, k), dtype=np.float32), rng.standard_normal((k, n), dtype=np.float32)
        for x, y in ((mx.array(a), mx.array(b)), (mx.array(a.T.copy()).T, mx.array(b.T.copy()).T)):
            out.append(np.array(x @ y))
    return out
"""


def _child(code: str) -> dict:
    done = subprocess.run([sys.executable, "-c", _LOOK + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if found.get("skip"):
        pytest.skip("MLX runs on a GPU here")
    return found


def test_products_stay_the_same_and_the_pointers_lead_into_openblas() -> None:
    pytest.importorskip(blas.PACKAGE)
    found = _child("""
before, old = products(), pointers()
first = blas.speed_up("auto")
after, new = products(), pointers()
second = blas.speed_up("auto")
gap = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(before, after))
print(json.dumps(dict(gap=gap, old=old, new=new, again=pointers(), first=[first.name, first.version, first.threads,
    first.active, first.note], equal=first == second)))
""")
    assert found["gap"] < 1e-4
    assert set(found["old"]) == set(blas.FUNCTIONS)
    for name in blas.FUNCTIONS:
        assert "scipy_openblas" in found["new"][name][1]
        assert found["new"][name][0] != found["old"][name][0]
        assert found["new"][name][2] == found["old"][name][2], "the page's protection changed"
    assert found["again"] == found["new"]
    name, version, threads, active, note = found["first"]
    assert (name, active, note) == ("OpenBLAS", True, "")
    assert version[0].isdigit()
    assert threads >= 1
    assert found["equal"]


def test_none_changes_no_pointer_and_says_so() -> None:
    found = _child("""
old = pointers()
b = blas.speed_up(None)
print(json.dumps(dict(old=old, new=pointers(), name=b.name, active=b.active, note=b.note)))
""")
    assert found["old"] == found["new"]
    assert (found["name"], found["active"]) == ("reference", False)
    assert "Config.blas" in found["note"]


def test_without_the_wheel_the_note_names_the_command() -> None:
    found = _child("""
blas.PACKAGE = "no_such_blas"
old = pointers()
b = blas.speed_up("auto")
print(json.dumps(dict(old=old, new=pointers(), name=b.name, active=b.active, note=b.note)))
""")
    assert found["old"] == found["new"]
    assert (found["name"], found["active"]) == ("reference", False)
    assert INSTALL["cpu"] in found["note"]


def test_a_pointer_that_does_not_lead_to_code_is_left_alone() -> None:
    pytest.importorskip(blas.PACKAGE)
    found = _child("""
old = pointers()
real = blas.pointer_slots
blas.pointer_slots = lambda library: {n: 64 for n in real(library)}  # inside the file's header
b = blas.speed_up("auto")
blas.pointer_slots = real
print(json.dumps(dict(old=old, new=pointers(), active=b.active, note=b.note)))
""")
    assert found["old"] == found["new"]
    assert not found["active"]
    assert "does not point at code" in found["note"]


def test_a_read_only_page_is_written_and_protected_again() -> None:
    pytest.importorskip(blas.PACKAGE)
    found = _child("""
regions = blas.memory_regions()
base = blas._load_address(blas.loaded_library(regions), regions)
slots = blas.pointer_slots(blas.loaded_library(regions)).values()
for slot in slots:  # no MLX code may run until this is undone: it writes to these pages
    blas._protect(base + slot, 1)
old = pointers()
b = blas._redirected()
new = pointers()
for slot in slots:
    blas._protect(base + slot, 3)
print(json.dumps(dict(old=old, new=new, active=b.active, n=len(products()))))
""")
    assert found["active"]
    for name in blas.FUNCTIONS:
        assert found["old"][name][2].startswith("r--")
        assert found["new"][name][2] == found["old"][name][2]
        assert "scipy_openblas" in found["new"][name][1]


_IDLE = """
import os, time
b = blas.speed_up("auto")
x = mx.array(np.ones((256, 256), np.float32))
mx.eval(x @ x)  # starts the threads
cpu, wall = time.process_time(), time.monotonic()
for _ in range(40):
    mx.eval(x @ x)
    time.sleep(0.02)
print(json.dumps(dict(threads=b.threads, busy=(time.process_time() - cpu) / (time.monotonic() - wall),
    after=os.environ.get("OPENBLAS_THREAD_TIMEOUT"))))
"""


def test_idle_threads_leave_the_cores_to_others(monkeypatch) -> None:
    pytest.importorskip(blas.PACKAGE)
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
    found = _child(_IDLE)
    if found["threads"] < 2:
        pytest.skip("one thread has no other to wait for")
    assert found["busy"] < 0.4, "of a core, in processor time; 0.5 to 0.6 where idle threads spin"
    assert found["after"] is None, "the program's environment is as it was"
    monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", "26")
    kept = _child(_IDLE)
    assert kept["after"] == "26", "the user's own value stands"


@pytest.mark.parametrize(
    "head", [b"", b"\x7fELF", b"\x7fELF\x01\x01\x01" + bytes(60), b"\x7fELF\x02\x01\x01" + bytes(60)]
)
def test_an_unexpected_file_is_refused_not_parsed(tmp_path, head: bytes) -> None:
    path = tmp_path / "libmlx.so"
    path.write_bytes(head)
    with pytest.raises((blas._LeaveAlone, ValueError)):
        blas.pointer_slots(path)

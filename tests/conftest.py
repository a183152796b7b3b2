"""Settings of all tests, and a check of the store after each change of what is stored."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import settings

from agent_memory.prefix.pieces import Segment
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import check
from tests.parts import beside, workers

# The machines that run these tests are shared and slow at times: a deadline would test them and not the code.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


#: Where stores of tests go if it has the room: nothing here needs a disk, and a folder in memory syncs at once.
MEMORY_FOLDER, ROOM_BYTES = Path("/dev/shm"), 6 << 30


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    workers.split_default_run(config)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # Else each of the processes that tests start compiles the package anew, for a second.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if workers.is_worker(config):
        tempfile.tempdir = workers.told(config)["folder"]
        beside.write_to(Path(workers.told(config)["checks"]))
        return
    has_room = os.access(MEMORY_FOLDER, os.W_OK) and shutil.disk_usage(MEMORY_FOLDER).free >= ROOM_BYTES
    if config.option.basetemp is None and has_room:
        for left in MEMORY_FOLDER.glob("agent_memory-tests-*"):  # by runs that were killed
            if not Path(f"/proc/{left.name.split('-')[2]}").exists():
                shutil.rmtree(left, ignore_errors=True)
        folder = tempfile.mkdtemp(prefix=f"agent_memory-tests-{os.getpid()}-", dir=MEMORY_FOLDER)
        os.chmod(folder, 0o711)  # as /tmp: tests that become another user find their way through it
        config.option.basetemp = Path(folder) / "paths"
        tempfile.tempdir = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput |= {"folder": tempfile.gettempdir(), "checks": str(beside.file())}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if workers.is_worker(config):
        items[:] = workers.heaviest_first(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()  # half a million objects that stay for the whole run: no later collection walks over them
    if any(item.name.startswith("test_lint_types_and_layers") for item in session.items):
        beside.start()


NAMES = [field.name for field in attrs.fields(Segment)]
FROZEN = frozenset(NAMES[: NAMES.index("number")])  #: what a segment is; what follows is how it stands


@pytest.fixture(autouse=True)
def frozen_segments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that changes what a segment is; attrs' own check would slow every opening by 20 %."""
    changed: list[str] = []
    put = object.__setattr__

    def set_once(segment: Segment, name: str, value: object, frozen: frozenset[str] = FROZEN) -> None:
        if name in frozen and hasattr(segment, name):
            changed.append(name)
        put(segment, name, value)

    monkeypatch.setattr(Segment, "__setattr__", set_once, raising=False)
    yield
    assert changed == []


@pytest.fixture
def edit_faults() -> list[str]:
    """Return what was out of step after an Edit so far; a long test may assert at each step that it is empty."""
    return []


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are not held to a grammar, as without the extra: the model may write them in any way, and wrong."""
    monkeypatch.setitem(sys.modules, "llguidance", None)


@pytest.fixture(autouse=True)
def edits(monkeypatch: pytest.MonkeyPatch, edit_faults: list[str]) -> Iterator[list[int]]:
    """Count the Edits of a test; the test fails if manifest and memory were out of step after one."""
    counted: list[int] = []

    def edited(catalog: Catalog) -> None:
        edit_faults.extend(check(catalog))
        counted.append(1)

    monkeypatch.setattr(Catalog, "edited", edited)
    yield counted
    assert edit_faults == []

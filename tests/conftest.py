"""Settings of all tests, and a check of the store after each change of what is stored."""

from __future__ import annotations

import os
from collections.abc import Iterator

import attrs
import pytest
from hypothesis import settings

from agent_memory.prefix.pieces import Segment
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import check

# The machines that run these tests are shared and slow at times: a deadline would test them and not the code.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


FROZEN = tuple(field.name for field in attrs.fields(Segment))
FROZEN = FROZEN[: FROZEN.index("number")]  #: what a segment is; what follows is how it stands


@pytest.fixture(autouse=True)
def frozen_segments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that changes what a segment is; attrs' own check would slow every opening by 20 %."""
    changed: list[str] = []

    def set_once(segment: Segment, name: str, value: object) -> None:
        if name in FROZEN and hasattr(segment, name):
            changed.append(name)
        object.__setattr__(segment, name, value)

    monkeypatch.setattr(Segment, "__setattr__", set_once, raising=False)
    yield
    assert changed == []


@pytest.fixture
def edit_faults() -> list[str]:
    """Return what was out of step after an Edit so far; a long test may assert at each step that it is empty."""
    return []


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

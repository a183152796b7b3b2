"""After each Edit that a test causes, what is stored is checked: manifest and memory are in step."""

from __future__ import annotations

import pytest

from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import check


@pytest.fixture(autouse=True)
def edits(monkeypatch):
    """How many Edits there were; the test fails where ``check`` gave a line after one."""
    found: list[str] = []
    counted: list[int] = []

    def edited(catalog: Catalog) -> None:
        found.extend(check(catalog))
        counted.append(1)

    monkeypatch.setattr(Catalog, "edited", edited)
    yield counted
    assert found == []

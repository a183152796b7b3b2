"""Settings of all tests, and a check of the store after each change of what is stored."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import check

# The machines that run these tests are shared and slow at times: a deadline would test them and not the code.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def edits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the Edits of a test; the test fails if manifest and memory were out of step after one."""
    found: list[str] = []
    counted: list[int] = []

    def edited(catalog: Catalog) -> None:
        found.extend(check(catalog))
        counted.append(1)

    monkeypatch.setattr(Catalog, "edited", edited)
    yield counted
    assert found == []

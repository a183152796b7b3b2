"""Contract tests: each adapter against its framework. ``pytest -m contract tests/contract``, extra ``[contract]``.

Without that marker nothing here is imported, since the default environment has no frameworks. With it, a framework that
is missing fails the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_memory import Memory


def pytest_configure(config: pytest.Config) -> None:
    config.option.asyncio_mode = "auto"  # langchain-tests' suites have bare async tests


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if "contract" not in config.option.markexpr.replace("not contract", "") else None


@pytest.fixture(scope="session")
def starter() -> Iterator[Memory]:
    """The starter model, shared by all tests of a run: agents need names of their own."""
    with Memory(path=":memory:") as memory:
        yield memory

"""One suite for both stores: what takes ``store`` runs on SQLite always, and on PostgreSQL with ``-m contract``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.postgres import INSTALL, PostgresServer, binaries
from tests.parts.stores import Stores


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the tests of one run."""
    if binaries() is None:
        pytest.skip(f"no PostgreSQL server is installed: {INSTALL}")
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.contract)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    """Stores of one kind for one test."""
    stores = Stores(tmp_path, request.getfixturevalue("postgres") if request.param == "postgres" else None)
    yield stores
    stores.close()

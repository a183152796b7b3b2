"""Fetches wait as long as a busy machine needs: no test here depends on how fast it is."""

from __future__ import annotations

from functools import partial

import pytest

from agent_memory.remote.bucket import Limits


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_memory.exchange.exchange.PATIENCE_S", 20.0)
    monkeypatch.setattr("agent_memory.remote.bucket.Limits", partial(Limits, lookup_s=20.0, connect_s=20.0))

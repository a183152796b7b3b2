"""Figures of the store for ``stats()``: counters since it was opened, its size and the disk's state."""

from __future__ import annotations

from typing import Any

from agent_memory.log.health import Health
from agent_memory.store.catalog import Catalog
from agent_memory.store.room import folder_bytes


def figures(catalog: Catalog | None, health: Health, *, agents: int, log_damage: int) -> dict[str, Any]:
    """Return every figure by its name in ``Stats``; ``catalog`` None: no KV."""
    found: dict[str, Any] = {
        "agents": agents,
        "damage": log_damage,
        "disk_state": health.state,
        "disk_failures": health.failures,
        "disk_bytes": 0,
        "disk_budget_bytes": 0,
        "bytes_written": 0,
        "segments": 0,
        "chunks": 0,
        "save_failures": 0,
        "saves_skipped": {},
        "unwritten_tokens": 0,
        "unreadable": 0,
    }
    if catalog is None:
        return found
    with catalog.lock:
        ready = [s for s in catalog.segments.values() if s.is_ready and not s.is_hidden]
        return found | {
            "damage": catalog.counts.damage + log_damage,
            "disk_bytes": folder_bytes(catalog),
            "disk_budget_bytes": catalog.quota.budget_bytes,
            "bytes_written": catalog.counts.bytes_written,
            "segments": len(ready),
            "chunks": sum(-(-s.n_tokens // s.chunk_tokens) for s in ready),
            "save_failures": catalog.counts.save_failures,
            "saves_skipped": dict(catalog.counts.skipped),
            "unwritten_tokens": catalog.counts.unwritten.n_tokens,
            "unreadable": catalog.n_unreadable,
        }

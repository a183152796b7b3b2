"""Closing an engine and its store, from whatever thread or event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from agent_memory.scheduler.engine import Engine
from agent_memory.store.store import Store


def shut(engine: Engine, store: Store, drain_s: float = 0.0) -> None:
    """Close an engine and its store: let requests end for ``drain_s``, fail the others, save, close both.

    Any thread, and any number of times: each call returns when both are closed. An exception (Ctrl-C) ends the
    draining. On a thread of this library's own, which closing may wait for (a Memory is collected where its last
    reference goes), another thread closes them and the call returns at once.
    """
    if not engine.is_ours:
        return
    if threading.current_thread().name.startswith("agent_memory-"):
        threading.Thread(target=_shut, args=(engine, store, drain_s), name="agent_memory-close").start()
    else:
        _shut(engine, store, drain_s)


async def until_shut(engine: Engine, close: Callable[[], None]) -> None:
    """Wait for ``close``, which shuts the engine, without blocking the event loop; cancelled, end its draining."""
    try:
        await asyncio.to_thread(close)
    except asyncio.CancelledError:
        engine.end_drain()
        raise


def _shut(engine: Engine, store: Store, drain_s: float) -> None:
    try:
        if drain_s > 0:
            engine.drain(drain_s)
    finally:
        engine.close()
        store.close()

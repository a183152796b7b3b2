"""KV out of memory on demand, everything to disk, and the turns that a caller expects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.log.log import Log
from agent_memory.protocols import Tokenizer
from agent_memory.scheduler.absent import Absent
from agent_memory.scheduler.engine import Engine
from agent_memory.store.store import Store
from agent_memory.tiers.tiers import Tiers


def evict(engine: Engine, tiers: Tiers, log: Log | None, *, to: str) -> None:
    """Save, and free the memory of an agent, or of all idle KV. Raises UnsupportedParameterError."""
    if to not in ("warm", "cold"):
        raise UnsupportedParameterError(f"to must be 'warm' or 'cold', got {repr_of(to)}")
    if to == "warm" and not tiers.warm.is_on:
        raise UnsupportedParameterError("to='warm' needs a warm tier: give Config a warm_bytes above 0")
    name, agent_id = (None, None) if log is None else (log.name, log.agent_id)
    flush(engine, tiers.store)
    engine.call(lambda: engine.evict(name, agent_id, to=to))  # type: ignore[arg-type]  # one of the two by now
    tiers.store.flush()


def flush(engine: Engine, store: Store) -> None:
    """Return when every finished turn is on disk."""
    while not engine.call(engine.hand_over):
        store.wait_ready()
    store.flush()


def expect(engine: Engine, tokenizer: Tokenizer, logs: Sequence[Log]) -> None:
    """Tell the engine whose turns come next, in order."""
    planned = [
        Absent(
            log.name,
            log.agent_id,
            np.asarray(log.known(tokenizer)[: log.n_kv], np.uint32),
            is_temporary=log.is_temporary,
        )
        for log in logs
    ]
    engine.call(lambda: engine.ahead.expect(planned))

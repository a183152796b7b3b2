"""KV out of memory on demand, and everything to disk."""

from __future__ import annotations

from agent_memory.errors import UnknownAgentError, UnsupportedParameterError, repr_of
from agent_memory.requests.asking import Asking
from agent_memory.scheduler.engine import Engine
from agent_memory.store.store import Store
from agent_memory.tiers.tiers import Tiers


def evict(asking: Asking, engine: Engine, tiers: Tiers, name: str | None, *, to: str) -> None:
    """Save, and free the memory of the agent ``name``, or of all idle KV. Raises UnknownAgentError."""
    if to not in ("warm", "cold"):
        raise UnsupportedParameterError(f"to must be 'warm' or 'cold', got {repr_of(to)}")
    if to == "warm" and not tiers.warm.is_on:
        raise UnsupportedParameterError("to='warm' needs a warm tier: give Config a warm_bytes above 0")
    log = None if name is None else asking.agents.find(name, identity=asking.identity)
    if name is not None and log is None:
        raise UnknownAgentError(name)
    agent_id = None if log is None else log.agent_id
    flush(engine, tiers.store)
    engine.call(lambda: engine.evict(name, agent_id, to=to))  # type: ignore[arg-type]  # one of the two by now
    tiers.store.flush()


def flush(engine: Engine, store: Store) -> None:
    """Return when every finished turn is on disk."""
    while not engine.call(engine.hand_over):
        store.wait_ready()
    store.flush()

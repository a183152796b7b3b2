"""The texts of a store's own agents, as the model read them."""

from __future__ import annotations

from collections.abc import Sequence

from agent_memory.errors import UnsupportedParameterError
from agent_memory.store.store import Store

#: Agents whose logs are given, the longest; those of other tokenizers do not count.
_MOST_AGENTS = 8


def own_ids(store: Store, salt: str, tokenizer: str) -> list[Sequence[int]]:
    """Return the ids of the longest logs that were tokenized by ``tokenizer``, the longest first.

    Raises UnsupportedParameterError where there are none, and StoreError.
    """
    found: list[Sequence[int]] = []
    for info in sorted(store.list_agents(salt), key=lambda info: -info.n_tokens):
        if len(found) == _MOST_AGENTS:
            break
        record = store.load_agent(salt, info.name)
        if record is not None and record.turns and all(turn.tokenizer == tokenizer for turn in record.turns):
            found.append(record.ids.tolist())
    if not found:
        raise UnsupportedParameterError("this store has no agent with a turn of this model: give texts=[...]")
    return found

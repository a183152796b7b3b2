"""How an EchoRunner draws its next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_memory.types import Sampling

if TYPE_CHECKING:
    from agent_memory.protocols import Constraint


def constrained(logits: np.ndarray[Any, Any], constraint: Constraint, said: Sequence[int]) -> np.ndarray[Any, Any]:
    """Return the logits of tokens that may follow ``said``; the constraint has not seen its last token yet."""
    if said:
        constraint.accept(said[-1])
    words = constraint.mask()
    if words is None:
        return logits
    return np.where(np.unpackbits(words.view(np.uint8), bitorder="little", count=len(logits)), logits, -np.inf)


def sample(logits: np.ndarray[Any, Any], sampling: Sampling, position: int) -> int:
    """Argmax, or a draw among the best few that depends on seed and position alone (no seed is seed 0)."""
    if sampling.is_greedy:
        return int(np.argmax(logits))
    best = np.argsort(-logits, kind="stable")[: min(sampling.top_k or 8, 8)]
    scaled = (logits[best] - logits[best[0]]).astype(np.float64) / sampling.temperature
    weights = np.exp(scaled)
    draw = np.random.default_rng([sampling.seed or 0, position]).random() * weights.sum()
    return int(best[min(int(np.searchsorted(np.cumsum(weights), draw)), len(best) - 1)])

"""What a logits processor returned, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from agent_memory.errors import UnsupportedParameterError


def returned(logits: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return logits as float32. Raises UnsupportedParameterError for another shape, and for NaN or only -inf."""
    made = np.asarray(logits, np.float32)
    if made.shape != shape:
        raise UnsupportedParameterError(f"a logits processor returned shape {made.shape}; {shape} is needed")
    best = made.max()  # NaN where any is
    if not np.isfinite(best):
        wrong = "only -inf" if best == -np.inf else str(best)
        raise UnsupportedParameterError(
            f"a logits processor returned {wrong} in {made.size:,} logits: rule ids out with -inf, but never all of "
            "them, and force one with a large number"
        )
    return made

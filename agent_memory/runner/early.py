"""The states of a model's early layers, as a vector of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agent_memory.errors import UnsupportedModelError

_PROBE = (1, 2, 3, 5)
_MOST_DIFFERENCE = 0.02  #: of the largest logit


class EarlyLayers:
    """The first layers of an mlx-lm model, run without a cache. Engine thread.

    Raises UnsupportedModelError for a model that is not embeddings, layers one after another, norm and head: all of
    them, run so, must give the model's own logits.
    """

    def __init__(self, model: Any, name: str, depth: float) -> None:
        try:
            self._inner = model.model
            self._layers = list(self._inner.layers)
            self._embed = self._inner.embed_tokens
            difference = self._difference(model)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise UnsupportedModelError(f"{name}: its layers cannot be run by themselves ({error})") from error
        if not difference <= _MOST_DIFFERENCE:
            raise UnsupportedModelError(
                f"{name}: its layers, run one after another, give other logits (by {difference:.0%}): "
                "give Config(embedder=) a sentence model instead"
            )
        self._n = max(1, round(depth * len(self._layers)))

    def states(self, rows: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
        """Return each row's mean over its tokens: (len(rows), width) float32. One pass, padded to the longest row."""
        import mlx.core as mx

        longest = max(map(len, rows))
        ids = mx.array([[*row, *[0] * (longest - len(row))] for row in rows])  # no token sees what follows it
        lengths = mx.array([len(row) for row in rows])
        is_own = (mx.arange(longest) < lengths[:, None])[..., None]
        states = mx.where(is_own, self._run(ids, self._n).astype(mx.float32), 0.0)
        return np.array(states.sum(axis=1) / lengths[:, None])

    def _run(self, ids: Any, n_layers: int) -> Any:
        states = self._embed(ids)
        mask = "causal" if ids.shape[1] > 1 else None
        for layer in self._layers[:n_layers]:
            states = layer(states, mask, None)
        return states

    def _difference(self, model: Any) -> float:
        import mlx.core as mx

        ids = mx.array([list(_PROBE)])
        states = self._inner.norm(self._run(ids, len(self._layers)))
        head = getattr(model, "lm_head", None)
        ours, theirs = head(states) if head is not None else self._embed.as_linear(states), model(ids)
        most = mx.abs(theirs).max()
        return float((mx.abs(ours - theirs).max() / mx.maximum(most, 1e-9)).item())

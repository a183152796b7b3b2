"""What the scheduling benchmarks share: a model of the host's, and a runner that notes when its batch was called.

Everything here stands on the public seam: ``MLXRunner(model, tokenizer)`` is handed to ``Memory``, and the ``Batch``
that it opens is wrapped.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from agent_memory import Memory, MLXRunner
from agent_memory.protocols import Batch


@frozen
class Span:
    """One call of a Batch: ``[start, stop)`` in perf_counter seconds."""

    call: str
    start: float
    stop: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stop - self.start


class WatchedBatch:
    """A Batch that notes every call; the notes cost about a microsecond each."""

    def __init__(self, batch: Batch, spans: list[Span]) -> None:
        self._batch, self._spans = batch, spans

    def __getattr__(self, name: str) -> Any:
        called: Callable[..., Any] = getattr(self._batch, name)
        if not callable(called):
            return called

        def noted(*args: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return called(*args, **named)
            finally:
                self._spans.append(Span(name, start, time.perf_counter()))

        setattr(self, name, noted)
        return noted


class WatchedRunner(MLXRunner):
    """An MLXRunner whose batches note their calls in ``spans``, in order."""

    spans: list[Span]

    def open_batch(self, chunk_tokens: int = 256) -> Any:
        """An empty batch, watched; the newest batch's notes only."""
        self.spans = []
        return WatchedBatch(super().open_batch(chunk_tokens), self.spans)

    def since(self, mark: int) -> list[Span]:
        """What was noted after the first ``mark`` notes."""
        return self.spans[mark:]


def host_model(name: str | None) -> tuple[Any, Any]:
    """Model and tokenizer as a host would load them, in the dtype that ``Memory(name)`` computes in.

    No id ends a reply: every request gives exactly its ``max_tokens``, ours and mlx-lm's alike.
    """
    with Memory(name, ":memory:") as memory:
        about = memory.doctor()
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.utils import dequantize_model

    model, tokenizer = mlx_lm.load(about.model_path)[:2]
    if "float" in about.weights_dtype:
        model = dequantize_model(model)
        model.set_dtype(getattr(mx, about.weights_dtype))
    tokenizer.eos_token_ids = ()
    # What mlx-lm computes on this thread beside the engine's leaves streams, with which the process crashes at its end.
    atexit.register(mx.clear_streams)
    return model, tokenizer


def outside_share(spans: Sequence[Span]) -> float:
    """Share of decode wall time outside ``step``, ``verify`` and ``prefill``, while the same rows decode.

    From the first step after the last row joined to the last one before the first row left.
    """
    joined = max(i for i, span in enumerate(spans) if span.call == "insert")
    left = next(i for i, span in enumerate(spans) if span.call == "remove" and i > joined)
    steps = [span for span in spans[joined:left] if span.call in ("step", "verify", "prefill")]
    wall = steps[-1].stop - steps[0].start
    return 1.0 - sum(span.seconds for span in steps) / wall

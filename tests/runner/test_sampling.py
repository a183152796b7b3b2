"""Sampling at its extremes: what is allowed means something, and what a processor may not return is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent_memory import EchoRunner, Memory, Sampling, UnsupportedParameterError
from agent_memory.protocols import ModelRunner
from tests.parts.waiting import PATIENCE_S, outcome

N_VOCAB = 500
NEVER = [np.nan, np.inf, -np.inf]


def _drawn(sampling: Sampling, dtype: str = "float32") -> list[int]:
    """Ids drawn from one row of log-probabilities, of which 123 is the likeliest."""
    import mlx.core as mx

    from agent_memory.runner.sampling import make_sampler

    logits = mx.random.normal((1, N_VOCAB), key=mx.random.key(3))
    logits[0, 123] = 4.0
    logits = logits.astype(getattr(mx, dtype))
    sampler = make_sampler(sampling)
    return [int(sampler(logits - mx.logsumexp(logits)).item()) for _ in range(20)]


@pytest.mark.mlx
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 5e-324}, {"temperature": 5e-39}, {"temperature": 1e-30}, {"temperature": 2e-5},
        {"temperature": 5e-39, "top_k": 5}, {"temperature": 5e-39, "top_p": 0.5}, {"temperature": 1.0, "top_p": 1e-300},
        {"temperature": 1.0, "top_p": 5e-324}, {"temperature": 1.0, "top_p": 1e-20}, {"temperature": 1e300, "top_k": 1},
        {"temperature": 1.0, "min_p": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_extremes_that_leave_one_token_draw_the_most_probable(sampling: dict[str, Any], dtype: str) -> None:
    assert _drawn(Sampling(seed=1, **sampling), dtype) == [123] * 20


@pytest.mark.mlx
def test_a_vast_temperature_draws_evenly_from_what_the_filters_leave() -> None:
    assert len(set(_drawn(Sampling(seed=1, temperature=1e300)))) > 10
    assert 123 in (drawn := set(_drawn(Sampling(seed=2, temperature=1e300, top_k=3))))
    assert 2 <= len(drawn) <= 3


@pytest.mark.mlx
@pytest.mark.parametrize("context", [2**31 - 1, 2**31, 10**10, 10**30, 10**400])
def test_a_repetition_context_of_any_length_looks_back_at_all_ids(context: int) -> None:
    from tests.parts.tinyrunner import endless

    with Memory(endless("llama"), ":memory:") as memory:
        replies = [
            memory.generate("hello there", max_tokens=12, sampling=Sampling(repetition_penalty=1.5, **more))
            for more in ({"repetition_context": 1000}, {"repetition_context": context})
        ]
    assert replies[0].token_ids == replies[1].token_ids


@pytest.mark.mlx
@pytest.mark.parametrize("penalty", [1e-300, 1e300])
def test_a_penalty_beyond_float32_gives_no_nan(penalty: float) -> None:
    import mlx.core as mx

    from agent_memory.runner.sampling import Processors

    (process,) = Processors(Sampling(repetition_penalty=penalty)).chain
    logits = process(mx.array([0, 1, 2]), mx.array([[-3.0, 0.0, 3.0, 1.0]]))
    assert np.isfinite(np.array(logits)).all()
    assert int(mx.argmax(logits).item()) == (3 if penalty > 1 else 2)


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_an_int_that_no_float_holds_is_refused(value: int) -> None:
    with pytest.raises(UnsupportedParameterError, match="temperature must be a number"):
        Sampling(temperature=value)


@pytest.mark.parametrize("runner", ["echo", pytest.param("llama", marks=pytest.mark.mlx)])
@pytest.mark.parametrize("value", NEVER)
def test_logits_from_which_nothing_can_be_drawn_fail_their_own_request(runner: str, value: float) -> None:
    def model() -> ModelRunner:
        if runner == "echo":
            return EchoRunner()
        from tests.parts.tinyrunner import endless

        return endless("llama")

    def spoil(ids: Any, logits: Any) -> Any:
        return np.full_like(logits, value)

    with Memory(model(), ":memory:") as memory:
        alone = memory.generate("beside it", max_tokens=8).token_ids
        beside = memory.stream("beside it", max_tokens=8)
        failed = outcome(memory.stream("hello", max_tokens=8, logits_processors=[spoil]))
        assert isinstance(failed, UnsupportedParameterError)
        assert "logits processor returned" in str(failed)
        assert beside.result(PATIENCE_S).token_ids == alone

"""How many forward passes a prompt takes: those of the grid, and one for a short rest."""

from __future__ import annotations

from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory, MLXRunner

STEP = 64


def noted(runner: Any, sizes: list[int]) -> Any:
    """The runner, whose batches note how many ids each step of a prompt feeds."""
    opened = runner.open_batch

    def open_batch(*told: Any) -> Any:
        batch = opened(*told)
        prefill = batch.prefill

        def feed(kv: Any, ids: Any) -> None:
            sizes.append(len(ids))
            prefill(kv, ids)

        insert = batch.insert

        def begin(row: int, kv: Any, ids: Any, **how: Any) -> int | None:
            sizes.extend([n_left] if (n_left := len(ids) - kv.n_tokens) > 1 else [])
            token: int | None = insert(row, kv, ids, **how)
            return token

        batch.prefill, batch.insert = feed, begin
        return batch

    runner.open_batch = open_batch
    return runner


def steps_of_a_fork(runner: Any) -> tuple[list[int], int]:
    """Sizes of the steps of a fork's first turn, which crosses a multiple of ``STEP``; the tokens before them."""
    sizes: list[int] = []
    config = Config(chunk_tokens=STEP, prefill_tokens=STEP)
    with Memory(noted(runner, sizes), ":memory:", config=config) as memory:
        agent = memory.agent("a", system="a" * 20)
        agent.say("b" * (2 * STEP), max_tokens=1)
        while (left := STEP - agent.n_tokens % STEP) > 40:
            agent.say("c" * 10, max_tokens=1)
        n_kv = agent._log.n_kv
        sizes.clear()
        usage = agent.fork("b").say("d" * left, max_tokens=1).usage
        assert usage.cached_tokens == n_kv
        return sizes, n_kv


def test_the_first_token_of_a_fork_takes_one_step_of_its_new_ids() -> None:
    sizes, n_kv = steps_of_a_fork(EchoRunner())
    assert n_kv // STEP < (n_kv + sum(sizes)) // STEP, "they cross a multiple"
    assert len(sizes) == 1


@pytest.mark.mlx
@pytest.mark.parametrize(("name", "n_steps"), [("llama", 1), ("qwen3_next", 2)])
def test_layers_that_keep_states_stop_at_multiples(name: str, n_steps: int) -> None:
    from tests.parts import tiny
    from tests.parts.tinytokenizer import tokenizer

    sizes, n_kv = steps_of_a_fork(MLXRunner(tiny.model(name), tokenizer(), name=name))
    assert n_kv // STEP < (n_kv + sum(sizes)) // STEP, "they cross a multiple"
    assert len(sizes) == n_steps


def test_a_prompt_from_its_start_is_computed_on_the_grid() -> None:
    sizes: list[int] = []
    config = Config(chunk_tokens=STEP, prefill_tokens=STEP)
    with Memory(noted(EchoRunner(), sizes), ":memory:", config=config) as memory:
        n_tokens = memory.prefill("a" * 300).prompt_tokens
    assert sizes == [STEP] * (n_tokens // STEP) + [n_tokens % STEP]

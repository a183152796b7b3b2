"""Law 9 for verified drafts: with prompt lookup a request says what it says without, up to rounding.

The rule of test_law9_batched.py: the same tokens except where the two best logits of single steps are closer than twice
the gap that counts as rounding; and the logits of the next turn, which depend on all KV that the reply left, within it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from attrs import frozen

from agent_memory import Config, Memory, Sampling

pytestmark = pytest.mark.mlx

GAP = 1e-3
DRAWN = Sampling(temperature=0.7, top_p=0.9, seed=3)
#: The 200 prompts run in parts that can be run one by one, by their id (``...[3]``). Each has every kind of prompt
#: (by 4) and of sampling (by 5), and must accept so many tokens of drafts: without drafts nothing would be checked.
N_PROMPTS, PART, LEAST_ACCEPTED = 200, 20, 80
N_PARTS = N_PROMPTS // PART
NAMES = ("Ada", "Basil", "Cora", "Dinah", "Edgar", "Flora")


@frozen
class Said:
    """A reply with prompt lookup, the same without, and the largest difference of the next turn's logits."""

    ids: tuple[int, ...]
    wanted: tuple[int, ...]
    margins: list[float]  #: of the two best logits of each token without
    n_accepted: int
    gap: float


class _Watch:
    def __init__(self) -> None:
        self.steps: list[np.ndarray[Any, Any]] = []

    def __call__(self, ids: Any, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.steps.append(logits.copy())
        return logits


def _margin(logits: np.ndarray[Any, Any]) -> float:
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)


def _said(auto: Memory, off: Memory, name: str, prompt: str, n_tokens: int, sampling: Sampling) -> Said:
    watch, after = _Watch(), (_Watch(), _Watch())
    one, other = auto.agent(name), off.agent(name)
    mine = one.say(prompt, max_tokens=n_tokens, sampling=sampling)
    theirs = other.say(prompt, max_tokens=n_tokens, sampling=sampling, logits_processors=[watch])
    assert theirs.usage.proposed == 0
    gap = 0.0
    if mine.token_ids == theirs.token_ids:
        one.say("Go on.", max_tokens=1, logits_processors=[after[0]])
        other.say("Go on.", max_tokens=1, logits_processors=[after[1]])
        gap = float(np.abs(after[0].steps[0] - after[1].steps[0]).max())
    for agent in (one, other):
        agent.delete()
    return Said(mine.token_ids, theirs.token_ids, list(map(_margin, watch.steps)), mine.usage.accepted, gap)


def _check(found: Sequence[Said]) -> int:
    """Assert the rule; the number of flips that rounding excuses."""
    n_flips = 0
    for said in found:
        assert said.gap <= GAP, f"the next turn's logits differ by {said.gap}"
        if said.ids != said.wanted:
            same = next(
                (i for i, (a, b) in enumerate(zip(said.ids, said.wanted, strict=False)) if a != b),
                min(len(said.ids), len(said.wanted)),
            )
            assert said.margins[same] < 2 * GAP, f"token {same} differs at a margin of {said.margins[same]}"
            n_flips += 1
    return n_flips


def _prompt(number: int) -> str:
    """Something to be written again with a change, or something to tell."""
    rng = random.Random(number)
    people = [{"name": rng.choice(NAMES), "age": rng.randrange(20, 70), "id": 100 + i} for i in range(4)]
    return (
        f"Write this JSON again, and add one year to each age:\n{json.dumps(people, indent=1)}",
        f"Repeat this line three times: {rng.choice(NAMES)} and {rng.choice(NAMES)} met {rng.choice(NAMES)} at noon.",
        f"Tell me about {rng.choice(NAMES)}, who is {rng.randrange(20, 70)} and likes the sea.",
        f"Fix the names in this code:\ndef f(a, b):\n    return a + b * {number}\n\nprint(f(1, {number}))\n",
    )[number % 4]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "deepseek_v3"])
def test_tiny_models_say_with_lookup_what_they_say_without(kind: str) -> None:
    from tests.parts.tinyrunner import endless

    with (
        Memory(endless(kind), ":memory:", config=Config(lookup="auto")) as auto,
        Memory(endless(kind), ":memory:", config=Config(lookup="off")) as off,
    ):
        found = [
            _said(auto, off, f"a{number}", "the cat sat on the mat. " * 6 + str(number), 70, sampling)
            for number, sampling in enumerate([Sampling(), DRAWN, Sampling(), DRAWN])
        ]
    assert _check(found) == 0
    assert all(len(said.ids) == 70 for said in found)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("part", range(N_PARTS))
def test_the_starter_model_says_with_lookup_what_it_says_without_on_200_prompts(
    part: int, record_property: Any
) -> None:
    with (
        Memory(path=":memory:", config=Config(lookup="auto")) as auto,
        Memory(path=":memory:", config=Config(lookup="off")) as off,
    ):
        found = [
            _said(auto, off, f"a{number}", _prompt(number), 48, DRAWN if number % 5 == 4 else Sampling())
            for number in range(part * PART, (part + 1) * PART)
        ]
    record_property("flips", _check(found))
    n_accepted = sum(said.n_accepted for said in found)
    record_property("accepted", n_accepted)
    assert n_accepted >= LEAST_ACCEPTED

"""Grammar jumps: text that a grammar forces needs no step a token, and the reply is the one that single steps write."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory import Config, EchoRunner, Memory, Reply, Sampling, Tool
from agent_memory.echo.tokenizer import EchoTokenizer
from agent_memory.grammar.grammar import Grammars, value_grammar

pytest.importorskip("llguidance")

KINDS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 0, "maximum": 99},
    {"type": "boolean"},
    {"enum": ["low", "lower", "high"]},
    {"type": "string", "maxLength": 6},
]
FIELDS = [f"field_number_{i}" for i in range(20)]
ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {name: KINDS[i % 4] for i, name in enumerate(FIELDS)},
    "required": FIELDS,
    "additionalProperties": False,
}
DRAWN = Sampling(temperature=1.0, top_p=0.95, seed=4)
GRAMMARS = Grammars(EchoTokenizer())


def _runner(kind: str) -> Any:
    if kind == "echo":
        return EchoRunner("an order")
    from agent_memory import MLXRunner
    from tests.parts import tiny
    from tests.parts.tinytokenizer import tokenizer

    return MLXRunner(tiny.model(kind), tokenizer(), name=f"tiny {kind}")


def _both(kind: str, prompts: list[str], **options: Any) -> tuple[list[Reply], list[Reply]]:
    """Replies with jumps, and without."""
    found = []
    for lookup in ("auto", "off"):
        with Memory(_runner(kind), ":memory:", config=Config(lookup=lookup)) as memory:  # type: ignore[arg-type]
            found.append(memory.batch(prompts, max_tokens=1500, **options))
            memory._engine.call(memory._engine._loop.check)
    return found[0], found[1]


ALONE, ROWS = ["one"], ["one", "two", "three"]
#: On a model one row drawn greedily and three seeded ones; the other two pairs run with ``slow``.
WAYS = [(Sampling(), ALONE), (DRAWN, ROWS), (Sampling(), ROWS), (DRAWN, ALONE)]


@pytest.mark.parametrize(
    ("kind", "sampling", "prompts"),
    [
        *(pytest.param("echo", *one, id=f"echo {n}") for n, one in enumerate(WAYS)),
        *(pytest.param("llama", *one, id=f"llama {n}", marks=pytest.mark.mlx) for n, one in enumerate(WAYS[:2])),
        *(
            pytest.param("llama", *one, id=f"llama {n}", marks=[pytest.mark.mlx, pytest.mark.slow])
            for n, one in enumerate(WAYS[2:], 2)
        ),
    ],
)
def test_twenty_fields_are_written_as_in_single_steps_in_half_of_the_steps(
    kind: str, sampling: Sampling, prompts: list[str]
) -> None:
    jumped, stepped = _both(kind, prompts, schema=ORDER, sampling=sampling)
    for one, other in zip(jumped, stepped, strict=True):
        assert (one.token_ids, one.text, one.finish) == (other.token_ids, other.text, other.finish)
        assert list(json.loads(one.text)) == FIELDS
        assert one.usage.accepted > one.usage.output_tokens / 2
        assert one.usage.proposed >= one.usage.accepted
        assert other.usage.proposed == 0


@pytest.mark.mlx
def test_a_constrained_row_beside_a_free_one_says_what_it_says_in_single_steps() -> None:
    found = []
    for lookup in ("auto", "off"):
        with Memory(_runner("llama"), ":memory:", config=Config(lookup=lookup)) as memory:  # type: ignore[arg-type]
            held = memory.stream("one", schema=ORDER, max_tokens=600)
            free = memory.stream("ab ab ab ab ab", max_tokens=40)
            found.append([handle.result(60).token_ids for handle in (held, free)])
    assert found[0] == found[1]


def test_a_call_is_forced_from_its_name_on() -> None:
    tool = Tool("set_the_temperature", "", {"type": "object", "properties": {"degrees": KINDS[0]}})
    jumped, stepped = _both("echo", ["warm"], tools=[tool], tool_choice="required")
    assert jumped[0].tool_calls[0].name == "set_the_temperature"
    assert jumped[0].token_ids == stepped[0].token_ids
    assert jumped[0].usage.accepted > 10


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 9, 17, 40])
def test_length_ends_a_jump_where_it_ends_single_steps(n_tokens: int) -> None:
    found = []
    for lookup in ("auto", "off"):
        with Memory(EchoRunner("x"), ":memory:", config=Config(lookup=lookup)) as memory:  # type: ignore[arg-type]
            agent = memory.agent("a")
            reply = agent.say("go", schema=ORDER, max_tokens=n_tokens)
            memory._engine.call(memory._engine._loop.check)
            found.append((reply.token_ids, reply.finish, agent.n_tokens, agent.say("and?").usage.cached_tokens))
            assert (reply.finish, reply.usage.output_tokens) == ("length", n_tokens)
    assert found[0] == found[1]


walks = st.lists(st.integers(0, 10**6), max_size=60)


@given(walks, walks)
@settings(max_examples=60, deadline=None)
def test_masks_ahead_are_those_of_single_steps_and_change_nothing(first: list[int], then: list[int]) -> None:
    matcher = GRAMMARS.matcher(value_grammar(ORDER))
    for number in first:
        if matcher.is_stopped:
            return
        matcher.accept(_allowed(matcher, number))
    twin, path, masks = matcher.copy(), [], []
    for number in then[:9]:
        path.append(_allowed(twin, number))
        twin.accept(path[-1])
        if twin.is_stopped:
            break
        masks.append(twin.mask().copy())
    before = matcher.mask().copy()
    found = matcher.masks(path)
    assert len(found) == len(masks)
    assert all(np.array_equal(one, other) for one, other in zip(found, masks, strict=True))
    assert np.array_equal(matcher.mask(), before)
    assert len(matcher.masks([*path, 0, 0])) <= len(path) + 1, "the list ends before an id that is not allowed"


@given(walks)
@settings(max_examples=60, deadline=None)
def test_what_is_forced_is_allowed_and_no_other_text_is(walk: list[int]) -> None:
    matcher = GRAMMARS.matcher(value_grammar(ORDER))
    for number in walk:
        if matcher.is_stopped:
            return
        token = _allowed(matcher, number)
        ahead = matcher.ahead(token, 16)
        matcher.accept(token)
        if not ahead:
            continue
        forced = GRAMMARS.tokenizer.decode(ahead)
        assert len(matcher.masks(ahead)) == len(ahead)
        for other in _all_allowed(matcher):
            text = GRAMMARS.tokenizer.decode([other])
            assert forced.startswith(text) or text.startswith(forced), (forced, text)


def _all_allowed(matcher: Any) -> list[int]:
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    found: list[int] = np.flatnonzero(bits).tolist()
    return found


def _allowed(matcher: Any, number: int) -> int:
    found = _all_allowed(matcher)
    return found[number % len(found)]

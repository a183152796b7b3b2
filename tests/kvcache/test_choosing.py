"""Which bits each tensor gets: within the budget by what was measured, and no cheaper way to spend as many bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.kvcache.choosing import (
    LEVELS,
    PROBE_BITS,
    Sensitivity,
    allot,
    bits_of,
    codable,
    merged,
    n_bytes,
    noise,
    sensitivities,
)  # fmt: skip
from agent_memory.kvcache.coding import PLANES, coding, fitted, is_for, is_lossy, mixed, named, token_bytes
from agent_memory.kvcache.layout import Layout, TensorSpec

FEW = (2, 4, 6, 8, 0)


def _sensitivity(name: str, kl: float, dim: int = 64, dtype: str = "F32", n_rows: int = 10) -> Sensitivity:
    return Sensitivity(TensorSpec(name, 2, dim, dtype), kl, n_rows)


SENSITIVITIES = st.lists(
    st.tuples(
        st.floats(0, 1, allow_nan=False), st.sampled_from([8, 64, 256]), st.sampled_from(["F32", "BF16"]),
        st.integers(1, 9),
    ),
    min_size=1, max_size=3,
).map(lambda drawn: [_sensitivity(f"{i:03d}.k", *one) for i, one in enumerate(drawn)])  # fmt: skip


@given(found=SENSITIVITIES, budget=st.floats(1e-9, 1))
def test_no_allotment_of_as_few_bytes_costs_less(found: list[Sensitivity], budget: float) -> None:
    bits = allot(found, budget)

    def sizes(chosen: tuple[int, ...]) -> tuple[float, int]:
        pairs = list(zip(found, chosen, strict=True))
        return sum(one.kl_at(b) for one, b in pairs), sum(one.bytes_at(b) for one, b in pairs)

    cost, n_bytes = sizes(tuple(bits[one.spec.name] for one in found))
    assert cost <= budget * (1 + 1e-9) + 1e-15
    for chosen in itertools.product(FEW, repeat=len(found)):
        other_cost, other_bytes = sizes(chosen)
        assert other_cost >= cost * (1 - 1e-9) - 1e-15 or other_bytes > n_bytes


@given(found=SENSITIVITIES, budgets=st.tuples(st.floats(1e-9, 1), st.floats(1e-9, 1)))
def test_a_smaller_budget_takes_no_fewer_bytes(found: list[Sensitivity], budgets: tuple[float, float]) -> None:
    sizes = [
        sum(one.bytes_at(bits[one.spec.name]) for one in found) for bits in (allot(found, b) for b in sorted(budgets))
    ]
    assert sizes[0] >= sizes[1]


@given(
    drawn=st.lists(st.tuples(st.floats(0, 1, allow_nan=False), st.sampled_from([8, 64])), min_size=2, max_size=4),
    budget=st.floats(1e-9, 1),
)
def test_tensors_of_one_digit_get_the_same_bits_and_no_allotment_of_as_few_bytes_costs_less(
    drawn: list[tuple[float, int]], budget: float
) -> None:
    found = [_sensitivity(f"{i // 2:03d}.{i % 2}.k", *one) for i, one in enumerate(drawn)]
    bits = allot(found, budget)
    codec = mixed(bits)
    assert all(bits_of(found, codec)[name] == n or not n for name, n in bits.items())
    size = n_bytes(found, codec)
    assert size == sum(one.bytes_at(bits[one.spec.name]) for one in found), "what is charged is what is stored"
    cost = sum(one.kl_at(bits[one.spec.name]) for one in found)
    assert cost <= budget * (1 + 1e-9) + 1e-15
    for chosen in itertools.product(FEW, repeat=(len(found) + 1) // 2):
        each = [(one, chosen[i // 2]) for i, one in enumerate(found)]
        other = sum(one.kl_at(b) for one, b in each)
        assert other >= cost * (1 - 1e-9) - 1e-15 or sum(one.bytes_at(b) for one, b in each) > size


def test_what_two_caches_of_a_layer_cost_together_is_charged_once() -> None:
    names = ("000.0.k", "000.0.v", "000.1.k", "000.1.v", "001.k", "001.v")
    layout = Layout(tuple(TensorSpec(name, 2, 64, "F32") for name in names), ("full",) * 3)
    asked: list[str] = []

    def measure(codec: str) -> float:
        asked.append(codec)
        return 0.5

    found = sensitivities(layout, 7, measure)
    assert [one.spec.name for one in found] == ["000.0.k", "000.1.k", "000.0.v", "000.1.v", "001.k", "001.v"]
    assert len(asked) == len(set(asked)) == 4, "one for each digit"
    assert [one.kl for one in found] == [0.25] * 4 + [0.5] * 2
    assert sum(one.kl_at(PROBE_BITS) for one in found) == sum(0.5 for _ in asked)


def test_what_matters_more_gets_more_bits() -> None:
    found = [_sensitivity("000.k", 0.1), _sensitivity("000.v", 0.001), _sensitivity("001.k", 0.0)]
    bits = allot(found, 0.001)
    assert bits["000.k"] > bits["000.v"] > bits["001.k"] == min(PLANES)
    assert [noise(b) for b in LEVELS] == sorted(map(noise, LEVELS), reverse=True)


def test_the_mean_of_two_texts() -> None:
    one, two = [_sensitivity("000.k", 0.1)], [_sensitivity("000.k", 0.3)]
    assert merged(one, two) == [_sensitivity("000.k", 0.2)]


@given(bits=st.dictionaries(st.tuples(st.integers(0, 99), st.sampled_from("kv")), st.sampled_from(LEVELS), min_size=1))
def test_the_name_of_a_mixed_codec_says_the_bits_of_each_tensor(bits: dict[tuple[int, str], int]) -> None:
    by_name = {f"{layer:03d}.{part}": n for (layer, part), n in bits.items()}
    codec = named(mixed(by_name))
    for layer, part in itertools.product(range(101), "kv"):
        made = coding(TensorSpec(f"{layer:03d}.{part}", 2, 64, "F32"), codec)
        assert (0 if made is None else made.bits) == by_name.get(f"{layer:03d}.{part}", 0)
    layout = Layout(tuple(TensorSpec(f"{i:03d}.{part}", 2, 64, "F32") for i in range(3) for part in "kv"))
    assert is_for(layout, codec) == (max(layer for layer, _ in bits) == 2)
    assert is_lossy(layout, codec) == any(n and layer < 3 for (layer, _), n in bits.items())


@pytest.mark.parametrize(
    "text", ["mix", "mix.", "mix.4", "mix.44 ", "mix.1144", "mix.bb", "mix.é4", "MIX.44", "auto:1", ""]
)
def test_other_names_are_no_codecs(text: str) -> None:
    with pytest.raises(ValueError, match="unknown codec"):
        named(text)


def test_tensors_of_nested_caches_and_odd_names() -> None:
    codec = mixed({"000.k": 8, "000.v": 4, "001.k": 2})
    forms = [coding(TensorSpec(name, 1, 64, "F32"), codec) for name in ("000.1.k", "000.0.v", "x.k", "9" * 5000 + ".k")]
    assert [form and form.bits for form in forms] == [8, 4, None, None]


def test_tensors_that_share_a_digit_get_the_finest_bits_among_them() -> None:
    assert mixed({"000.0.k": 8, "000.1.k": 4, "000.0.v": 2}) == "mix.82"
    assert mixed({"000.0.k": 0, "000.1.k": 4, "001.1.v": 3}) == "mix.0003"


def test_a_fixed_codec_is_for_every_layout_whatever_its_tensors_are_called() -> None:
    layout = Layout((TensorSpec("first.k", 1, 64, "F32"),))
    assert [is_for(layout, codec) for codec in ("exact", "q8", "q5", "q4")] == [True] * 4


def test_what_no_codec_encodes_is_not_chosen_for() -> None:
    odd, fine, window = (TensorSpec(n, 2, dim, "F32") for n, dim in (("000.k", 12), ("000.v", 16), ("001.k", 64)))
    assert codable(Layout((odd, fine), ("full", "window"), windows=(window,), window=8)) == (fine, window)


@given(
    kinds=st.lists(st.booleans(), min_size=1, max_size=12), codec=st.sampled_from(["exact", "q8", "q5", "q4", "mix.44"])
)
def test_a_fixed_codec_takes_no_more_bytes_where_few_layers_have_no_window(kinds: list[bool], codec: str) -> None:
    specs = [(TensorSpec(f"{i:03d}.{part}", 1, 64, "F32"), is_full) for i, is_full in enumerate(kinds) for part in "kv"]
    full, windows = (tuple(spec for spec, is_full in specs if is_full == wanted) for wanted in (True, False))
    layout = Layout(full, windows=windows, window=8)
    found = fitted(layout, codec)
    assert named(found) == found == fitted(layout, found)
    if codec in ("q8", "q4") and 0 < 3 * len(full) <= len(specs):
        assert is_for(layout, found)
        keys, values = (coding(full[place], found) for place in (0, 1))
        assert keys is not None
        assert values is not None
        assert keys.bits == values.bits + 2
        assert token_bytes(layout, found) < token_bytes(layout, codec)
        assert token_bytes(Layout(windows), found) < token_bytes(Layout(windows), codec)
    else:
        assert found == codec

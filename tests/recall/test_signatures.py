"""Errors, conditions, choices: the same whatever differs by chance; likeness and groups."""

from __future__ import annotations

from itertools import permutations
from math import comb
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.recall.chance import discoveries, hypergeometric_tail, probably_better, tail
from agent_memory.recall.signatures import choice_key, condition_key, error_signature, if_then
from agent_memory.recall.similarity import clusters, edit_similarity, jaccard, matched, text_similarity

TRACEBACK = """Traceback (most recent call last):
  File "/srv/app/main.py", line 42, in <module>
    import polars
ModuleNotFoundError: No module named 'polars'
"""


@pytest.mark.parametrize(
    ("observation", "signature"),
    [
        (TRACEBACK, "ModuleNotFoundError: No module named <name>"),
        (
            "error[E0433]: failed to resolve `serde` in src/a/b.rs:12:9",
            "error[E0433]: failed to resolve <name> in <path>#",
        ),
        ("HTTP 413: payload of 120034 bytes, trace 00ab34cd99", "HTTP 413: payload of # bytes, trace <id>"),
        (
            "OSError: [Errno 28] No space left on device: '/var/x'",
            "OSError: [Errno 28] No space left on device: <name>",
        ),
        ("timeout after 3.5s at https://x.org/a?b=1", "timeout after # at <url>"),
        ("job 3f0f9c1e-53a7-4c43-9d63-8a4d6d3c2b11 died", "job <id> died"),
        ("bad key [REDACTED:github:0a1b2c3d] given", "bad key <github> given"),
        ("note: starting\nerror: linker failed\n", "error: linker failed"),
        ("", "compile failed"),
    ],
)
def test_a_signature_keeps_the_kind_of_an_error_alone(observation: str, signature: str) -> None:
    assert error_signature(observation, "compile") == signature


def test_a_long_traceback_is_known_by_its_last_line() -> None:
    lines = "".join(f'  File "/srv/app/m{i}.py", line {i}, in call\n    return call({i})\n' for i in range(400))
    text = f"Traceback (most recent call last):\n{lines}RecursionError: maximum recursion depth exceeded"
    assert error_signature(text) == "RecursionError: maximum recursion depth exceeded"


def test_a_signature_of_a_signature_is_itself() -> None:
    for observation in (TRACEBACK, "HTTP 413: payload of 9 bytes, trace 00ab34cd99", "error[E0433]: `x` in a/b.rs:1"):
        once = error_signature(observation)
        assert error_signature(once) == once


@given(st.text(max_size=2_000))
def test_any_text_has_a_short_signature(text: str) -> None:
    assert 0 < len(error_signature(text, "tool")) <= 300


def test_conditions_are_compared_without_their_frame() -> None:
    same = ("if the cache is cold", "When the cache is cold:", "The cache is cold?", "cache is cold")
    assert {condition_key(text) for text in same} == {"cache is cold"}
    assert condition_key("the file is larger than 10 MB") == condition_key("file is larger than 50 mb")
    assert condition_key("the cache is warm") != condition_key("the cache is cold")
    assert choice_key("Warm it, first!") == "warm it first"


def test_if_then_reads_actions_that_are_written_as_decisions() -> None:
    assert if_then("If tests fail, bisect") == ("tests fail", "bisect")
    assert if_then("when the disk is full then prune images") == ("the disk is full", "prune images")
    assert if_then("check the disk") is None


def test_edit_similarity_counts_insertions_deletions_and_replacements() -> None:
    assert edit_similarity("abc", "abc") == 1
    assert edit_similarity("abcd", "abxd") == 0.75
    assert edit_similarity("", "abc") == 0
    assert edit_similarity("", "") == jaccard(set(), set()) == 1
    assert text_similarity("a b c", "C B A") == 1


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_similarity_is_symmetric_and_one_for_equals_alone(one: str, other: str) -> None:
    assert edit_similarity(one, other) == edit_similarity(other, one)
    assert (edit_similarity(one, other) == 1) == (one == other)


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4))
def test_the_matching_is_a_largest_one(table: list[list[bool]]) -> None:
    pairs = matched(range(4), range(len(table)), lambda j, i: 1.0 if table[i][j] else 0.0)
    assert len(set(pairs.values())) == len(pairs)
    assert all(table[i][j] for i, j in pairs.items())
    best = max(sum(row[j] for row, j in zip(table, order, strict=False)) for order in permutations(range(4)))
    assert len(pairs) == best


def test_clusters_part_what_is_apart_whatever_the_seed() -> None:
    words = ["aaaa", "aaab", "aaba", "zzzz", "zzzy", "mmmm"]
    found = {str(clusters(words, edit_similarity, n=3, seed=seed)) for seed in range(10)}
    assert found == {"[[0, 1, 2], [3, 4], [5]]"}
    assert clusters(["a", "a"], edit_similarity, n=5) == [[0, 1]]
    assert clusters([], edit_similarity, n=2) == []


def test_chances_are_those_that_can_be_counted() -> None:
    assert tail(3, 2, 0.5) == pytest.approx(0.5)
    assert tail(5, 0, 0.1) == 1
    assert tail(2, 3, 0.9) == 0
    assert hypergeometric_tail(10, 4, 3, 3) == pytest.approx(comb(4, 3) / comb(10, 3))
    rng = Random(1)
    drawn = [rng.betavariate(8, 3) > rng.betavariate(3, 8) for _ in range(20_000)]
    assert probably_better(7, 2, 2, 7) == pytest.approx(sum(drawn) / len(drawn), abs=0.01)
    assert probably_better(0, 0, 0, 0) == pytest.approx(0.5)


def test_discoveries_keep_the_share_of_false_ones_small() -> None:
    assert discoveries({"a": 0.001, "b": 0.019, "c": 0.6}, 0.05, 5) == {"a", "b"}
    assert discoveries({"a": 0.02}, 0.05, 5) == set()
    assert discoveries({}, 0.05, 0) == set()
    rng = Random(2)
    runs = 400
    by_chance = sum(bool(discoveries({i: rng.random() for i in range(20)}, 0.05, 20)) for _ in range(runs))
    assert by_chance <= 0.08 * runs

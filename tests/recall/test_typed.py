"""Typed items by rules: measured on seeded texts, and on labelled snippets where they are at hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent_memory.recall import facts
from agent_memory.recall.typed import Typed, find
from tests.parts import typed_corpus
from tests.parts.typed_corpus import Sample

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def found(sample: Sample) -> list[Typed]:
    return find(sample.text, kind=sample.kind, role=sample.role, speaker=None, at=1_795_694_400.0)


def f1(samples: Sequence[Sample]) -> tuple[float, Counter[str]]:
    """Micro-F1 of (kind, span) pairs, one to one; and what was wrong, by kind."""
    right = wrong = missed = 0
    which: Counter[str] = Counter()
    for sample in samples:
        got = {(typed.kind, (typed.start, typed.stop)) for typed in found(sample)}
        wanted = set(sample.labels)
        right += len(got & wanted)
        wrong += len(got - wanted)
        missed += len(wanted - got)
        which.update(f"+{kind}" for kind, _ in got - wanted)
        which.update(f"-{kind}" for kind, _ in wanted - got)
    return 2 * right / (2 * right + wrong + missed), which


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rules_find_the_kinds_of_a_conversation(seed: int) -> None:
    score, wrong = f1(typed_corpus.conversations(400, seed))
    assert score >= 0.85, wrong


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rules_find_the_kinds_of_diffs_and_logs(seed: int) -> None:
    for samples in (typed_corpus.diffs(80, seed), typed_corpus.logs(200, seed)):
        score, wrong = f1(samples)
        assert score >= 0.95, wrong


def test_every_item_cites_its_span_and_nobody_else() -> None:
    for sample in (*typed_corpus.conversations(200, 9), *typed_corpus.diffs(20, 9), *typed_corpus.logs(50, 9)):
        for typed in found(sample):
            assert 0 <= typed.start < typed.stop <= len(sample.text)
            assert sample.text[typed.start : typed.stop].strip() == sample.text[typed.start : typed.stop]


@pytest.mark.skipif(not DATA.exists(), reason=f"needs {DATA}/typed-memories-dev.json")
def test_decisions_and_commitments_of_labelled_snippets_are_found() -> None:
    """Snippets of MemPalace/mempalace benchmarks/model_eval (MIT): items of each kind, counted by snippet."""
    data = json.loads((DATA / "typed-memories-dev.json").read_text(encoding="utf-8"))
    labels = {entry["id"]: entry["memories"] for entry in data["labels"]}
    names = {"decision": "decision", "commitment": "task"}
    right = wrong = missed = 0
    for snippet in data["dataset"]:
        sample = Sample(snippet["text"], "note", "user", ())
        got = Counter(typed.kind for typed in found(sample) if typed.kind in names.values())
        wanted = Counter(names[memory["type"]] for memory in labels[snippet["id"]] if memory["type"] in names)
        both = (got & wanted).total()
        right, wrong, missed = right + both, wrong + got.total() - both, missed + wanted.total() - both
    assert 2 * right / (2 * right + wrong + missed) >= 0.60


def test_what_is_asked_supposed_or_denied_is_no_plain_decision() -> None:
    def statuses(text: str) -> list[tuple[str, str]]:
        sample = Sample(text, "note", "user", ())
        return [(typed.kind, typed.status) for typed in found(sample)]

    assert statuses("Have we decided to use Kafka?") == []
    assert statuses("We decided to use Kafka.") == [("decision", "asserted")]
    assert statuses("Maybe we decided to use Kafka too early.") == [("decision", "hypothetical")]
    assert statuses("We no longer agreed on that: the decision to use Kafka is scrapped.") == [("decision", "refuted")]


@pytest.mark.parametrize(
    ("sentence", "slot", "value"),
    [
        ("The capital of France is Paris.", "capit of franc", "Paris"),
        ("17. Chanel was founded by Coco Chanel.", "chanel found by", "Coco Chanel"),
        ("Ann's dentist is now Dr. Bo.", "ann s dentist", "Dr. Bo"),
        ("The deadline changed to Friday", "deadlin", "Friday"),
        ("I live in Lima now.", "ann live in", "Lima"),
        ("I moved to Lima.", "ann live in", "Lima"),
        ("My favourite colour is green!", "ann favourit colour", "green"),
    ],
)
def test_facts_are_read_with_their_slots(sentence: str, slot: str, value: str) -> None:
    fact = facts.read(sentence, "Ann", is_talk=False)
    assert fact is not None
    assert (fact.slot, fact.value) == (slot, value)


@pytest.mark.parametrize(
    "sentence",
    ["Is the capital of France Lyon?", "I was told by Bo to go.", "It is a kind of magic.", "Here is a list of facts:",
     "word " * 60],
)  # fmt: skip
def test_what_fills_no_slot_is_no_fact(sentence: str) -> None:
    assert facts.read(sentence, None, is_talk=False) is None


def test_what_happened_to_somebody_in_a_conversation_overrules_nothing() -> None:
    assert facts.read("Ann was injured by a bus.", None, is_talk=True) is None
    assert facts.read("Ann was injured by a bus.", None, is_talk=False) is not None

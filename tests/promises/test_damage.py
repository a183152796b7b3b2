"""One flipped bit or one cut file costs time: never a wrong answer, never an exception, never uncounted."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from agent_memory import Config, EchoRunner, IncompatibleStoreError, Memory, Reply
from agent_memory.runner.mlx import MLXRunner
from tests.parts.damaging import cut, flip, harm_anything

SMALL = Config(chunk_tokens=16, prefill_tokens=16)
AGENTS = ("alice", "bob")
SYSTEM = "Believable rules of the house. " * 2


@attrs.frozen
class Bench:
    """A closed store that is only ever copied, how to open a copy, and what its agents answer undamaged."""

    pristine: Path
    open: Callable[[Path], Memory]
    max_tokens: int
    turns: int
    processors: tuple[Any, ...] = ()
    answers: tuple[Any, ...] = ()

    def say(self, memory: Memory, name: str, text: str) -> Reply:
        """One turn."""
        return memory.agent(name, system=SYSTEM).say(
            text, max_tokens=self.max_tokens, logits_processors=self.processors
        )

    def ask(self, memory: Memory) -> tuple[Any, ...]:
        """What both agents answer from what is stored: texts and ids."""
        replies = [self.say(memory, name, f"what now, {name}?") for name in AGENTS]
        for reply in replies:
            assert reply.usage.cached_tokens + reply.usage.computed_tokens == reply.usage.prompt_tokens
        return tuple((reply.text, reply.token_ids) for reply in replies)


def _prepare(
    folder: Path, open_: Callable[[Path], Memory], *, turns: int, max_tokens: int, processors: tuple[Any, ...] = ()
) -> Bench:
    bench = Bench(folder / "pristine", open_, max_tokens, turns, processors)
    with open_(bench.pristine) as memory:
        for turn in range(turns):
            for name in AGENTS:
                bench.say(memory, name, f"{name} says something believable, number {turn}")
    shutil.copytree(bench.pristine, folder / "undamaged")
    with open_(folder / "undamaged") as memory:
        stored = sum(memory.agent(name).n_tokens - 2 for name in AGENTS)
        answers = bench.ask(memory)
        assert memory.stats().damage == 0
        assert memory.stats().hits.get("cold", 0) == len(AGENTS), "the answers rest on what was stored"
        assert memory.stats().cached_tokens >= stored, "and on all of it: any flip is read"
        assert memory.verify().ok
    return attrs.evolve(bench, answers=answers)


def _damage(bench: Bench, folder: Path, harm: Callable[[Path], tuple[Path, bool]], n_rounds: int) -> None:
    counted = 0
    for number in range(n_rounds):
        copy = folder / "copy"
        shutil.copytree(bench.pristine, copy)
        file, is_needed = harm(copy)
        with bench.open(copy) as memory:
            if number % 4 == 0 and not memory.stats().damage:  # a cut shows in the file's size, and counts on opening
                assert any(file.name in line for line in memory.verify().damaged), number
            assert bench.ask(memory) == bench.answers, f"round {number}: {file.name}"
            noted = memory.stats().damage
            if not noted:
                assert any(file.name in line for line in memory.verify().damaged), number
            assert not is_needed or noted == 1, f"round {number}: a damage that was read is not counted"
            counted += noted
        if number % 4 == 1 and noted:
            with bench.open(copy) as memory:
                assert memory.stats().damage == 0, "damage is counted once"
                assert memory.verify().ok
        shutil.rmtree(copy)
    assert counted > n_rounds // 2


def _flips(bench: Bench, folder: Path, n_rounds: int) -> None:
    draw = random.Random(1)
    _damage(bench, folder, lambda store: flip(store, draw), n_rounds)


def _cuts(bench: Bench, folder: Path, n_rounds: int) -> None:
    draw, shares = random.Random(2), iter([k / n_rounds for k in range(n_rounds)])
    _damage(bench, folder, lambda store: (cut(store, draw, next(shares)), True), n_rounds)


def _anything(bench: Bench, folder: Path, n_rounds: int, seed: int) -> None:
    """Every file, the manifest and the WAL of a process that died included: whatever is lost is noticed, what is said
    is right.
    """
    dead = folder / "dead"
    with bench.open(folder / "alive") as memory:
        for name in AGENTS:
            bench.say(memory, name, f"{name} says something believable, number 0")
        memory.flush()
        shutil.copytree(folder / "alive", dead, ignore=shutil.ignore_patterns("*-shm"))
    draw, n_noted = random.Random(seed), 0
    for number in range(n_rounds):
        copy = folder / "copy"
        shutil.copytree((bench.pristine, dead)[number % 2], copy)
        n_turns = dict.fromkeys(AGENTS, 1 if number % 2 else bench.turns)
        file = harm_anything(copy, draw)
        try:
            with bench.open(copy) as memory:
                found = {info.name: info.n_turns for info in memory.agents()}
                replies = [bench.say(memory, name, f"what now, {name}?") for name in AGENTS]
                if not number % 2 and found == n_turns:
                    assert tuple((r.text, r.token_ids) for r in replies) == bench.answers, f"{number}: {file.name}"
                for reply in replies:
                    usage = reply.usage
                    assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
                is_noted = bool(memory.stats().damage) or not memory.verify().ok
                assert is_noted or found == n_turns, f"{number}: {file.name} took turns with it, and nobody noticed"
                n_noted += is_noted
        except IncompatibleStoreError:
            n_noted += 1  # a version was hit: refused, untouched
        shutil.rmtree(copy)
    assert n_noted > n_rounds // 3


@pytest.fixture(scope="module")
def echo(tmp_path_factory: Any) -> Bench:
    def open_(path: Path) -> Memory:
        return Memory(EchoRunner(), path, config=SMALL)

    return _prepare(tmp_path_factory.mktemp("echo"), open_, turns=5, max_tokens=60)


def test_50_flipped_bits_give_no_wrong_text_and_are_counted(echo: Bench, tmp_path: Path) -> None:
    _flips(echo, tmp_path, 50)


@pytest.mark.slow
def test_1000_flipped_bits_give_no_wrong_text_and_are_counted(echo: Bench, tmp_path: Path) -> None:
    _flips(echo, tmp_path, 1000)


def test_a_segment_cut_at_64_places_gives_no_wrong_text_and_is_counted(echo: Bench, tmp_path: Path) -> None:
    _cuts(echo, tmp_path, 64)


def test_40_flips_and_cuts_anywhere_in_the_store_are_noticed_or_harmless(echo: Bench, tmp_path: Path) -> None:
    _anything(echo, tmp_path, 40, 3)


@pytest.mark.slow
def test_1200_flips_and_cuts_anywhere_in_the_store_are_noticed_or_harmless(echo: Bench, tmp_path: Path) -> None:
    _anything(echo, tmp_path, 1200, 4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: Any) -> Bench:
    pytest.importorskip("mlx.core")
    from tests import tiny as tiny_models
    from tests.parts.tinytokenizer import tokenizer

    model, words = tiny_models.model("llama"), tokenizer()

    letters = words.encode("etaoinshrdlu", add_special_tokens=False)

    def letters_only(ids: Any, logits: Any) -> Any:
        """Without this, random weights give half characters, whose text no ids can be found for again."""
        kept = np.full_like(logits, -1e9)
        kept[letters] = logits[letters]
        return kept

    def open_(path: Path) -> Memory:
        return Memory(MLXRunner(model, words, name="tiny"), path, config=SMALL)

    return _prepare(tmp_path_factory.mktemp("tiny"), open_, turns=3, max_tokens=12, processors=(letters_only,))


@pytest.mark.mlx
def test_20_flipped_bits_change_no_id_of_a_tiny_llama(tiny: Bench, tmp_path: Path) -> None:
    _flips(tiny, tmp_path, 20)


@pytest.mark.mlx
def test_8_cuts_change_no_id_of_a_tiny_llama(tiny: Bench, tmp_path: Path) -> None:
    _cuts(tiny, tmp_path, 8)


@pytest.mark.mlx
@pytest.mark.slow
def test_200_flips_and_cuts_anywhere_change_no_id_of_a_tiny_llama(tiny: Bench, tmp_path: Path) -> None:
    _anything(tiny, tmp_path, 200, 5)


@pytest.mark.mlx
@pytest.mark.slow
def test_200_flipped_bits_change_no_id_of_a_tiny_llama(tiny: Bench, tmp_path: Path) -> None:
    _flips(tiny, tmp_path, 200)


@pytest.mark.mlx
@pytest.mark.slow
def test_64_cuts_change_no_id_of_a_tiny_llama(tiny: Bench, tmp_path: Path) -> None:
    _cuts(tiny, tmp_path, 64)


@pytest.mark.model
@pytest.mark.slow
def test_20_flipped_bits_change_no_id_of_the_starter_model(tmp_path: Path) -> None:
    bench = _prepare(tmp_path, lambda path: Memory(None, path), turns=3, max_tokens=8)
    _flips(bench, tmp_path, 20)

"""Memory.tune: settings by what this machine measured, and the figures behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from agent_memory import Config, EchoRunner, Memory, UnsupportedParameterError
from agent_memory.observe import threads
from agent_memory.observe.threads import ThreadRates
from agent_memory.observe.tuning import Tuning
from tests.parts.tinydirectory import directory
from tests.parts.tinyrunner import endless


def _chosen(found: Tuning) -> dict[str, Any]:
    return {one.setting: one.value for one in found.trials if one.is_chosen}


def test_the_config_has_what_the_figures_say_and_nothing_else_changes() -> None:
    config = Config(chunk_tokens=128, salt="s")
    with Memory(EchoRunner(), ":memory:", config=config) as memory:
        before = memory.stats()
        found = memory.tune(n_tokens=600)
        assert memory.stats() == before
    chosen = _chosen(found)
    assert chosen.keys() == {"prefill_tokens", "max_batch"}
    assert found.config == attrs.evolve(config, **chosen)
    for setting in chosen:
        rates = {one.value: one.figure for one in found.trials if one.setting == setting}
        assert rates[chosen[setting]] >= 0.95 * max(rates.values())
        assert all(rate < 0.95 * max(rates.values()) for value, rate in rates.items() if value < chosen[setting])
    assert {one.value for one in found.trials if one.setting == "prefill_tokens"} == {256, 512}
    assert "prefill_tokens" in found._repr_html_()
    assert repr(found).startswith("Tuning(prefill_tokens=")
    with Memory(EchoRunner(), ":memory:", config=found.config) as memory:
        assert memory.agent("ann").say("hello").text == "hello"


class Elsewhere(EchoRunner):
    """An EchoRunner that says it runs on other hardware."""

    def __init__(self, **facts: Any) -> None:
        super().__init__()
        self._told = facts

    @property
    def facts(self) -> Mapping[str, Any]:
        return {**super().facts, **self._told}


def test_on_a_gpu_longer_steps_are_tried() -> None:
    with Memory(Elsewhere(backend="mlx gpu"), ":memory:") as memory:
        found = memory.tune()
    assert {one.value for one in found.trials if one.setting == "prefill_tokens"} == {512, 1024, 2048, 4096}


OPENBLAS = {"backend": "mlx cpu", "blas": "OpenBLAS 0.3", "blas_active": True, "model_path": "m", "blas_threads": 4}


def test_the_best_number_of_blas_threads_is_told_with_what_it_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {1: (50.0, 30.0), 2: (90.0, 40.0), 3: (91.0, 41.0), 4: (80.0, 20.0)}
    monkeypatch.setattr(threads, "n_cores", lambda: 4)
    monkeypatch.setattr(threads, "_ask", lambda asked, n: ThreadRates(n, *measured[n]))
    for now, environment in ((4, {"OPENBLAS_NUM_THREADS": "2"}), (2, {})):
        with Memory(Elsewhere(**{**OPENBLAS, "blas_threads": now}), ":memory:") as memory:
            found = memory.tune(n_tokens=64)
        assert found.environment == environment
        trials = [(one.value, one.figure) for one in found.trials if one.setting == "OPENBLAS_NUM_THREADS"]
        assert trials == [(n, rate) for n, rates in measured.items() for rate in rates]
        assert _chosen(found)["OPENBLAS_NUM_THREADS"] == 2
        assert any("prefill 1.12 times" in note and "decode 2.00 times" in note for note in found.notes) == (now == 4)


def test_threads_that_could_not_be_measured_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_ask", lambda asked, n: "Killed")
    with Memory(Elsewhere(**OPENBLAS), ":memory:") as memory:
        found = memory.tune(n_tokens=64)
    assert found.environment == {}
    assert "1 BLAS threads were not measured: Killed" in found.notes
    for facts, reason in (({"model_path": None}, "the host has loaded"), ({"blas_active": False}, "no OpenBLAS")):
        with Memory(Elsewhere(**{**OPENBLAS, **facts}), ":memory:") as memory:
            assert any(reason in note for note in memory.tune(n_tokens=64).notes)


def test_threads_that_the_blas_does_not_have_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "n_cores", lambda: 4)
    monkeypatch.setattr(threads, "_ask", lambda asked, n: ThreadRates(min(n, 2), 50.0 * min(n, 2), 30.0))
    with Memory(Elsewhere(**{**OPENBLAS, "blas_threads": 2}), ":memory:") as memory:
        found = memory.tune(n_tokens=64)
    assert {f"{n} BLAS threads were not measured: the BLAS has 2 at most" for n in (3, 4)} <= set(found.notes)


@pytest.mark.parametrize(
    ("n_cores", "tried"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 3, 4, 6]), (32, [1, 2, 3, 4, 8, 16, 32])]
)
def test_numbers_of_threads_to_try(n_cores: int, tried: list[int]) -> None:
    assert threads.numbers(n_cores) == tried


@pytest.mark.mlx
@pytest.mark.slow
def test_each_number_of_threads_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    with Memory(directory(tmp_path / "model"), ":memory:") as memory:
        has_blas = memory.doctor().facts["blas_active"]
        found = memory.tune(n_tokens=256)
    counted = [one for one in found.trials if one.setting == "OPENBLAS_NUM_THREADS"]
    assert {one.value for one in counted} == ({*threads.numbers(threads.n_cores())} if has_blas else set())
    assert all(one.figure > 0 for one in counted)
    asked = threads._Asked(str(tmp_path / "nowhere"), {}, 64, 64, 64)
    assert "nowhere" in str(threads._ask(asked, 1))


@pytest.mark.mlx
def test_codecs_are_timed_and_agents_go_on() -> None:
    with Memory(endless("llama_windows"), ":memory:", config=Config(chunk_tokens=64, prefill_tokens=64)) as memory:
        memory.agent("ann").say("one", max_tokens=2)
        found = memory.tune(n_tokens=128)
        assert memory.agent("ann").say("two", max_tokens=2).usage.exactness == "exact"
    rates = {one.setting: one.figure for one in found.trials if one.unit == "GB/s"}
    assert rates.keys() == {f"{codec} {way}" for codec in ("q8", "q5", "q4") for way in ("encodes", "decodes")}
    assert min(rates.values()) > 0


@pytest.mark.parametrize("n_tokens", [0, 63, "many", True, 1.5])
def test_a_prompt_that_is_none_is_refused(n_tokens: Any) -> None:
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(UnsupportedParameterError, match="n_tokens must be"):
        memory.tune(n_tokens=n_tokens)


def test_the_command_prints_the_figures() -> None:
    cli = pytest.importorskip("agent_memory.cli", exc_type=SystemExit)
    from typer.testing import CliRunner

    found = CliRunner().invoke(cli.app, ["tune", "-m", "echo", "--tokens", "300", "--json"])
    assert {one["setting"] for one in json.loads(found.stdout)["trials"]} == {"prefill_tokens", "max_batch"}
    assert "chosen" in CliRunner().invoke(cli.app, ["tune", "-m", "echo", "--tokens", "300"]).stdout

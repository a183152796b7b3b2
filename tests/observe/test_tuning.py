"""Memory.tune: settings by what this machine measured, and the figures behind them."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from agent_memory import Config, EchoRunner, Memory, UnsupportedParameterError
from agent_memory.observe.tuning import Tuning
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


@pytest.mark.mlx
def test_codecs_are_timed_and_agents_go_on() -> None:
    with Memory(endless("llama_windows"), ":memory:", config=Config(chunk_tokens=64, prefill_tokens=64)) as memory:
        memory.agent("ann").say("one", max_tokens=2)
        found = memory.tune(n_tokens=128)
        assert memory.agent("ann").say("two", max_tokens=2).usage.exactness == "exact"
    rates = {one.setting: one.figure for one in found.trials if one.unit == "GB/s"}
    assert rates.keys() == {f"{codec} {way}" for codec in ("q8", "q5", "q4") for way in ("encodes", "decodes")}
    assert min(rates.values()) > 0


@pytest.mark.parametrize("n_tokens", [0, 63, "many", None, True, 1.5])
def test_a_prompt_that_is_none_is_refused(n_tokens: Any) -> None:
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(UnsupportedParameterError, match="n_tokens must be"):
        memory.tune(n_tokens=n_tokens)


def test_the_command_prints_the_figures() -> None:
    cli = pytest.importorskip("agent_memory.cli", exc_type=SystemExit)
    from typer.testing import CliRunner

    found = CliRunner().invoke(cli.app, ["tune", "-m", "echo", "--tokens", "300", "--json"])
    assert {one["setting"] for one in json.loads(found.stdout)["trials"]} == {"prefill_tokens", "max_batch"}
    assert "chosen" in CliRunner().invoke(cli.app, ["tune", "-m", "echo", "--tokens", "300"]).stdout

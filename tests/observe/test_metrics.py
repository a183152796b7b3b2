"""The catalogue, and what Prometheus' own parser reads of it."""

from __future__ import annotations

import math
import re

import attrs
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent_memory import ClosedError, Config, EchoRunner, Memory, Stats, UnsupportedParameterError
from agent_memory.figures import Health, Histogram
from agent_memory.observe.meters import BOUNDS, Meters
from agent_memory.observe.metrics import CATALOGUE, AgentFigures, Figures
from agent_memory.observe.prometheus import exposition
from agent_memory.usage import MissCause, Usage


def families(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Sample name -> label values -> value, as prometheus_client reads the text."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_every_figure_of_stats_is_shown_by_one_metric() -> None:
    shown = [name for m in CATALOGUE if m.source == "stats" for name in (m.figures.values() or [m.figure or m.name])]
    assert sorted([*shown, "times"]) == sorted(field.name for field in attrs.fields(Stats))
    assert sorted(Meters().times()) == sorted(m.name for m in CATALOGUE if m.kind == "histogram")
    assert [m.name for m in CATALOGUE if m.source == "agents"] == [field.name for field in attrs.fields(AgentFigures)]


def test_names_are_unique_and_of_the_form_that_prometheus_asks_for() -> None:
    names = [metric.prometheus for metric in CATALOGUE]
    assert len(set(names)) == len(names)
    for metric in CATALOGUE:
        assert re.fullmatch(r"agent_memory_[a-z_]+[a-z]", metric.prometheus)
        assert (metric.kind == "counter") == metric.prometheus.endswith("_total")
        assert metric.help.endswith(".")
        assert "\n" not in metric.help


def test_prometheus_reads_every_metric_with_its_kind_and_value() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        first = memory.agent("alice").say("hello " * 40)
        second = memory.agent("alice").say("again")
        memory.generate("no agent")
        text, stats = memory.to_prometheus(), memory.stats()
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    empty = {"saves_skipped"}  # nothing was skipped
    assert kinds == {m.prometheus.removesuffix("_total"): m.kind for m in CATALOGUE if m.name not in empty}
    values = families(text)
    assert values["agent_memory_requests_total"] == {(): 3}
    assert values["agent_memory_ended_total"] == {("done",): 3, ("cancelled",): 0, ("failed",): 0}
    assert values["agent_memory_prompt_tokens_total"][()] == stats.prompt_tokens
    assert values["agent_memory_hits_total"][("hot",)] == stats.hits["hot"] >= 1
    assert values["agent_memory_tier_bytes"][("hot",)] == stats.hot_bytes > 0
    assert values["agent_memory_budget_bytes"][("hot",)] == stats.budgets["hot"]
    assert values["agent_memory_disk_state"] == {
        (s,): s == "ok" for s in ("ok", "full", "read-only", "failing", "gone")
    }
    assert values["agent_memory_agent_computed_tokens_total"] == {
        ("alice",): first.usage.computed_tokens + second.usage.computed_tokens
    }
    assert values["agent_memory_ready"] == {(): 1}
    assert len(values["agent_memory_misses_total"]) == len(MissCause.__args__)  # type: ignore[attr-defined]


def test_the_histograms_hold_the_times_of_the_replies() -> None:
    with Memory(EchoRunner(delay_s=0.02), ":memory:") as memory:
        replies = [memory.agent("a").say(f"number {n}") for n in range(4)]
        values, times = families(memory.to_prometheus()), memory.stats().times
    usages = [reply.usage for reply in replies]
    assert times["ttft"].sum == pytest.approx(sum(usage.ttft_s for usage in usages))
    assert times["queue"].sum == pytest.approx(sum(usage.queue_s for usage in usages))
    assert times["prefill"].sum == pytest.approx(sum(usage.prefill_s for usage in usages))
    reused = [usage.restore_s for usage in usages if usage.cached_tokens]
    assert (times["restore"].count, times["restore"].sum) == (len(reused), pytest.approx(sum(reused)))
    buckets = values["agent_memory_ttft_seconds_bucket"]
    for bound in BOUNDS:
        assert buckets[(repr(float(bound)) if bound != int(bound) else str(int(bound)),)] == sum(
            usage.ttft_s <= bound for usage in usages
        )
    assert buckets[("+Inf",)] == values["agent_memory_ttft_seconds_count"][()] == 4


def test_a_quantile_is_the_bound_that_the_values_are_within() -> None:
    times = Histogram((1.0, 2.0, 5.0), (5, 4, 0, 1), 20.0)
    assert [times.quantile(q) for q in (0.0, 0.5, 0.9, 1.0)] == [1.0, 1.0, 2.0, math.inf]
    assert Histogram((1.0,), (0, 0), 0.0).quantile(0.5) == 0.0
    assert repr(times) == "Histogram(n=10 mean=2 p50<=1 p95<=inf)"


def test_the_agents_shown_are_those_that_cost_most() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        for name, n in (("small", 2), ("large", 90), ("middle", 30)):
            memory.agent(name).say(f"{name} " * n)
        two = families(memory.to_prometheus(top_agents=2))
        none = families(memory.to_prometheus(top_agents=0))
    assert set(two["agent_memory_agent_requests_total"]) == {("large",), ("middle",)}
    assert "agent_memory_agent_requests_total" not in none


def test_hashed_names_are_the_same_in_every_process_of_one_salt_and_no_other() -> None:
    def shown(salt: str) -> set[tuple[str, ...]]:
        with Memory(EchoRunner(), ":memory:", config=Config(salt=salt)) as memory:
            memory.agent("alice").say("hello")
            text = memory.to_prometheus(hash_names=True)
        assert "alice" not in text
        return set(families(text)["agent_memory_agent_requests_total"])

    assert shown("tenant") == shown("tenant")
    assert shown("tenant") != shown("other")


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "two\nlines", "a{b}=c,d", "日本 \x1b[31m", "\\n"])
def test_any_name_of_an_agent_is_read_back_as_it_is(name: str) -> None:
    figures = Figures(
        stats=Stats(times=Meters().times()), health=Health(live=True, ready=True), agents={name: AgentFigures(7)}
    )
    assert families(exposition(figures))["agent_memory_agent_requests_total"] == {(name,): 7}


def test_meters_count_how_every_request_ended_and_time_only_replies() -> None:
    meters = Meters()
    meters.ended("cancelled", "a", None, 9.0)
    meters.ended("failed", None, None, 9.0)
    meters.ended(
        "done", "a", Usage(prompt_tokens=3, cached_tokens=0, computed_tokens=3, output_tokens=1, tier="none"), 2.0
    )
    assert meters.by_state() == {"done": 1, "cancelled": 1, "failed": 1}
    assert (meters.times()["request"].count, meters.times()["request"].sum) == (1, 2.0)
    assert meters.times()["restore"].count == 0
    assert meters.agents(5) == {"a": AgentFigures(1, 3, 0, 3, 1)}


def test_wrong_arguments_and_a_closed_memory_are_refused() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        for wrong in (-1, 1.5, True, "10"):
            with pytest.raises(UnsupportedParameterError, match="top_agents must be an int"):
                memory.to_prometheus(top_agents=wrong)  # type: ignore[arg-type]
    with pytest.raises(ClosedError):
        memory.to_prometheus()

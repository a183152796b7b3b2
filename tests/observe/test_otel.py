"""Every metric through OpenTelemetry's own in-memory reader."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from agent_memory import EchoRunner, Memory, MissingExtraError
from agent_memory.errors import INSTALL
from agent_memory.observe.metrics import CATALOGUE

EMPTY = {"saves_skipped"}  # nothing is skipped here


def collected(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Name -> the metric, as a reader gets it; {} where there is none."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {m.name: m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}


def values(metric: Any) -> dict[tuple[str, ...], float]:
    return {tuple(point.attributes.values()): point.value for point in metric.data.data_points}


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> MeterProvider:
    return MeterProvider(metric_readers=[reader])


def test_every_metric_of_the_catalogue_is_exported(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        memory.to_opentelemetry(provider)
        usages = [memory.agent("alice").say(f"hello {n}").usage for n in range(3)]
        found, stats = collected(reader), memory.stats()
        assert set(found) == {metric.otel for metric in CATALOGUE if metric.name not in EMPTY}
        for metric in CATALOGUE:
            if metric.name not in EMPTY:
                assert found[metric.otel].description == metric.help
        assert values(found["agent_memory.requests"]) == {(): 3}
        assert values(found["agent_memory.prompt_tokens"]) == {(): stats.prompt_tokens}
        assert values(found["agent_memory.hits"])[("hot",)] == stats.hits["hot"]
        assert values(found["agent_memory.agent_requests"]) == {("alice",): 3}
        assert found["agent_memory.tier_bytes"].unit == "By"
        assert found["agent_memory.requests"].data.is_monotonic
        [ttft] = found["agent_memory.ttft"].data.data_points
        assert (found["agent_memory.ttft"].unit, ttft.count) == ("s", 3)
        assert ttft.sum == pytest.approx(sum(usage.ttft_s for usage in usages))
        assert tuple(ttft.bucket_counts) == stats.times["ttft"].counts
        assert tuple(ttft.explicit_bounds) == stats.times["ttft"].bounds


def test_each_collection_has_the_figures_of_its_moment(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        memory.to_opentelemetry(provider)
        for n in range(1, 4):
            memory.generate("hello")
            found = collected(reader)
            assert values(found["agent_memory.requests"]) == {(): n}
            assert found["agent_memory.request"].data.data_points[0].count == n


def test_the_names_of_agents_are_hashed_on_wish(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        memory.to_opentelemetry(provider, top_agents=1, hash_names=True)
        memory.agent("alice").say("hello " * 50)
        memory.agent("bob").say("hi")
        [[name]] = values(collected(reader)["agent_memory.agent_requests"])
        assert name not in ("alice", "bob")


def test_a_memory_that_is_closed_or_collected_gives_nothing_and_is_not_kept(
    reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    memory = Memory(EchoRunner(), ":memory:")
    memory.to_opentelemetry(provider)
    memory.generate("hello")
    memory.close()
    assert "agent_memory.requests" not in collected(reader)
    kept = weakref.ref(memory)
    del memory
    gc.collect()
    assert kept() is None
    assert "agent_memory.requests" not in collected(reader)


def test_without_the_extra_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "agent_memory.observe.otel", raising=False)
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(MissingExtraError) as caught:
        memory.to_opentelemetry()
    assert INSTALL["otel"] in str(caught.value)

"""Nonsense given to context and episodes is refused by a typed error before any work; what was kept stays."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from agent_memory import (
    AgentMemoryError,
    ConfigError,
    ContextMemory,
    EchoRunner,
    Episode,
    EpisodicMemory,
    Memory,
    Outcome,
    RuleRedactor,
    TaskContext,
    UnsupportedParameterError,
    Weights,
)
from agent_memory.recall.protocols import Extracted

NOTHING: list[Any] = [None, 0, -1, True, 2**70, 1.5, float("nan"), float("inf"), b"x", object(), len, 1j, Ellipsis]
NOTHING += [datetime.min, datetime.max]  # without a zone: of no clock in some zones
NOTHING += [10**400, -(10**400), 1e300, float("-inf")]  # a float cannot hold the first two, nor a database the third
TEXTS: list[Any] = ["", "x", "\ud800", "a" * 300]
LISTS: list[Any] = [[], [1], [None], [[]], {}, {"kind": 1}, (1, 2), {3}, range(3), iter("ab"), [{}]]
NONSENSE = [*NOTHING, *TEXTS, *LISTS]
IDS = [f"{number} {type(wrong).__name__}" for number, wrong in enumerate(NONSENSE)]  # no address: workers compare them


class NoneFound:
    name = "finds nothing"

    def extract(self, text: str) -> list[Extracted]:
        return []


@pytest.fixture
def context() -> Iterator[ContextMemory]:
    with ContextMemory() as made:
        made.remember("The lamp is lit at dusk.")
        yield made


@pytest.fixture
def episodes() -> Iterator[EpisodicMemory]:
    with EpisodicMemory() as made:
        with made.start("light the lamp") as episode:
            episode.step("match", "strike it", ok=True)
            episode.complete(True)
        yield made


def _refused(calls: list[Callable[[Any], Any]], wrong: Any) -> None:
    for number, call in enumerate(calls):
        try:
            call(wrong)
        except AgentMemoryError as error:
            assert str(error), number  # noqa: PT017 - of some of these values some calls can make sense


@pytest.mark.parametrize("wrong", NONSENSE, ids=IDS)
def test_context_refuses_it_or_can_use_it(context: ContextMemory, wrong: Any) -> None:
    calls: list[Callable[[Any], Any]] = [
        context.cleaned,
        context.expand,
        context.history,
        lambda given: context.expand(1, neighbours=given),
        lambda given: context.feedback(given, True),
        lambda given: context.feedback(1, given),
        context.pin,
        lambda given: context.link(1, given),
        lambda given: context.forget(given) if given != "a" * 300 and given != "x" else None,
        lambda given: context.forget(source=given),
        context.undo,
        lambda given: context.maintain(retain_days=given) if not isinstance(given, int) else None,
        lambda given: context.maintain(max_ms=given) if given != float("inf") else None,
        lambda given: context.maintain(retain_days=given) if given == 10**400 else None,
        lambda given: context.audit(limit=given),
        lambda given: context.audit(since=given),
        lambda given: context.recall("lamp", since=given),
        lambda given: context.stats(since=given),
        lambda given: context.recall("lamp", weights=Weights(relevance=given, recency=given, failure=given)),
        lambda given: context.keep_found(given, [], "me"),
        lambda given: context.keep_found(given, None, "me"),
        lambda given: context.export_jsonl(given),
        lambda given: context.import_jsonl(given),
        lambda given: context.recall("lamp", k=given),
        lambda given: context.recall("lamp", kinds=given),
        lambda given: context.recall(given),
    ]
    _refused(calls, wrong)
    assert [hit.item.text for hit in context.recall("lamp")] == ["The lamp is lit at dusk."]


def _told(episodes: EpisodicMemory, tell: Callable[[Episode], Any]) -> None:
    """Say something of an episode, of which nothing is left."""
    episode = episodes.start("look about")
    try:
        tell(episode)
    finally:
        episodes.forget(episode.id)


@pytest.mark.parametrize("wrong", NONSENSE, ids=IDS)
def test_episodes_refuse_it_or_can_use_it(episodes: EpisodicMemory, wrong: Any) -> None:
    calls: list[Callable[[Any], Any]] = [
        episodes.get,
        episodes.reflection,
        episodes.resume,
        episodes.newest,
        lambda given: episodes.forget(given) if given is not None and given not in ([1], (1, 2)) else None,
        lambda given: episodes.patterns(kinds=given),
        lambda given: episodes.patterns(min_effectiveness=given),
        lambda given: episodes.recommend("light it", after=given),
        lambda given: episodes.recommend("light it", error=given),
        lambda given: episodes.recommend(given),
        lambda given: episodes.recall(given),
        lambda given: episodes.recall("lamp", context=given),
        lambda given: episodes.verdict(given, success=True),
        episodes.validate,
        lambda given: episodes.clusters(n=given),
        lambda given: _told(episodes, lambda episode: episode.step("look", "once", ok=True, latency_ms=given)),
        lambda given: _told(episodes, lambda episode: episode.step("look", "once", ok=True, tokens=given)),
        lambda given: _told(episodes, lambda episode: episode.complete(Outcome(success=True, duration_ms=given))),
    ]
    if not isinstance(wrong, bool) and 1 not in (wrong if isinstance(wrong, list | tuple | range) else ()):
        _refused(calls, wrong)
    assert [record.task for record in episodes.newest()] == ["light the lamp"]


def test_what_a_piece_cannot_have_is_refused(context: ContextMemory) -> None:
    with ContextMemory(extractor=NoneFound()) as reading:
        reading.remember("Ann keeps the lamp.")
        piece = reading.unread()
        assert piece is not None
        wrong: list[Any] = ["x", 3, [None], [{}]]
        for found in wrong:
            with pytest.raises(UnsupportedParameterError):
                reading.keep_found(piece, found, "me")
        with pytest.raises(UnsupportedParameterError):
            reading.keep_found(piece, [], 3)  # type: ignore[arg-type]
        assert reading.unread() == piece


@pytest.mark.parametrize(
    "make",
    [
        lambda: Outcome(success=1),  # type: ignore[arg-type]
        lambda: Outcome(success=True, quality=1.5),
        lambda: Outcome(success=True, duration_ms="long"),  # type: ignore[arg-type]
        lambda: Outcome(success=True, result=3),  # type: ignore[arg-type]
        lambda: TaskContext(language=3),  # type: ignore[arg-type]
        lambda: Weights(recency=-1),
        lambda: Weights(usage=float("nan")),
        lambda: Weights(usage=float("inf")),
        lambda: Weights(usage=10**400),
        lambda: Weights(spread=[1]),  # type: ignore[arg-type]
    ],
)
def test_values_are_checked_as_they_are_made(make: Callable[[], Any]) -> None:
    with pytest.raises(UnsupportedParameterError):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ContextMemory(clock=3),  # type: ignore[arg-type]
        lambda: EpisodicMemory(clock=()),  # type: ignore[arg-type]
        lambda: EpisodicMemory(abandon_after_s="long"),  # type: ignore[arg-type]
        lambda: RuleRedactor(rules=3),  # type: ignore[arg-type]
        lambda: RuleRedactor(rules=[None]),  # type: ignore[list-item]
        lambda: EchoRunner(dim={}),  # type: ignore[arg-type]
        lambda: EchoRunner(layers=1.5),  # type: ignore[arg-type]
        lambda: EchoRunner(prefill_tokens=None),  # type: ignore[arg-type]
    ],
)
def test_settings_are_checked_as_they_are_given(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_an_export_goes_to_an_open_file_and_a_meter_provider_is_one(context: ContextMemory, tmp_path: Any) -> None:
    with pytest.raises(UnsupportedParameterError, match="open"):
        context.export_jsonl(str(tmp_path / "file"))  # type: ignore[arg-type]
    assert context.export_jsonl(io.StringIO()) == 2
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(UnsupportedParameterError, match="meter_provider"):
        memory.to_opentelemetry(3)


def test_a_lone_surrogate_costs_no_outcome_and_no_answer(context: ContextMemory, episodes: EpisodicMemory) -> None:
    with episodes.start("read it", context={"domain": "a\ud800"}) as episode:
        episode.complete(Outcome(success=False, error="no file \ud800"))
    found = episodes.get(episode.id)
    assert found.outcome is not None
    assert (found.outcome.error, found.context.domain) == ("no file \\ud800", "a\\ud800")
    assert [hit.item.text for hit in context.recall("lamp \ud800")] == ["The lamp is lit at dusk."]

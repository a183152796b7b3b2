"""``EpisodicMemory``: episodes from start to end, what is recalled and advised, what is refused."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory.errors import ClosedError, ConfigError, ItemNotFoundError, UnsupportedParameterError
from agent_memory.recall.episode_types import EpisodeRecord, Outcome, Score, StepRecorder, TaskContext
from agent_memory.recall.episodes import EpisodicMemory
from agent_memory.recall.opening import open_storage
from agent_memory.types import ToolCall, ToolResult
from tests.parts.planted_corpus import planted
from tests.parts.recording import Clock, record
from tests.parts.stores import Stores

DAY = 86_400.0
MISSING = "ModuleNotFoundError: No module named '{}'"


def convert(memory: EpisodicMemory, *, module: str = "pyarrow", task: str = "convert the report to parquet") -> int:
    """An episode that fails, recovers and succeeds."""
    with memory.start(task, context={"language": "python", "domain": "data"}) as episode:
        episode.step("read", "open the report", observation="12 columns", latency_ms=4, tokens=120)
        episode.step("convert", "csv to parquet", ok=False, observation=MISSING.format(module))
        episode.step("pip", f"install {module}", parameters={"package": module})
        episode.step("convert", "csv to parquet")
        episode.complete(True)
    return episode.id


def test_an_episode_keeps_what_was_done_in_order(store: Stores) -> None:
    with EpisodicMemory(store(), clock=Clock()) as memory:
        with memory.start("fix the parser", context=TaskContext(language="Rust", tags=("api",))) as episode:
            assert episode.step("read", "open parser.rs", parameters={"path": "parser.rs", "line": 3}) == 1
            assert episode.decide("the tests are slow", "run one of them") == 2
            assert episode.checkpoint() == 3
            assert episode.step("test", ok=False, observation="2 failed", latency_ms=1.5, tokens=7) == 4
            assert memory.get(episode.id).state == "open"
            episode.complete(Outcome(success=False, error="still red", quality=0.5, duration_ms=120_000))
        kept = memory.get(episode.id)
    assert (kept.task, kept.state) == ("fix the parser", "completed")
    assert kept.context.features == {"language=rust", "tag=api"}
    assert [(step.number, step.tool, step.ok) for step in kept.steps] == [(1, "read", True), (4, "test", False)]
    assert kept.steps[0].parameters == {"path": "parser.rs", "line": 3}
    assert (kept.steps[1].observation, kept.steps[1].latency_ms, kept.steps[1].tokens) == ("2 failed", 1.5, 7)
    assert [(d.number, d.condition, d.choice) for d in kept.decisions] == [(2, "the tests are slow", "run one of them")]
    assert kept.checkpoints == (3,)
    assert kept.outcome == Outcome(success=False, error="still red", quality=0.5, duration_ms=120_000)
    assert kept.score is not None
    assert kept.score.total == 0


def test_an_error_that_leaves_the_block_completes_the_episode_as_failed(store: Stores) -> None:
    with EpisodicMemory(store()) as memory:
        with pytest.raises(ZeroDivisionError), memory.start("divide") as episode:
            raise ZeroDivisionError("by zero")
        kept = memory.get(episode.id)
    assert kept.outcome == Outcome(success=False, error="ZeroDivisionError: by zero")


def test_an_interrupted_episode_and_one_without_an_end_are_abandoned_and_can_be_resumed(store: Stores) -> None:
    with EpisodicMemory(store()) as memory:
        one = memory.start("long work")
        one.step("dig")
        with pytest.raises(KeyboardInterrupt), one:
            raise KeyboardInterrupt
        with memory.start("forgotten end") as two:
            two.step("dig")
        assert [(r.id, r.state, r.outcome) for r in memory.unfinished()] == [
            (one.id, "abandoned", None),
            (two.id, "abandoned", None),
        ]
        again = memory.resume(one.id)
        assert again.step("dig deeper") == 2
        again.complete(True)
        assert [r.id for r in memory.unfinished()] == [two.id]


def test_a_handle_is_of_no_use_after_the_end_and_after_another_resumed(store: Stores) -> None:
    with EpisodicMemory(store()) as memory:
        first = memory.start("work")
        second = memory.resume(first.id)
        with pytest.raises(ClosedError, match="resumed by another handle"):
            first.step("dig")
        second.step("dig")
        second.complete(True)
        for late in (lambda: second.step("dig"), lambda: second.complete(True), lambda: memory.resume(second.id)):
            with pytest.raises(ClosedError, match="is completed"):
                late()
        with pytest.raises(ItemNotFoundError):
            memory.resume(99)
        assert len(memory.get(first.id).steps) == 1


def test_open_episodes_that_nothing_was_added_to_are_abandoned_after_a_day(store: Stores) -> None:
    clock = Clock()
    with EpisodicMemory(store(), clock=clock) as memory:
        old, new = memory.start("old"), memory.start("new")
        clock.at += DAY
        new.step("dig")
        clock.at += 10
        assert memory.stats().n_abandoned == 1
        assert memory.get(old.id).state == "abandoned"
        assert memory.get(new.id).state == "open"
        assert memory.stats().n_learned == 1


def test_an_abandoned_episode_is_learned_from(store: Stores) -> None:
    with EpisodicMemory(store(), clock=Clock()) as memory:
        for _ in range(3):
            convert(memory)
        with memory.start("convert once more") as episode:
            episode.step("convert", ok=False, observation=MISSING.format("x"))
            episode.step("pip", "install x")
            episode.step("convert")
        [recovery] = memory.patterns(kinds=["error_recovery"])
        assert episode.id in recovery.episodes


def test_the_score_is_a_product_whose_parts_are_told_and_may_be_the_callers_own(store: Stores) -> None:
    clock = Clock()
    with EpisodicMemory(store(), clock=clock) as memory:
        episode = memory.start("quick work")
        episode.step("a")
        episode.step("b", ok=False)
        clock.at += 120
        score = episode.complete(True)
        assert score.total == score.outcome * score.efficiency * score.quality
        assert (score.outcome, score.quality) == (1.0, 0.5)
        assert score.efficiency == pytest.approx(1.0, abs=0.01)  # twice the usual time: 0.5; few steps: 1.5

    def by_tokens(record: EpisodeRecord) -> Score:
        used = sum(step.tokens or 0 for step in record.steps)
        return Score(total=100 / used, outcome=1, efficiency=100 / used, quality=1)

    with EpisodicMemory(store(), score=by_tokens) as memory:
        episode = memory.start("work")
        episode.step("a", tokens=400)
        assert episode.complete(True).total == 0.25
        assert memory.get(episode.id).score == Score(total=0.25, outcome=1, efficiency=0.25, quality=1)


def test_a_score_function_that_raises_leaves_the_episode_open(store: Stores) -> None:
    def broken(_: EpisodeRecord) -> Score:
        raise ZeroDivisionError

    with EpisodicMemory(store(), score=broken) as memory:
        episode = memory.start("work")
        with pytest.raises(ZeroDivisionError):
            episode.complete(True)
        assert memory.get(episode.id).state == "open"


def test_a_reflection_states_facts_and_the_steps_they_rest_on(store: Stores) -> None:
    with EpisodicMemory(store(), clock=Clock()) as memory:
        facts = {insight.text: insight.steps for insight in memory.reflection(convert(memory))}
        [recovered] = [steps for text, steps in facts.items() if "worked after pip" in text]
        assert recovered == (2, 3)
        with memory.start("loop") as episode:
            for _ in range(3):
                episode.step("poll", "status", latency_ms=1)
            episode.step("wait", latency_ms=97)
            episode.decide("it is slow", "give up")
            episode.step("stop", ok=False, observation="refused")
            episode.complete(Outcome(success=False, error="too slow"))
        told = {insight.text: insight.steps for insight in episode.reflection}
        assert told["poll was called 3 times with the same arguments."] == (1, 2, 3)
        assert told["wait took 97 of 100 ms."] == (4,)
        assert told["When it is slow: chose give up; the episode failed."] == (5,)
        assert told["stop failed (refused) and was not tried again."] == (6,)
        assert told["Failed after 5 steps: too slow."] == (6,)


def test_recall_finds_similar_tasks_and_says_why(store: Stores) -> None:
    with EpisodicMemory(store(), clock=Clock()) as memory:
        wanted = convert(memory)
        with memory.start("write a poem about rivers") as other:
            other.complete(True)
        hits = memory.recall("convert another report", context={"language": "python"}, k=5)
        assert [hit.episode.id for hit in hits] == [wanted]
        assert set(hits[0].parts) == {"task", "context", "recency", "worth"}
        assert sum(hits[0].parts.values()) == pytest.approx(hits[0].score)
        assert memory.recall("xylophone") == []


def test_what_is_learned_from_is_brief_and_what_is_recalled_is_whole(store: Stores) -> None:
    error = "Traceback (most recent call last):\n" + "  frame\n" * 4_000 + "CodecError: no codec"
    with EpisodicMemory(store(), clock=Clock()) as memory:
        for _ in range(3):
            with memory.start("convert a film") as episode:
                episode.step("convert", "film", ok=False, observation=error, parameters={"n": 1})
                episode.step("install", "codec", observation="y" * 9_000)
                episode.step("convert", "film")
                episode.complete(True)
        [recovery] = memory.patterns(kinds=["error_recovery"])
        assert recovery.error == "CodecError: no codec"
        [hit] = memory.recall("convert a film", k=1)
        assert hit.episode == memory.get(hit.episode.id)
        assert (len(hit.episode.steps[0].observation), len(hit.episode.steps[1].observation)) == (len(error), 9_000)
        assert hit.episode.steps[0].parameters == {"n": 1}


def test_a_recovery_is_advised_after_one_episode_and_as_a_pattern_after_three(store: Stores) -> None:
    with EpisodicMemory(store(), clock=Clock()) as memory:
        first = convert(memory)
        [advice, *_] = memory.recommend("convert a file", error=MISSING.format("polars"))
        assert (advice.tools, advice.pattern, advice.episodes) == (("pip",), None, (first,))
        convert(memory)
        convert(memory)
        [advice, *_] = memory.recommend("convert a file", error=MISSING.format("polars"))
        assert advice.pattern is not None
        assert (advice.tools, advice.pattern.kind, len(advice.episodes)) == (("pip",), "error_recovery", 3)
        assert "pip (install pyarrow)" in advice.text
        assert sum(advice.parts.values()) == pytest.approx(advice.score)


def test_an_open_episode_is_advised_by_its_own_last_step(store: Stores) -> None:
    with EpisodicMemory(store(), clock=Clock()) as memory:
        for _ in range(3):
            convert(memory)
        with memory.start("convert the summary") as episode:
            episode.step("read")
            assert episode.recommend(k=1)[0].tools == ("convert",)
            episode.step("convert", ok=False, observation=MISSING.format("duckdb"))
            assert episode.recommend(k=1)[0].tools == ("pip",)
            episode.complete(False)


def test_the_advice_for_a_planted_task_names_its_pattern_first_of_all(store: Stores) -> None:
    episodes, _ = planted(3)
    with EpisodicMemory(store(), clock=Clock()) as memory:
        record(memory, episodes)
        advice = memory.recommend("a task", context={"language": "rust", "domain": "web"}, k=3)
        assert any(one.pattern and one.pattern.tools == ("nextest",) for one in advice)
        nexts = memory.recommend("a task", after=["dump_schema"], k=3)
        assert nexts[0].tools == ("write_migration",)
        assert nexts[0].episodes


def test_effectiveness_halves_in_thirty_days_and_many_successes_rank_above_one(store: Stores) -> None:
    clock = Clock()
    with EpisodicMemory(store(), clock=clock) as memory:
        for _ in range(3):
            convert(memory)
        last = clock.at
        [now] = memory.patterns(kinds=["error_recovery"])
        clock.at = last + 30 * DAY
        [later] = memory.patterns(kinds=["error_recovery"])
        assert later.effectiveness.value == pytest.approx(now.effectiveness.value / 2, rel=1e-6)
        assert later.effectiveness.mean == now.effectiveness.mean == 4 / 5
        clock.at = last + 60 * DAY
        assert memory.patterns(kinds=["error_recovery"]) == []
        assert memory.patterns(kinds=["error_recovery"], min_effectiveness=0) != []
        memory.verdict(now.id, success=True)
        [again] = memory.patterns(kinds=["error_recovery"])
        assert again.effectiveness.mean == 5 / 6
        assert again.effectiveness.freshness == pytest.approx(1)
        for _ in range(20):
            memory.verdict(now.id, success=False)
        assert memory.patterns(kinds=["error_recovery"]) == []
        with pytest.raises(ItemNotFoundError, match="pattern"):
            memory.verdict("no such pattern", success=True)


def test_the_ids_of_patterns_are_the_same_in_another_memory(store: Stores) -> None:
    ids: list[set[str]] = []
    for _ in range(2):
        with EpisodicMemory(store(), clock=Clock()) as memory:
            for _ in range(3):
                convert(memory)
            ids.append({pattern.id for pattern in memory.patterns()})
    assert ids[0] == ids[1] != set()


def test_validate_matches_one_to_one_and_says_what_is_missed_and_extra(store: Stores) -> None:
    with EpisodicMemory(store(), clock=Clock()) as memory:
        for _ in range(3):
            convert(memory)
        gold: dict[str, Any] = {"kind": "error_recovery", "error": MISSING.format("zod"), "tools": ("pip",)}
        assert memory.validate([gold]).f1 == 1
        assert memory.validate(memory.patterns()).f1 == 1
        twice = memory.validate([gold, gold])
        assert (twice.precision, twice.recall, twice.n_matched) == (1.0, 0.5, 1)
        other = memory.validate([{**gold, "tools": ("pray",)}])
        assert (other.n_matched, len(other.missed), len(other.extra)) == (0, 1, 1)
        for wrong in ({"kind": "melody"}, {"kind": "tool_sequence"}, {**gold, "choice": "x"}):
            with pytest.raises(UnsupportedParameterError, match="gold"):
                memory.validate([wrong])


def test_the_file_is_read_by_the_next_memory(store: Stores) -> None:
    with EpisodicMemory(store("recall.db")) as memory:
        for _ in range(3):
            convert(memory)
        shown = {pattern.id for pattern in memory.patterns()}
    with EpisodicMemory(store("recall.db")) as memory:
        assert {pattern.id for pattern in memory.patterns()} == shown
        assert memory.check().ok


def test_another_handle_on_the_file_sees_what_was_learned_meanwhile(store: Stores) -> None:
    with EpisodicMemory(store("recall.db")) as one, EpisodicMemory(store("recall.db")) as two:
        assert two.patterns() == []
        for _ in range(3):
            convert(one)
        assert {pattern.id for pattern in two.patterns()} == {pattern.id for pattern in one.patterns()} != set()


def test_context_memory_and_episodes_share_a_file(store: Stores) -> None:
    database = open_storage(store())[0]
    memory = EpisodicMemory(database)
    convert(memory)
    memory.close()
    assert EpisodicMemory(database).stats().n_completed == 1
    database.close()


def test_check_names_rows_that_contradict_one_another(store: Stores) -> None:
    database = open_storage(store())[0]
    memory = EpisodicMemory(database)
    id = convert(memory)
    assert memory.check().ok
    with memory._database.write() as db:
        db.execute("DELETE FROM episode_events WHERE episode = ? AND number = 2", (id,))
    assert f"episode {id}: 3 events numbered up to 4" in memory.check().damaged[0]
    database.close()


WRONG_STEPS: list[tuple[dict[str, Any], str]] = [
    ({"tool": ""}, "tool must be a text that is not empty"),
    ({"tool": 3}, "tool must be a text"),
    ({"tool": "a", "action": None}, "action must be a text"),
    ({"tool": "a", "ok": 1}, "ok must be True or False"),
    ({"tool": "a", "observation": b"x"}, "observation must be a text"),
    ({"tool": "a", "latency_ms": -1}, "latency_ms must be a number of 0 or more, got -1"),
    ({"tool": "a", "tokens": True}, "tokens must be a number"),
    ({"tool": "a", "parameters": [1]}, "parameters must be a mapping"),
    ({"tool": "a" * 30_000}, "at most 25,000 characters"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG_STEPS, ids=lambda value: str(value)[:40])
def test_a_wrong_step_is_refused_before_anything_is_written(
    arguments: dict[str, Any], said: str, store: Stores
) -> None:
    with EpisodicMemory(store()) as memory:
        episode = memory.start("work")
        with pytest.raises(UnsupportedParameterError, match=said):
            episode.step(**arguments)
        assert memory.get(episode.id).steps == ()


def test_wrong_arguments_are_refused_by_name(store: Stores) -> None:
    with EpisodicMemory(store()) as memory:
        for call, said in (
            (lambda: memory.start(""), "task must be"),
            (lambda: memory.start("a", context={"speed": 1}), "context has 'speed'"),
            (lambda: memory.start("a", context={"language": 1}), "language must be a text"),
            (lambda: memory.start("a", context={"tags": "abc"}), "tags must be a list"),
            (lambda: memory.start("a", context=3), "context must be a TaskContext or a mapping"),
            (lambda: memory.recall("a", k=0), "k must be"),
            (lambda: memory.recommend("a", after="read"), "after must be a list"),
            (lambda: memory.recommend("a", error=3), "error must be a text"),
            (lambda: memory.patterns(kinds=["melody"]), "kinds has 'melody'"),
            (lambda: memory.start("a").complete("yes"), "outcome must be True, False or an Outcome"),
            (lambda: memory.start("a").decide("", "b"), "condition must be a text that is not empty"),
        ):
            with pytest.raises(UnsupportedParameterError, match=said):
                call()
    for options, said in (
        ({"workspace": ""}, "workspace must be"),
        ({"redact": 3}, "redact must"),
        ({"score": 3}, "score must be a function"),
        ({"abandon_after_s": 0}, "abandon_after_s must be above 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            EpisodicMemory(**options)  # type: ignore[arg-type]


def test_a_long_observation_loses_its_middle_and_says_so(store: Stores) -> None:
    with EpisodicMemory(store()) as memory:
        episode = memory.start("work")
        text = "head " + "x" * 150_000 + " tail"
        episode.step("read", observation=text)
        [step] = memory.get(episode.id).steps
    assert step.observation.startswith("head x")
    assert step.observation.endswith("x tail")
    assert len(step.observation.encode()) <= 100_000
    assert step.cut_chars + len(step.observation.replace(f"\n[{step.cut_chars:,} characters cut]\n", "")) == len(text)


def test_parameters_of_any_shape_are_kept_as_json(store: Stores) -> None:
    given = {"path": Path("/a"), "n": [1, None], "card": 4111111111111111, "odd": "\ud800"}
    with EpisodicMemory(store()) as memory:
        episode = memory.start("work")
        episode.step("a", parameters=given)
        episode.step("b", parameters={"password": "Tiger!99", "n": 1})
        [one, two] = memory.get(episode.id).steps
    assert "4111111111111111" not in str(one.parameters)
    assert two.parameters["password"].startswith("[REDACTED:password:")
    assert two.parameters["n"] == 1


def test_episodes_travel_to_another_workspace_as_lines(tmp_path: Path, store: Stores) -> None:
    with EpisodicMemory(store(), clock=Clock()) as memory, EpisodicMemory(store(), clock=Clock()) as other:
        for i in range(3):
            convert(memory, task=f"convert report {i}")
        with memory.start("half done") as episode:
            episode.decide("a", "b")
            episode.checkpoint()
        memory.start("open still")
        assert memory.export_jsonl(tmp_path / "out.jsonl") == 4
        assert other.import_jsonl(tmp_path / "out.jsonl") == 4
        assert other.import_jsonl(tmp_path / "out.jsonl") == 0
        assert {p.id for p in other.patterns()} == {p.id for p in memory.patterns()} != set()
        for one, two in zip(memory.unfinished()[:1], other.unfinished(), strict=True):
            assert (one.task, one.decisions, one.checkpoints) == (two.task, two.decisions, two.checkpoints)
        assert other.check().ok
        with pytest.raises(FileExistsError):
            memory.export_jsonl(tmp_path / "out.jsonl")


def test_a_damaged_line_is_named_and_nothing_of_its_file_is_added(tmp_path: Path, store: Stores) -> None:
    with EpisodicMemory(store(), clock=Clock()) as memory, EpisodicMemory(store()) as other:
        convert(memory)
        memory.export_jsonl(tmp_path / "out.jsonl")
        good = (tmp_path / "out.jsonl").read_text()
        for bad in ("{}\n", "no json\n", good.replace('"state": "completed"', '"state": "open"')):
            (tmp_path / "bad.jsonl").write_text(good + bad)
            with pytest.raises(UnsupportedParameterError, match="line 2 is no episode"):
                other.import_jsonl(tmp_path / "bad.jsonl")
        assert other.stats().n_completed == 0


def _places(told: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in JSON that holds a value."""
    for key, value in told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ():
        yield (*at, key)
        yield from _places(value, (*at, key))


@pytest.mark.parametrize(
    "odd",
    [None, "", -1, 2**63, 10**400, 1e300, float("nan"), float("inf"), True, "\ud800", [], {}, [None]],
    ids=lambda odd: "huge" if odd == 10**400 else ascii(odd),
)
def test_a_line_with_a_value_that_no_export_has_is_refused_or_can_be_read(odd: Any, tmp_path: Path) -> None:
    out, line = tmp_path / "out.jsonl", tmp_path / "line.jsonl"
    with EpisodicMemory() as memory, EpisodicMemory() as other:
        with memory.start("light the lamp", context=TaskContext(language="en", tags=("a",))) as episode:
            episode.step("match", "strike", ok=False, observation="error: wet", latency_ms=3.0, tokens=4)
            episode.decide("it is wet", "dry it")
            episode.checkpoint()
            episode.step("match", "strike again", ok=True, parameters={"force": 2})
            episode.complete(Outcome(success=True, quality=0.5, duration_ms=10.0, result="lit"))
        memory.export_jsonl(out)
        told = json.loads(out.read_text())
        for *way, last in _places(told):
            changed = copy.deepcopy(told)
            functools.reduce(lambda inner, key: inner[key], way, changed)[last] = odd
            line.write_text(json.dumps(changed))
            with contextlib.suppress(UnsupportedParameterError):
                other.import_jsonl(line)
        assert other.check().ok
        for record in other.newest(1_000):
            assert other.reflection(record.id)
        other.recall("lamp")
        other.patterns()
        other.clusters()
        other.recommend("light the lamp", after=["match"], error="error: wet")
        with EpisodicMemory() as third:
            assert third.import_jsonl(_exported(other, tmp_path)) == other.stats().n_completed


def _exported(memory: EpisodicMemory, folder: Path) -> Path:
    memory.export_jsonl(folder / "again.jsonl")
    return folder / "again.jsonl"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"\xff\xfe\xfa\n")
    with EpisodicMemory() as memory, pytest.raises(UnsupportedParameterError, match="line 1 is no episode"):
        memory.import_jsonl(tmp_path / "raw")


@pytest.mark.parametrize("given", [3, None, float("nan"), 10**400], ids=["3", "None", "nan", "huge"])
def test_a_score_function_that_gives_no_score_ends_no_episode(given: Any) -> None:
    def scored(record: EpisodeRecord) -> Score:
        is_number = given is not None and given != 3
        return Score(total=given, outcome=1.0, efficiency=1.0, quality=1.0) if is_number else given

    with EpisodicMemory(score=scored) as memory:
        episode = memory.start("light the lamp")
        with pytest.raises(UnsupportedParameterError, match="score"):
            episode.complete(True)
        assert [record.state for record in memory.newest()] == ["open"]


def test_clusters_part_episodes_by_what_they_were_about(store: Stores) -> None:
    with EpisodicMemory(store(), clock=Clock()) as memory:
        reports = tuple(convert(memory, task=f"convert report {i}") for i in range(4))
        poems: list[int] = []
        for i in range(3):
            with memory.start(f"write poem {i}", context={"language": "english"}) as episode:
                episode.step("write")
                episode.complete(True)
            poems.append(episode.id)
        assert {str(memory.clusters(n=2, seed=seed)) for seed in range(5)} == {str([reports, tuple(poems)])}


def test_whatever_runs_tools_can_record_them_by_itself(store: Stores) -> None:
    def answer(call: ToolCall) -> ToolResult:
        is_error = call.arguments["city"] == "Atlantis"
        return ToolResult(call.id, "no such city" if is_error else "12 degrees", is_error=is_error)

    def run(recorder: StepRecorder, calls: list[ToolCall]) -> None:
        for call in calls:
            result = answer(call)
            recorder.step(call.name, parameters=call.arguments, ok=not result.is_error, observation=str(result.content))

    with EpisodicMemory(store()) as memory:
        episode = memory.start("how warm is it?")
        assert isinstance(episode, StepRecorder)
        run(episode, [ToolCall("weather", {"city": "Atlantis"}, "1"), ToolCall("weather", {"city": "Rome"}, "2")])
        steps = memory.get(episode.id).steps
    assert [(s.tool, s.parameters["city"], s.ok, s.observation) for s in steps] == [
        ("weather", "Atlantis", False, "no such city"),
        ("weather", "Rome", True, "12 degrees"),
    ]


def test_the_example_learns_its_way_out() -> None:
    example = Path(__file__).parents[2] / "examples" / "learning.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=True)
    reports = [line for line in done.stdout.splitlines() if line.startswith("report")]
    n_tools = [int(line.split()[2]) for line in reports]
    assert n_tools[0] > n_tools[1] == n_tools[2] == n_tools[3]
    assert "trial and error" in reports[0]
    assert all("its own memory" in line for line in reports[1:])

"""Volatile text across prompts: every planted span is found, and stable prompts raise no alarm."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_memory import ClosedError, EchoRunner, LintReport, Memory, Message, UnsupportedParameterError
from agent_memory.observe.lint import lint
from agent_memory.prompt.messages import normalize
from agent_memory.prompt.volatile import differ_in_volatile_alone, masked, volatile_spans
from tests.parts.explaining import lint_cases

LONG = "You answer questions on the tides of the North Sea. Be brief. "


def system(text: str, asked: str = "When is high water?") -> tuple[Message, ...]:
    return (Message("system", LONG + text), Message("user", asked))


def overlaps(span: Any, planted: Any) -> bool:
    """True if a reported span covers a planted one, in each prompt at its place."""
    if span.message != planted["message"] or len(span.starts) != len(planted["starts"]):
        return False
    both = zip(span.starts, span.texts, planted["starts"], planted["texts"], strict=True)
    return all(
        start < begin + len(text) and begin < start + len(found) and (text in found or found in text)
        for start, found, begin, text in both
    )


@pytest.mark.parametrize("case", lint_cases("volatile"), ids=lambda case: case["id"])
def test_every_planted_span_of_the_corpus_is_found_and_nothing_else(case: Any) -> None:
    report = lint([normalize(prompt) for prompt in case["prompts"]])
    found = [[span for span in report.spans if overlaps(span, planted)] for planted in case["spans"]]
    assert all(len(spans) == 1 for spans in found), str(report)
    assert len(report.spans) == len(case["spans"]), str(report)
    assert not report.ok


def test_no_stable_prompt_of_the_corpus_raises_an_alarm() -> None:
    cases = lint_cases("stable")
    assert len(cases) == 200
    alarms = {c["id"]: str(report) for c in cases if not (report := lint([normalize(p) for p in c["prompts"]])).ok}
    assert alarms == {}


def test_a_span_has_its_place_and_its_text_in_every_prompt() -> None:
    texts = ["It is 9:05.", "It is 10:15. ", "It is 9:05."]
    report = lint([system(text) for text in texts])
    [span] = report.spans
    assert (span.message, span.role, span.kind) == (0, "system", "clock")
    assert (span.texts, span.prompts) == (("9:05", "10:15", "9:05"), (0, 1, 2))
    assert read([LONG + text for text in texts], span) == ["9:05", "10:15", "9:05"]


def read(contents: list[str], span: Any) -> list[str]:
    """What stands at a span's place in each content."""
    places = zip(contents, span.starts, span.texts, strict=True)
    return [content[at : at + len(text)] for content, at, text in places]


def test_places_are_right_behind_a_span_of_another_length() -> None:
    turns = ((9, "9:05"), (10, "10:15"), (111, "9:05"))
    contents = [f"Request #{n}. {LONG} Now: {clock}. Be kind." for n, clock in turns]
    report = lint([(Message("system", content),) for content in contents])
    assert [span.texts for span in report.spans] == [("9", "10", "111"), ("9:05", "10:15", "9:05")]
    for span in report.spans:
        assert read(contents, span) == list(span.texts)


def test_the_question_may_differ_and_the_text_before_it_may_not() -> None:
    assert lint([system("", "When is high water in Hull?"), system("", "When is high water in Bergen?")]).ok
    report = lint([system("The user is Ann."), system("The user is Bob.")])
    assert [(span.kind, span.texts) for span in report.spans] == [("text", ("Ann", "Bob"))]
    assert lint([system("The user is Ann."), (Message("system", "Translate into Latin."), Message("user", "Hi."))]).ok


def test_dates_and_identifiers_that_stay_are_no_alarm() -> None:
    stable = "Founded on 2019-03-04 at 09:00; key 3f2504e0-4f89-11d3-9a0c-0305e82c3301, commit 9f8e7d6c5b4a."
    assert lint([system(stable, "a"), system(stable, "b")]).ok
    assert lint([system(stable)]).ok


def test_a_single_prompt_is_told_by_what_it_calls_its_text() -> None:
    [span] = lint([system("Current time: 2026-11-26T17:31:02Z.")]).spans
    assert (span.kind, span.texts) == ("timestamp", ("2026-11-26T17:31:02Z",))
    assert [one.kind for one in lint([system("Session id 3f2504e0-4f89-11d3-9a0c-0305e82c3301")]).spans] == ["uuid"]


def test_a_report_is_text_dict_and_html() -> None:
    report = lint([system("<b>It is 9:05."), system("<b>It is 9:06.")])
    assert json.loads(json.dumps(report.to_dict()))["spans"][0]["texts"] == ["9:05", "9:06"]
    lines = ["1 volatile spans in 2 prompts", 'message 0 (system): clock: "9:05", "9:06"', report.advice]
    assert str(report).splitlines() == lines
    tagged = lint([system("<b>now</b> 9:05 <i>"), system("<b>now</b> 9:06 <i>")])
    assert "<b>" not in tagged._repr_html_()
    assert str(lint([system("x")])) == "0 volatile spans in 1 prompts"


def test_memory_lints_prompts_of_any_shape_and_computes_nothing() -> None:
    runner = EchoRunner()
    with Memory(runner, ":memory:") as memory:
        report = memory.lint(["It is 9:05. " + LONG, "It is 9:06. " + LONG])
        assert isinstance(report, LintReport)
        assert [span.texts for span in report.spans] == [("9:05", "9:06")]
        assert memory.lint([[{"role": "user", "content": "a"}]]).ok
        assert memory.lint([]).ok
        for wrong in ("It is 9:05.", Message("user", "a"), 3):
            with pytest.raises(UnsupportedParameterError, match="a list of prompts"):
                memory.lint(wrong)  # type: ignore[arg-type]
        assert (runner.calls.computed, memory.stats().requests) == (0, 0)
    with pytest.raises(ClosedError):
        memory.lint(["a"])


@pytest.mark.parametrize(
    ("text", "kind", "span"),
    [
        ("at 12:30:05.", "clock", "12:30:05"),
        ("at 10:32 PM", "clock", "10:32 PM"),
        ("at 3pm", "clock", "3pm"),
        ("on 2024-07-26", "date", "2024-07-26"),
        ("on 26.07.2024", "date", "26.07.2024"),
        ("on Friday, 26 July 2024", "date", "Friday, 26 July 2024"),
        ("at 2024-07-26T12:30:05.123Z!", "timestamp", "2024-07-26T12:30:05.123Z"),
        ("id 01H8XGJWBWBAQ4YFV7T9Z9QWER", "identifier", "01H8XGJWBWBAQ4YFV7T9Z9QWER"),
        ("at 1718023455 s", "number", "1718023455"),
        ("turn 3 of ten", "counter", "3"),
    ],
)
def test_a_span_is_told_by_its_looks(text: str, kind: str, span: str) -> None:
    assert [(one.kind, text[one.start : one.stop]) for one in volatile_spans(text)] == [(kind, span)]


@pytest.mark.parametrize("text", ["version 1.2.3", "python3.11", "covid19", "room 12", "16 of 20", "gpt-4", "§ 433"])
def test_plain_numbers_and_names_are_not_volatile(text: str) -> None:
    assert masked(text) == text


def test_texts_that_differ_in_more_than_such_spans_are_told_apart_wherever_the_rest_differs() -> None:
    filler = "so it goes " * 200
    assert differ_in_volatile_alone(f"{filler}9:05{filler}", f"{filler}10:15{filler}")
    assert not differ_in_volatile_alone(f"{filler}9:05{filler}x", f"{filler}10:15{filler}y")
    assert not differ_in_volatile_alone(f"x{filler}9:05", f"y{filler}10:15")
    assert not differ_in_volatile_alone(filler, filler)
    assert differ_in_volatile_alone(f"{filler}9:05{filler}", f"{filler}10:15{filler[:400]}", is_open=True)
    assert not differ_in_volatile_alone(f"{filler}9:05", f"{filler}10:15", kinds=("date",))

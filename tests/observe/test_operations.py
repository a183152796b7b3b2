"""docs/operations.md, the dashboard and the alerts say what there is, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.figures import ChoiceSource
from agent_memory.observe.metrics import CATALOGUE
from tests.parts.metrics_table import PAGE, shown, table

FOLDER = PAGE.parent / "operations"
DASHBOARD, ALERTS = FOLDER / "grafana.json", FOLDER / "alerts.yml"
NAMES = {metric.prometheus for metric in CATALOGUE}
LABELS = {metric.prometheus: metric.label for metric in CATALOGUE}
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def expressions() -> Iterator[str]:
    """Every query of the dashboard and of the alerts."""
    for panel in panels():
        yield from (target["expr"] for target in panel.get("targets", ()))
    for found in re.findall(
        r"^        expr: (?:>-\n((?: {10}.*\n)+)|(.*)\n)", ALERTS.read_text(encoding="utf-8"), re.M
    ):
        yield " ".join("".join(found).split())


def metric_of(name: str) -> str:
    """The metric that a series belongs to: a histogram has three."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return base if base in NAMES else name


def test_the_table_of_the_page_is_that_of_the_catalogue() -> None:
    assert shown() == table(), "run python -m tests.parts.metrics_table"


def test_every_metric_in_dashboard_and_alerts_is_in_the_catalogue() -> None:
    used = {name for expression in expressions() for name in re.findall(r"agent_memory_\w+", expression)}
    assert len(used) > 20
    assert {name for name in used if metric_of(name) not in NAMES} == set()
    assert len(list(expressions())) == sum(len(p.get("targets", ())) for p in panels()) + 12


def test_the_labels_that_are_asked_for_are_those_that_the_metrics_have() -> None:
    for expression in expressions():
        names = {metric_of(name) for name in re.findall(r"agent_memory_\w+", expression)}
        known = {LABELS[name] for name in names} | {"le", "job", "instance"}
        asked = re.findall(r"(?:by|without) \((\w+)\)", expression) + re.findall(r'(\w+)\s*(?:=~|!=|=)"', expression)
        assert set(asked) <= known, expression


def test_the_dashboard_has_what_grafana_needs() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= dashboard.keys()
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]


@needs_promtool
def test_promtool_reads_the_alerts_and_the_dashboard_s_queries(tmp_path: Path) -> None:
    rules = tmp_path / "dashboard.yml"
    text = "groups:\n- name: dashboard\n  rules:\n"
    for number, expression in enumerate(expressions()):
        asked = re.sub(r"\$__(rate_interval|range)", "5m", expression)
        text += f"  - record: query_{number}\n    expr: {json.dumps(asked)}\n"
    rules.write_text(text, encoding="utf-8")
    for file in (ALERTS, rules):
        done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@needs_promtool
def test_promtool_has_nothing_to_say_of_the_metrics() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        memory.agent("alice").say("hello")
        text = memory.to_prometheus()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_names_every_event_of_the_recorder_with_its_fields(tmp_path: Path) -> None:
    file = tmp_path / "recorder.jsonl"
    with Memory(EchoRunner(delay_s=0.01), tmp_path / "store", config=Config(recorder=file, lookup="off")) as memory:
        memory._reports.observing.faulted(RuntimeError())
        memory.agent("alice").say("x" * 130)
        memory.flush()
        memory.evict("alice")
    written: dict[str, set[str]] = {}
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        written.setdefault(line["event"], set()).update(line.keys() - {"event", "t"})
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*)\|$", PAGE.read_text(encoding="utf-8"), re.M)
    states = {"done", "cancelled", "failed", "lost"}
    told = {event: set(re.findall(r"`(\w+)`", fields)) - states for event, fields in rows}
    assert {event: told.get(event) for event in written} == written
    assert set(written) == {"open", "queued", "start", "prefill", "decode", "end", "save", "evict", "fault", "close"}


def test_the_page_names_every_source_of_a_choice() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \| ", PAGE.read_text(encoding="utf-8"), re.M))
    assert set(ChoiceSource.__args__) <= rows  # type: ignore[attr-defined]


@pytest.mark.slow
def test_perfetto_s_own_trace_processor_reads_the_trace(tmp_path: Path) -> None:
    processor = pytest.importorskip("perfetto.trace_processor")
    with Memory(EchoRunner(), ":memory:") as memory:
        memory.agent("alice").say("hello " * 50)
        memory.agent("alice").say("more")
        trace = memory.trace()
    try:
        opened = processor.TraceProcessor(trace=str(trace.save(tmp_path / "trace.json")))
    except Exception as error:  # noqa: BLE001 - it fetches its program from the network at first use
        pytest.skip(f"its program cannot be had: {type(error).__name__}")
    with opened:
        found = [(row.name, row.depth) for row in opened.query("SELECT name, depth FROM slice ORDER BY ts, depth")]
        [errors] = opened.query("SELECT sum(value) AS n FROM stats WHERE severity = 'error'")
    slices = [event for event in trace.events if event["ph"] == "X"]
    assert sorted(name for name, _ in found) == sorted(event["name"] for event in slices)
    assert {name for name, depth in found if depth == 1} >= {"queue", "restore"}
    assert errors.n == 0

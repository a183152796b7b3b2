"""The metrics as text in Prometheus' exposition format (version 0.0.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from agent_memory.figures import Histogram
from agent_memory.observe.metrics import CATALOGUE, Figures, Metric, Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(figures: Figures) -> str:
    """Return every metric with its help, kind and values; a metric without values is left out."""
    lines: list[str] = []
    for metric in CATALOGUE:
        values = [line for sample in metric.samples(figures) for line in _lines(metric, sample)]
        if values:
            lines += [f"# HELP {metric.prometheus} {metric.help}", f"# TYPE {metric.prometheus} {metric.kind}", *values]
    return "\n".join([*lines, ""])


def _lines(metric: Metric, sample: Sample) -> Iterator[str]:
    name, value = metric.prometheus, sample.value
    if not isinstance(value, Histogram):
        yield f"{name}{_labels(sample.labels)} {_number(value)}"
        return
    n_seen = 0
    for bound, n in zip((*value.bounds, math.inf), value.counts, strict=True):
        n_seen += n
        yield f"{name}_bucket{_labels({**sample.labels, 'le': _number(bound)})} {n_seen}"
    yield f"{name}_sum{_labels(sample.labels)} {_number(value.sum)}"
    yield f"{name}_count{_labels(sample.labels)} {n_seen}"


def _number(value: float) -> str:
    return "+Inf" if value == math.inf else repr(int(value)) if value == int(value) else repr(float(value))


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

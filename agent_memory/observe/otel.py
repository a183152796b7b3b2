"""The metrics as instruments of OpenTelemetry. Needs the extra ``otel``; imported in ``to_opentelemetry`` alone."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from agent_memory.errors import INSTALL, ClosedError, MissingExtraError, UnsupportedParameterError
from agent_memory.observe.meters import BOUNDS, Tap
from agent_memory.observe.metrics import CATALOGUE, PREFIX, Figures, Metric

try:
    from opentelemetry import metrics
except ImportError as error:
    raise MissingExtraError(f"OpenTelemetry is not installed: {INSTALL['otel']} ({error})") from error

_UCUM = {"seconds": "s", "bytes": "By"}  #: how OpenTelemetry spells units; what is counted stands in braces


class Source(Protocol):
    """Where the figures come from: a Memory's ``Reports``."""

    def figures(self, n_agents: int, *, hash_names: bool) -> Figures: ...
    def tap(self) -> Tap: ...


def bridge(source: Source, meter_provider: Any, top_agents: int, *, hash_names: bool) -> None:
    """Create an instrument for every metric of the catalogue; see ``Memory.to_opentelemetry``."""
    if meter_provider is not None and not callable(getattr(meter_provider, "get_meter", None)):
        raise UnsupportedParameterError(
            f"meter_provider must be one of OpenTelemetry's or None, got {type(meter_provider).__name__}"
        )
    meter = metrics.get_meter(PREFIX, meter_provider=meter_provider)
    reader = _Reader(source, top_agents, hash_names)
    for metric in CATALOGUE:
        about: dict[str, Any] = {"unit": _UCUM.get(metric.unit, f"{{{metric.unit}}}"), "description": metric.help}
        if metric.kind == "histogram":
            made = meter.create_histogram(metric.otel, explicit_bucket_boundaries_advisory=BOUNDS, **about)
            reader.histograms[metric.name] = made
        else:
            create = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
            create(metric.otel, callbacks=[reader.observes(metric)], **about)


class _Reader:
    """Reads the figures when a reader of OpenTelemetry collects. Holds no Memory: one that is collected is over.

    - Histograms get what was measured since the last collection. No instrument is touched on the engine's thread.
    - The figures are read once a collection: by the callback of the first metric.
    """

    def __init__(self, source: Source, top_agents: int, hash_names: bool) -> None:
        self._source = weakref.ref(source)
        self._top_agents, self._hash_names = top_agents, hash_names
        self._tap = source.tap()
        self._lock = threading.Lock()
        self._figures: Figures | None = None
        self._read: set[str] = set()
        self.histograms: dict[str, metrics.Histogram] = {}

    def observes(self, metric: Metric) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
        """Return the callback of one metric."""

        def callback(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
            figures = self._figures_for(metric.name)
            if figures is None:
                return []
            return [
                metrics.Observation(float(sample.value), dict(sample.labels))  # type: ignore[arg-type]
                for sample in metric.samples(figures)
            ]

        return callback

    def _figures_for(self, name: str) -> Figures | None:
        with self._lock:
            if self._figures is None or name in self._read:  # the first metric of another collection
                self._read.clear()
                self._figures = self._now()
            self._read.add(name)
            return self._figures

    def _now(self) -> Figures | None:
        while self._tap:
            name, seconds = self._tap.popleft()
            self.histograms[name].record(seconds)
        source = self._source()
        if source is None:
            return None
        try:
            return source.figures(self._top_agents, hash_names=self._hash_names)
        except ClosedError:
            return None

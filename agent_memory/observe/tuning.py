"""``Memory.tune()``: measures this machine with the open model, and chooses settings by the figures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import attrs
from attrs import frozen

from agent_memory.config import CODECS, Config
from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.kvcache.coding import fitted, is_lossy
from agent_memory.progress import Progress, silent
from agent_memory.protocols import Batch, ModelRunner
from agent_memory.scheduler.engine import Engine
from agent_memory.types import Sampling
from agent_memory.views.page import Note, Page, Shown, Table

_PREFILL_STEPS = (256, 512, 1024, 2048)
_WIDTHS = (1, 2, 4, 8, 16, 32)
_ROW_TOKENS, _STEPS = 64, 8  #: of a decoding row before it is timed; steps that are timed
_ROUNDS = 3
_LEAST_TOKENS = 64
#: A smaller setting is taken if it reaches this share of the best: a smaller step and batch let others wait less.
_ENOUGH = 0.95
_TEXT = "The quick brown fox jumps over the lazy dog, and the dog goes on sleeping in the sun by the river. "


@frozen
class Trial:
    """One value of a setting, and what was measured with it."""

    setting: str
    value: str | int
    figure: float
    unit: str
    is_chosen: bool = False


@frozen(kw_only=True)
class Tuning(Shown):
    """A ``Config`` for this machine and model, and the figures behind it."""

    config: Config  #: the Memory's own, with the measured settings
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]  #: what was looked at and left as it is

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return setting, value, figure and "chosen" of each trial, as texts."""
        return [
            (one.setting, str(one.value), f"{one.figure:,.2f} {one.unit}", "chosen" if one.is_chosen else "")
            for one in self.trials
        ]

    def __repr__(self) -> str:
        chosen = ", ".join(f"{one.setting}={one.value}" for one in self.trials if one.is_chosen)
        return f"Tuning({chosen}; {len(self.trials)} trials)"

    def _page(self) -> Page:
        table = Table(self.rows(), head=("setting", "value", "measured", ""))
        return Page("Settings for this machine", [table, *map(Note, self.notes)])


def tune(engine: Engine, runner: ModelRunner, config: Config, n_tokens: object, progress: Progress = silent) -> Tuning:
    """Return the settings for a Memory of ``config``; see ``Memory.tune``."""
    if not isinstance(n_tokens, int) or isinstance(n_tokens, bool) or n_tokens < _LEAST_TOKENS:
        raise UnsupportedParameterError(f"n_tokens must be an int of {_LEAST_TOKENS} or more, got {repr_of(n_tokens)}")
    most = runner.context_tokens or n_tokens
    ids = _text_ids(runner, min(n_tokens, most))
    machine = _Machine(engine, engine.call(lambda: runner.open_batch(config.chunk_tokens)))
    try:
        progress(0, 3, "prefill steps")
        steps = _chosen("prefill_tokens", "tokens/s", _prefills(machine, config.chunk_tokens, ids))
        progress(1, 3, "batch widths")
        widths = _chosen("max_batch", "tokens/s", _decodes(machine, ids[:_ROW_TOKENS]))
        progress(2, 3, "codecs")
        codecs = tuple(_codecs(machine, runner, ids))
    finally:
        engine.call(machine.batch.close)
    values = {one.setting: int(one.value) for one in (*steps, *widths) if one.is_chosen}
    return Tuning(
        config=attrs.evolve(config, **values),  # type: ignore[arg-type]
        trials=(*steps, *widths, *codecs),
        notes=_notes(runner, bool(codecs)),
    )


def _notes(runner: ModelRunner, has_codecs: bool) -> tuple[str, ...]:
    found = []
    if "blas" in runner.facts:
        found.append(f"blas: {runner.facts['blas']}, as the process found it; threads are OPENBLAS_NUM_THREADS'")
    if has_codecs:
        found.append(
            "codecs: what they cost in quality is for measure_codec and choose_codec; cold_codec is left as is"
        )
    return tuple(found)


def _text_ids(runner: ModelRunner, n_tokens: int) -> list[int]:
    ids: list[int] = list(runner.tokenizer.encode(_TEXT, bos=True))
    while len(ids) < n_tokens:
        ids += runner.tokenizer.encode(_TEXT, bos=False)
    return ids[:n_tokens]


@frozen
class _Machine:
    """A batch of its own on the engine thread; each call is one piece of work between two ticks."""

    engine: Engine
    batch: Batch

    def prefill_s(self, ids: Sequence[int], step: int) -> float:
        """Seconds that a prefill takes, in steps; others wait for one step at a time."""
        kv = self.engine.call(self.batch.empty)
        return sum(self._timed(partial(self.batch.prefill, kv, ids[at : at + step])) for at in range(0, len(ids), step))

    def step_s(self, ids: Sequence[int], width: int) -> float:
        """Seconds of one decode step of ``width`` rows, the median of some."""
        for row in range(width):
            self.engine.call(partial(self._join, row, ids))
        try:
            self._timed(lambda: self.batch.step(0))  # the first one joins the rows
            self._timed(lambda: self.batch.step(0))
            return statistics.median(self._timed(lambda: self.batch.step(0)) for _ in range(_STEPS))
        finally:
            self.engine.call(lambda: self.batch.drop(0))

    def _join(self, row: int, ids: Sequence[int]) -> None:
        kv = self.batch.empty()
        self.batch.prefill(kv, ids[:-1])
        self.batch.insert(row, kv, ids, group=0, sampling=Sampling())

    def _timed(self, work: Callable[[], object]) -> float:
        def run() -> float:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start

        return max(self.engine.call(run), 1e-9)


def _prefills(machine: _Machine, chunk_tokens: int, ids: Sequence[int]) -> dict[int, float]:
    """Return tokens a second by prefill step; interleaved, so that a slower moment strikes all alike."""
    steps = sorted({max(1, step // chunk_tokens) * chunk_tokens for step in _PREFILL_STEPS})
    steps = [step for step in steps if step <= max(len(ids), steps[0])]
    machine.prefill_s(ids[: steps[0]], steps[0])  # the first one allocates
    took = {step: [machine.prefill_s(ids, step)] for step in steps}
    for _ in range(_ROUNDS - 1):
        for step in steps:
            took[step].append(machine.prefill_s(ids, step))
    return {step: len(ids) / statistics.median(times) for step, times in took.items()}


def _decodes(machine: _Machine, ids: Sequence[int]) -> dict[int, float]:
    """Return tokens a second by batch width, up to the first width that decodes fewer than half of it did."""
    found: dict[int, float] = {}
    for width in _WIDTHS:
        rate = width / machine.step_s(ids, width)
        if rate < 0.5 * max(found.values(), default=0.0):
            break
        found[width] = rate
    return found


def _chosen(setting: str, unit: str, rates: dict[int, float]) -> tuple[Trial, ...]:
    best = min(value for value, rate in rates.items() if rate >= _ENOUGH * max(rates.values()))
    return tuple(Trial(setting, value, rate, unit, is_chosen=value == best) for value, rate in rates.items())


def _codecs(machine: _Machine, runner: ModelRunner, ids: Sequence[int]) -> Iterator[Trial]:
    """Measure GB of exact KV a second, both ways."""
    for name in CODECS[1:]:
        codec = fitted(runner.layout, name)
        if not (runner.layout.is_storable and is_lossy(runner.layout, codec)):
            return
        told = machine.engine.call(partial(machine.batch.measure, ids, len(ids) - 2, codec))
        yield Trial(f"{name} encodes", "", told.exact_bytes / told.encode_s / 1e9, "GB/s")
        yield Trial(f"{name} decodes", "", told.exact_bytes / told.decode_s / 1e9, "GB/s")

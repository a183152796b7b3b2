"""``Memory.tune()``: measures this machine with the open model, and chooses settings by the figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import attrs
from attrs import field, frozen

from agent_memory.config import CODECS, Config
from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.kvcache.coding import fitted, is_lossy
from agent_memory.observe import threads
from agent_memory.observe.threads import ThreadRates
from agent_memory.observe.timing import ROW_TOKENS, Machine, text_ids
from agent_memory.progress import Progress, silent
from agent_memory.protocols import ModelRunner
from agent_memory.scheduler.engine import Engine
from agent_memory.views.page import Note, Page, Shown, Table

#: Prefill steps that are tried, and tokens of the prompt that they are timed on; on a GPU small steps leave it idle.
_CPU_STEPS, _CPU_TOKENS = (256, 512, 1024, 2048), 1024
_GPU_STEPS, _GPU_TOKENS = (512, 1024, 2048, 4096), 4096
_WIDTHS = (1, 2, 4, 8, 16, 32)
_ROUNDS = 3
_LEAST_TOKENS = 64
#: A smaller setting is taken if it reaches this share of the best: a smaller step and batch let others wait less.
_ENOUGH = 0.95


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
    #: variables to set before Python starts, where another value than this process has was measured to be better
    environment: Mapping[str, str] = field(default=MappingProxyType({}))

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return setting, value, figure and "chosen" of each trial, as texts."""
        return [
            (one.setting, str(one.value), f"{one.figure:,.2f} {one.unit}", "chosen" if one.is_chosen else "")
            for one in self.trials
        ]

    def __repr__(self) -> str:
        chosen = ", ".join(dict.fromkeys(f"{one.setting}={one.value}" for one in self.trials if one.is_chosen))
        return f"Tuning({chosen}; {len(self.trials)} trials)"

    def _page(self) -> Page:
        table = Table(self.rows(), head=("setting", "value", "measured", ""))
        return Page("Settings for this machine", [table, *map(Note, self.notes)])


def tune(engine: Engine, runner: ModelRunner, config: Config, n_tokens: object, progress: Progress = silent) -> Tuning:
    """Return the settings for a Memory of ``config``; see ``Memory.tune``."""
    is_gpu = str(runner.facts.get("backend", "")).endswith("gpu")
    n_tokens = (_GPU_TOKENS if is_gpu else _CPU_TOKENS) if n_tokens is None else n_tokens
    if not isinstance(n_tokens, int) or isinstance(n_tokens, bool) or n_tokens < _LEAST_TOKENS:
        raise UnsupportedParameterError(f"n_tokens must be an int of {_LEAST_TOKENS} or more, got {repr_of(n_tokens)}")
    most = runner.context_tokens or n_tokens
    ids = text_ids(runner, min(n_tokens, most))
    machine = Machine(engine, engine.call(lambda: runner.open_batch(config.chunk_tokens)))
    try:
        progress(0, 4, "prefill steps")
        tried = _GPU_STEPS if is_gpu else _CPU_STEPS
        steps = _chosen("prefill_tokens", "tokens/s", _prefills(machine, tried, config.chunk_tokens, ids))
        progress(1, 4, "batch widths")
        widths = _chosen("max_batch", "tokens/s", _decodes(machine, ids[:ROW_TOKENS]))
        progress(2, 4, "codecs")
        codecs = tuple(_codecs(machine, runner, ids))
    finally:
        engine.call(machine.batch.close)
    values = {one.setting: int(one.value) for one in (*steps, *widths) if one.is_chosen}
    progress(3, 4, "BLAS threads")
    counted, notes, environment = _threads(runner, config, values["prefill_tokens"], len(ids))
    if codecs:
        notes.append(
            "codecs: what they cost in quality is for measure_codec and choose_codec; cold_codec is left as is"
        )
    return Tuning(
        config=attrs.evolve(config, **values),  # type: ignore[arg-type]
        trials=(*steps, *widths, *counted, *codecs),
        notes=tuple(notes),
        environment=environment,
    )


def _threads(
    runner: ModelRunner, config: Config, step: int, n_tokens: int
) -> tuple[tuple[Trial, ...], list[str], dict[str, str]]:
    """Return the trials of numbers of BLAS threads, what there is to say of them, and the variable to set."""
    if "blas" not in runner.facts:
        return (), [], {}
    reason = threads.reason_not_to(runner)
    if reason is not None:
        return (), [f"blas: {runner.facts['blas']}; its threads were not measured: {reason}"], {}
    found, notes = threads.measured(runner, config, step, n_tokens)
    if not found:
        return (), notes, {}
    best, now = threads.best(found, _ENOUGH), runner.facts["blas_threads"]
    trials = tuple(trial for one in found for trial in _trials(one, is_chosen=one is best))
    before = next((one for one in found if one.n_threads == now), None)
    if best.n_threads == now:
        return trials, [*notes, f"blas: the {now} threads of this process are best, within 5 %"], {}
    gain = ""
    if before is not None:
        prefill, decode = best.prefill / before.prefill, best.decode / before.decode
        gain = f": prefill {prefill:.2f} times as fast as with {now} threads, decode {decode:.2f} times"
    told = f"blas: set {threads.VARIABLE}={best.n_threads} before Python starts{gain}. KV stored so far is then 'moved'"
    return trials, [*notes, told], {threads.VARIABLE: str(best.n_threads)}


def _trials(rates: ThreadRates, *, is_chosen: bool) -> list[Trial]:
    return [
        Trial(threads.VARIABLE, rates.n_threads, rates.prefill, "tokens/s of prefill", is_chosen),
        Trial(threads.VARIABLE, rates.n_threads, rates.decode, "tokens/s of one row", is_chosen),
    ]


def _prefills(machine: Machine, tried: Sequence[int], chunk_tokens: int, ids: Sequence[int]) -> dict[int, float]:
    """Return tokens a second by prefill step; interleaved, so that a slower moment strikes all alike."""
    steps = sorted({max(1, step // chunk_tokens) * chunk_tokens for step in tried})
    steps = [step for step in steps if step <= max(len(ids), steps[0])]
    machine.prefill_s(ids[: steps[0]], steps[0])  # the first one allocates
    took = {step: [machine.prefill_s(ids, step)] for step in steps}
    for _ in range(_ROUNDS - 1):
        for step in steps:
            took[step].append(machine.prefill_s(ids, step))
    return {step: len(ids) / statistics.median(times) for step, times in took.items()}


def _decodes(machine: Machine, ids: Sequence[int]) -> dict[int, float]:
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


def _codecs(machine: Machine, runner: ModelRunner, ids: Sequence[int]) -> Iterator[Trial]:
    """Measure GB of exact KV a second, both ways."""
    for name in CODECS[1:]:
        codec = fitted(runner.layout, name)
        if not (runner.layout.is_storable and is_lossy(runner.layout, codec)):
            return
        told = machine.engine.call(partial(machine.batch.measure, ids, len(ids) - 2, codec))
        yield Trial(f"{name} encodes", "", told.exact_bytes / told.encode_s / 1e9, "GB/s")
        yield Trial(f"{name} decodes", "", told.exact_bytes / told.decode_s / 1e9, "GB/s")

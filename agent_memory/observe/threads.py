"""How many threads the BLAS should have: a process for each number, which is fixed when OpenBLAS is loaded."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from attrs import asdict, frozen

from agent_memory.config import Config, total_memory_bytes
from agent_memory.observe.timing import ROW_TOKENS, Machine, text_ids
from agent_memory.progress import Progress, silent
from agent_memory.protocols import ModelRunner

T = TypeVar("T")

VARIABLE = "OPENBLAS_NUM_THREADS"
_CODE = "from agent_memory.observe.threads import child; child()"
_SECONDS = 1200.0  #: after which a process is given up
_ALL_UP_TO = 4  #: numbers of threads that are all tried; above it, each double and the number of cores
_ROUNDS = 3


@frozen
class ThreadRates:
    """Tokens a second with a number of threads: of a prefill, and of one row that decodes."""

    n_threads: int
    prefill: float
    decode: float


@frozen
class _Asked:
    """What a process measures."""

    model_path: str
    choices: Mapping[str, str]
    chunk_tokens: int
    step: int
    n_tokens: int


def numbers(n_cores: int) -> list[int]:
    """Return the numbers of threads to try on a machine with so many cores."""
    few = range(1, min(n_cores, _ALL_UP_TO) + 1)
    doubles = [1 << bit for bit in range(n_cores.bit_length())]
    return sorted({*few, *doubles, n_cores})


def n_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reason_not_to(runner: ModelRunner) -> str | None:
    """Return why threads are not measured; None: they can be."""
    facts = runner.facts
    if not facts.get("blas_active") or not str(facts.get("blas", "")).startswith("OpenBLAS"):
        return "no OpenBLAS is in use"
    if facts.get("model_path") is None:
        return "the host has loaded the model, and another process cannot load it: give Memory its folder"
    if 4 * runner.weights_bytes > total_memory_bytes():
        return f"a second process with weights of {runner.weights_bytes / (1 << 30):.1f} GiB might not fit"
    return None


def measured(
    runner: ModelRunner, config: Config, step: int, n_tokens: int, progress: Progress = silent
) -> tuple[list[ThreadRates], list[str]]:
    """Return the rates with each number of threads, and what could not be measured, in words. One process at a time."""
    facts = runner.facts
    asked = _Asked(str(facts["model_path"]), dict(runner.choices), config.chunk_tokens, step, n_tokens)
    tried = sorted({*numbers(n_cores()), *([facts["blas_threads"]] if facts["blas_threads"] else [])})
    found, failed = list[ThreadRates](), list[str]()
    for number, n_threads in enumerate(tried):
        progress(number, len(tried), f"{n_threads} BLAS threads")
        rates = _ask(asked, n_threads)
        if isinstance(rates, str):
            failed.append(f"{n_threads} BLAS threads were not measured: {rates}")
        elif rates.n_threads != n_threads:
            failed.append(f"{n_threads} BLAS threads were not measured: the BLAS has {rates.n_threads} at most")
        else:
            found.append(rates)
    return found, failed


def best(found: Iterable[ThreadRates], enough: float) -> ThreadRates:
    """Return the fewest threads that reach a share of the best mean rate: the geometric one of prefill and decode."""
    means = {one: statistics.geometric_mean((one.prefill, one.decode)) for one in found}
    most = max(means.values())
    return min((one for one, mean in means.items() if mean >= enough * most), key=lambda one: one.n_threads)


def _ask(asked: _Asked, n_threads: int) -> ThreadRates | str:
    """Return what a process measures, or why it did not."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    environment = {**os.environ, VARIABLE: str(n_threads), "PYTHONPATH": paths}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CODE],
            env=environment,
            input=json.dumps(asdict(asked)),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    try:
        told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return ThreadRates(int(told["n_threads"]), float(told["prefill"]), float(told["decode"]))
    except (IndexError, KeyError, TypeError, ValueError):
        return f"it said {done.stdout[-200:]!r}"


class _Here:
    """Runs work on this thread."""

    def call(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns."""
        return work()


def child() -> None:
    """Measure what stdin asks for in this process, and write it to stdout."""
    from agent_memory.runner.mlx import MLXRunner

    asked = _Asked(**json.load(sys.stdin))
    runner = MLXRunner.named(asked.model_path, config=Config())
    runner.open(asked.choices)
    try:
        machine, ids = Machine(_Here(), runner.open_batch(asked.chunk_tokens)), text_ids(runner, asked.n_tokens)
        machine.prefill_s(ids[: asked.step], asked.step)  # the first one allocates
        prefill_s = statistics.median(machine.prefill_s(ids, asked.step) for _ in range(_ROUNDS))
        rates = ThreadRates(
            int(runner.facts["blas_threads"]), len(ids) / prefill_s, 1 / machine.step_s(ids[:ROW_TOKENS], 1)
        )
    finally:
        runner.close()
    sys.stdout.write(f"{json.dumps(asdict(rates))}\n")

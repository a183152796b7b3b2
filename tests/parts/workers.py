"""The default run in three worker processes (pytest-xdist), one core each; every other run stays in one process."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_memory.runner.blas import PACKAGE, memory_regions, speed_up

N_WORKERS = 3  #: on two cores too: many tests wait, for a process or a fault, and compute nothing
#: Two processes that compute on every core stand in each other's way: a worker computes on its own core alone.
ONE_CORE = {"OPENBLAS_NUM_THREADS": "1"}


def split_default_run(config: pytest.Config) -> None:
    """Ask for the workers if this is the default run: nothing is chosen, and nobody sits at the terminal.

    A file's tests stay together, in their order: they share fixtures, and find each other's state as in a run alone.
    """
    option = config.option
    is_default = (
        config.args_source is pytest.Config.ArgsSource.TESTPATHS
        and option.markexpr in config.getini("addopts")
        and not (option.keyword or option.usepdb or option.capture == "no")
    )
    has_plugin = config.pluginmanager.hasplugin("xdist")
    if is_default and has_plugin and not is_worker(config) and option.numprocesses is None and _n_cores() > 1:
        option.numprocesses, option.dist, option.loadscopereorder = N_WORKERS, "loadfile", False
        for name, value in ONE_CORE.items():
            os.environ.setdefault(name, value)


def is_worker(config: pytest.Config) -> bool:
    """True in a worker process."""
    return hasattr(config, "workerinput")


def told(config: pytest.Config) -> dict[str, Any]:
    """Return what the first process told this worker."""
    found: dict[str, Any] = config.workerinput  # type: ignore[attr-defined]
    return found


def heaviest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the tests with the files that use the starter model first: what is long must not begin last."""
    heavy = {item.path for item in items if item.get_closest_marker("model")}
    return sorted(items, key=lambda item: item.path not in heavy)


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """OpenBLAS computes on every core, as for users; without it (macOS, a GPU) nothing changes."""
    if speed_up("auto").name != "OpenBLAS":
        yield
        return
    loaded = {Path(region.path) for region in memory_regions() if "openblas" in region.path}
    library = ctypes.CDLL(str(next(path for path in loaded if PACKAGE in path.parts)))  # numpy has another one
    before = library.scipy_openblas_get_num_threads()
    library.scipy_openblas_set_num_threads(_n_cores())
    try:
        yield
    finally:
        library.scipy_openblas_set_num_threads(before)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""How the tests run: the default run in three workers, whatever was chosen in one process."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from tests.parts import workers

DEFAULT = "not slow and not contract"
SOURCES = pytest.Config.ArgsSource


def asked(
    monkeypatch: pytest.MonkeyPatch, *, n_cores: int = 2, source: SOURCES = SOURCES.TESTPATHS, **given: Any
) -> Any:
    """The options of a run, after a look at them; ``given``: those that its command line sets."""
    for name, value in workers.ONE_CORE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(workers, "_n_cores", lambda: n_cores)
    options = {"keyword": "", "markexpr": DEFAULT, "usepdb": False, "capture": "fd", "numprocesses": None, "dist": "no"}
    config = SimpleNamespace(
        args_source=source,
        option=argparse.Namespace(**options | given, loadscopereorder=True),
        getini=lambda _: ["-m", DEFAULT],
        pluginmanager=SimpleNamespace(hasplugin=lambda _: True),
    )
    workers.split_default_run(config)  # type: ignore[arg-type]
    return config.option


def test_the_default_run_has_three_workers_and_keeps_the_tests_of_a_file_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    option = asked(monkeypatch)
    assert (option.numprocesses, option.dist, option.loadscopereorder) == (3, "loadfile", False)


@pytest.mark.parametrize(
    "given",
    [
        {"source": SOURCES.ARGS}, {"keyword": "rewind"}, {"markexpr": "slow"}, {"markexpr": ""}, {"usepdb": True},
        {"capture": "no"}, {"n_cores": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_chooses_tests_or_needs_the_terminal_runs_in_one_process(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(monkeypatch, **given).numprocesses is None


@pytest.mark.parametrize("n", [0, 4])
def test_a_number_of_workers_that_is_given_stays(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, numprocesses=n).numprocesses == n


def test_the_marks_that_the_default_run_leaves_out_are_those_of_the_settings(pytestconfig: pytest.Config) -> None:
    assert DEFAULT in pytestconfig.getini("addopts")

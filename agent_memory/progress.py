"""Progress of long work, shown where a person watches: a terminal, or the cell of a notebook. Nothing in logs or pipes.

A kernel's cell gets its own small bar, for which no widgets need be installed; everything else gets tqdm's on stderr.
"""

from __future__ import annotations

import html
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal, Protocol

#: ``report(done, total, what)``; a ``total`` of 0 is unknown.
Progress = Callable[[int, int, str], None]
_Place = Literal["terminal", "cell", "nowhere"]

#: A bar is drawn no more often than this.
EVERY_S = 0.1
#: Work of which less is left, by the rate so far, gets no bar.
_LEAST_LEFT_S = 1.0


class _Drawing(Protocol):
    """A bar that is shown."""

    def draw(self, bar: Bar) -> None: ...
    def end(self, bar: Bar) -> None: ...


def mib(n_bytes: int) -> int:
    """MiB that have been begun."""
    return -(-n_bytes >> 20)


def silent(done: int, total: int, what: str) -> None:
    """Report to nobody."""


def place_of(wanted: bool | None) -> _Place:
    """Where a bar is shown; ``wanted`` None: only where a person watches, True: always."""
    if wanted is False:
        return "nowhere"
    if _kernel() is not None:
        return "cell"
    marimo = sys.modules.get("marimo")
    if wanted or (marimo is not None and marimo.running_in_notebook()):
        return "terminal"
    return "terminal" if sys.stderr is not None and sys.stderr.isatty() else "nowhere"


def _kernel() -> Any:
    """The shell of a Jupyter kernel; None outside one. Imports nothing."""
    if "ipykernel" not in sys.modules or (ipython := sys.modules.get("IPython")) is None:
        return None
    shell = ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


def import_tqdm() -> None:
    """Import ``tqdm.auto`` without its warnings, before somebody else does: it has one for kernels without widgets."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)
        import tqdm.auto  # noqa: F401


class Bar:
    """The progress of one piece of work. One thread at a time.

    Shown once ``after_s`` have passed and, by the rate so far, a second or more is left. What was done at the first
    report (reused tokens) counts as done, and not for the rate.
    """

    def __init__(self, wanted: bool | None, title: str, unit: str, *, after_s: float = 0.5) -> None:
        self.title, self.unit, self.what = title, unit, ""
        self.first = self.done = self.total = 0
        self.began = time.perf_counter()
        self._after_s, self._place = after_s, place_of(wanted)
        self._counts_from: float | None = None
        self._drawn_at = 0.0
        self._drawing: _Drawing | None = None

    @property
    def is_watched(self) -> bool:
        """True if it may be shown."""
        return self._place != "nowhere"

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first report."""
        return time.perf_counter() - (self._counts_from or self.began)

    @property
    def left_s(self) -> float | None:
        """Seconds left by the rate so far; None before there is one."""
        done = self.done - self.first
        return self.elapsed_s * (self.total - self.done) / done if done > 0 and self.total else None

    def report(self, done: int, total: int, what: str = "") -> None:
        """Note how far the work is."""
        if self._place == "nowhere":
            return
        now = time.perf_counter()
        if self._counts_from is None or (what != self.what and done < self.done):  # another part of the work begins
            self._counts_from, self.first = now, done
        is_new, self.done, self.total, self.what = what != self.what, done, total, what
        if self._drawing is None:
            left = self.left_s
            if now - self.began < self._after_s or (left is not None and left < _LEAST_LEFT_S):
                return
            self._drawing = _Cell() if self._place == "cell" else _Terminal(self)
        elif now - self._drawn_at < EVERY_S and not is_new:
            return
        self._drawn_at = now
        self._drawing.draw(self)

    def close(self) -> None:
        """Take the bar away; a cell keeps one line."""
        if self._drawing is not None:
            self._drawing.end(self)
            self._drawing = None

    @property
    def text(self) -> str:
        """One line: how far, and the seconds left."""
        name = f"{self.title}: {self.what}" if self.what else self.title
        if not self.total:
            return f"{name} ..."
        reused = f", {self.first:,} reused" if self.first and self.unit == "tokens" else ""
        left = "" if self.left_s is None else f", {_seconds(self.left_s)} left"
        return f"{name} {self.done:,} of {self.total:,} {self.unit}{reused}{left}"


def _seconds(seconds: float) -> str:
    return f"{seconds / 60:,.0f} min" if seconds >= 120 else f"{seconds:,.0f} s"


@contextmanager
def bar(wanted: bool | None, title: str, unit: str, *, after_s: float = 0.5) -> Iterator[Progress]:
    """Give ``report(done, total, what)`` for the time of a block, whose end takes the bar away."""
    shown = Bar(wanted, title, unit, after_s=after_s)
    try:
        yield shown.report
    finally:
        shown.close()


class _Terminal:
    """tqdm's bar on stderr."""

    def __init__(self, bar: Bar) -> None:
        from tqdm.std import tqdm

        # ``delay``: it draws nothing before it is told to.
        self._bar = tqdm(unit=f" {bar.unit}", total=bar.total or None, leave=False, smoothing=0, delay=1e-9)

    def _follow(self, bar: Bar) -> None:
        self._bar.start_t = time.time() - bar.elapsed_s  # its rate counts from the first report
        self._bar.initial, self._bar.total = bar.first, bar.total or None
        reused = f", {bar.first:,} reused" if bar.first and bar.unit == "tokens" else ""
        named = f"{bar.title}: {bar.what}" if bar.what else bar.title
        self._bar.set_description(named + reused, refresh=False)
        self._bar.n = bar.done

    def draw(self, bar: Bar) -> None:
        self._follow(bar)
        self._bar.refresh()

    def end(self, bar: Bar) -> None:
        self._bar.close()


class _Cell:
    """A bar in the output of a notebook's cell, replaced in place."""

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, bar: Bar) -> None:
        most = f' max="{bar.total}" value="{bar.done}"' if bar.total else ""
        self._show(f'<progress{most} style="width:16em;vertical-align:middle"></progress> ', bar.text)

    def end(self, bar: Bar) -> None:
        is_whole = bar.total and bar.done >= bar.total
        how = f"{bar.done:,} {bar.unit}" if is_whole or not bar.total else f"{bar.done:,} of {bar.total:,} {bar.unit}"
        self._show("", f"{bar.title}: {how} in {time.perf_counter() - bar.began:,.1f} s")

    def _show(self, before: str, text: str) -> None:
        display = import_module("IPython.display").display
        shown = {"text/plain": text, "text/html": f'<small style="opacity:.75">{before}{html.escape(text)}</small>'}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

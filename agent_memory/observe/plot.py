"""``Memory.plot()`` and ``Agent.plot()``: time to the first token and tokens by origin of the newest turns, and bytes.

Needs the extra ``plot``. Draws with matplotlib's own objects and leaves its global state, pyplot, alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from attrs import field, frozen

from agent_memory.config import as_path
from agent_memory.errors import INSTALL, MissingExtraError
from agent_memory.observe.trace import End, Entry
from agent_memory.usage import Usage
from agent_memory.views.page import COLOURS

#: Newest requests that are drawn.
MOST_REQUESTS = 100
_ORIGINS = ("hot", "warm", "cold", "remote", "computed")
_MIB = 1 << 20


@frozen
class Plot:
    """A drawing, which a notebook shows. ``figure``: matplotlib's, to be changed at will."""

    figure: Any = field(repr=False)
    n_requests: int

    def save(self, path: str | PathLike[str]) -> Path:
        """Write it as PNG, SVG or PDF, by the name's ending; return its absolute path. Raises ConfigError, OSError."""
        target = as_path(path, "path")
        self.figure.savefig(target, bbox_inches="tight")
        return target

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
        return file.getvalue()


def usages(entries: Sequence[Entry], owner: str | None) -> list[Usage]:
    """The newest replies' figures, the oldest first; of one agent, or of all."""
    ended = (one for one in entries if isinstance(one, End) and one.state == "done" and one.usage is not None)
    found = [one.usage for one in ended if owner is None or one.owner == owner]
    return [usage for usage in found if usage is not None and usage.output_tokens][-MOST_REQUESTS:]


def draw(title: str, replies: Sequence[Usage], tiers: Mapping[str, int]) -> Plot:
    """Draw three panels. ``tiers``: bytes by tier. Raises MissingExtraError."""
    try:
        figure = import_module("matplotlib.figure").Figure(figsize=(11, 3.2), layout="constrained")
    except ImportError as error:
        raise MissingExtraError(f"matplotlib is not installed: {INSTALL['plot']} ({error})") from error
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    first, tokens, stored = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    _first_tokens(first, replies)
    _origins(tokens, replies)
    stored.barh(list(tiers), [n / _MIB for n in tiers.values()], color=[COLOURS[tier] for tier in tiers])
    stored.set(title="bytes by tier", xlabel="MiB")
    stored.invert_yaxis()
    for axes in (first, tokens, stored):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
    return Plot(figure, len(replies))


def _first_tokens(axes: Any, replies: Sequence[Usage]) -> None:
    for name in _ORIGINS:
        of = [(turn, one.ttft_s) for turn, one in enumerate(replies, 1) if _origin(one) == name]
        if of:
            label = "computed anew" if name == "computed" else f"resumed from {name}"
            axes.scatter(*zip(*of, strict=True), color=COLOURS[name], label=label, s=24)
    axes.set(title="time to the first token", xlabel="turn", ylabel="seconds")
    axes.set_ylim(bottom=0)
    _whole_turns(axes, len(replies))
    if replies:
        axes.legend(fontsize=8, frameon=False)


def _origin(usage: Usage) -> str:
    """The slowest tier of a prompt of which at least half was reused; else "computed"."""
    return usage.tier if usage.tier != "none" and 2 * usage.cached_tokens >= usage.prompt_tokens else "computed"


def _origins(axes: Any, replies: Sequence[Usage]) -> None:
    turns, below = range(1, len(replies) + 1), [0] * len(replies)
    for name in _ORIGINS:
        n_tokens = [one.computed_tokens if name == "computed" else one.tier_tokens.get(name, 0) for one in replies]
        if any(n_tokens):
            axes.bar(turns, n_tokens, bottom=below, color=COLOURS[name], label=name, width=0.8)
            below = [one + more for one, more in zip(below, n_tokens, strict=True)]
    axes.set(title="prompt tokens by origin", xlabel="turn", ylabel="tokens")
    _whole_turns(axes, len(replies))
    if any(below):
        axes.set_ylim(top=1.35 * max(below))
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")


def _whole_turns(axes: Any, n_turns: int) -> None:
    axes.set_xlim(0.4, max(1, n_turns) + 0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)

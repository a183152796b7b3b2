"""Plots of what a Memory did lately."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_memory import ClosedError, EchoRunner, Memory
from agent_memory.observe.plot import usages

pytest.importorskip("matplotlib")


def test_a_memory_and_an_agent_draw_their_turns(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path / "agents") as memory:
        ann = memory.agent("ann $x$", system="word " * 300)
        for text in ("one", "two", "three"):
            ann.say(text)
        memory.prefill("nothing is said")
        memory.generate("somebody else")
        assert (memory.plot().n_requests, ann.plot().n_requests) == (4, 3)
        memory.flush()
        first, tokens, stored = ann.plot().figure.axes
        assert [one.get_text() for one in first.get_legend().get_texts()] == ["resumed from hot", "computed anew"]
        assert [one.get_text() for one in tokens.get_legend().get_texts()] == ["hot", "computed"]
        assert [bar.get_width() > 0 for bar in stored.patches] == [True, True]
        assert ann.plot()._repr_png_().startswith(b"\x89PNG")
        assert memory.plot().save(tmp_path / "plot.svg").read_text().count("<svg") == 1


def test_the_bars_of_a_turn_sum_to_its_prompt() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        ann = memory.agent("ann", system="word " * 300)
        prompts = [ann.say(text).usage.prompt_tokens for text in ("one", "two")]
        tokens = ann.plot().figure.axes[1]
        tops = {round(bar.get_x(), 3): bar.get_y() + bar.get_height() for bar in tokens.patches}
        assert list(tops.values()) == prompts


def test_a_plot_of_nothing_is_empty_and_a_closed_memory_draws_none() -> None:
    memory = Memory(EchoRunner(), ":memory:")
    ann = memory.agent("ann")
    assert ann.plot().n_requests == memory.plot().n_requests == 0
    assert ann.plot()._repr_png_()
    assert usages([], "ann") == []
    memory.close()
    for plot in (memory.plot, ann.plot):
        with pytest.raises(ClosedError):
            plot()

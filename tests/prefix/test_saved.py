"""What reuse saves is estimated from long prefill steps alone."""

from __future__ import annotations

import pytest

from agent_memory.prefix.worth import Costs


def test_short_steps_say_nothing_of_a_long_prompt() -> None:
    costs = Costs()
    costs.computed(17, 3.0)
    assert costs.long_compute_s(800) is None
    costs.computed(256, 0.512)
    assert costs.long_compute_s(800) == pytest.approx(1.6)
    costs.computed(20, 3.0)
    assert costs.long_compute_s(800) == pytest.approx(1.6)

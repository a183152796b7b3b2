"""How many decode steps run between two prefill steps. Pure."""

from __future__ import annotations

import math

#: Of a long prompt's time, decoding others may add this share: its first token stays near what it takes alone.
_DECODE_SHARE = 0.4
#: Prefill steps in a row of one prompt of a crowd. A decode step that only a part of the crowd shares comes on top of
#: those that all share.
_CROWD_STEPS = 2


class Pacer:
    """Keeps decoding callers near ``target_gap_s`` between tokens while somebody's prompt is computed.

    A prefill step is never cut or grown under load (the KV must not depend on it). What varies is how many decode
    steps follow it: enough that the mean gap comes near the target, at least one, and no more than the prompt's own
    time allows. Prompts that need one short step each follow one another while the gap stays within the target. Those
    who asked before anybody decoded owe nobody such a pace: a step for every prompt and for every two of its steps, and
    the whole crowd decodes together sooner.
    """

    def __init__(self, target_gap_s: float) -> None:
        self._target_gap_s = target_gap_s
        self._decode_s = 0.0  # a running mean
        self._spent_s = 0.0  # in prefill steps since the last decode step
        self._steps = 0  # prefill steps since the last decode step
        self._owed = 0

    @property
    def is_prefill_due(self) -> bool:
        """Whether a prefill step may come next; else a decode step does."""
        return self._owed <= 0

    def prefilled(self, seconds: float, *, is_last: bool, is_alone: bool = False, is_late: bool = True) -> None:
        """A prefill step took so long: the last of its prompt or not, while others decode or alone; ``is_late``: those
        others decoded before its prompt was asked.
        """
        self._spent_s = seconds if is_alone else self._spent_s + seconds
        self._steps += 1
        is_tight = self._spent_s + seconds > self._target_gap_s - self._decode_s  # another such step would not fit
        if not is_late:
            self._owed = int(is_tight if is_last else self._steps >= _CROWD_STEPS)
        elif is_tight or not is_last:
            self._owed = self.decode_steps(self._spent_s)

    def decoded(self, seconds: float) -> None:
        """A decode step of all groups took so long."""
        self._decode_s = seconds if not self._decode_s else 0.8 * self._decode_s + 0.2 * seconds
        self._owed -= 1
        self._spent_s = 0.0
        self._steps = 0

    def decode_steps(self, prefill_s: float) -> int:
        """Decode steps after ``prefill_s`` of prefill."""
        spare = self._target_gap_s - self._decode_s  # what a step may lend to the prefill
        if prefill_s <= spare or not self._decode_s:
            return 1
        most = max(1, int(_DECODE_SHARE * prefill_s / self._decode_s))
        return min(most, math.ceil(prefill_s / spare)) if spare > 0 else most

"""How many decode steps run between two prefill steps. Pure."""

from __future__ import annotations

import math

#: Decode steps may add this share to a long prompt's prefill time, so that its first token is not much later.
_DECODE_SHARE = 0.4
#: Prefill steps in a row for one of several prompts that arrived together: a decode step that only some of them share
#: is a step more for the others.
_CROWD_STEPS = 2


class Pacer:
    """Keeps running replies near ``target_gap_s`` between tokens while a prompt is prefilled. Engine thread only.

    - A prefill step is as long under load as without (the KV must not depend on it); the number of decode steps after
      it varies: enough that the mean gap comes near the target, at least one, and at most ``_DECODE_SHARE`` of the
      prompt's own time.
    - Prompts that need one short step each follow one another while the gap stays within the target.
    - Prompts that arrived before decoding began are not slowed: one decode step after each prompt, or after every
      second prefill step, so that all of them decode together sooner.
    """

    def __init__(self, target_gap_s: float) -> None:
        self._target_gap_s = target_gap_s
        self._decode_s = 0.0  # a running mean
        self._spent_s = 0.0  # in prefill steps since the last decode step
        self._steps = 0  # prefill steps since the last decode step
        self._owed = 0

    @property
    def is_prefill_due(self) -> bool:
        """True if a prefill step may come next; else a decode step does."""
        return self._owed <= 0

    def prefilled(self, seconds: float, *, is_last: bool, is_alone: bool = False, is_late: bool = True) -> None:
        """Record a prefill step of ``seconds``.

        ``is_last``: the prompt's last step. ``is_alone``: no row decodes. ``is_late``: one decoded before it arrived.
        """
        self._spent_s = seconds if is_alone else self._spent_s + seconds
        self._steps += 1
        is_tight = self._spent_s + seconds > self._target_gap_s - self._decode_s  # another such step would not fit
        if not is_late:
            self._owed = int(is_tight if is_last else self._steps >= _CROWD_STEPS)
        elif is_tight or not is_last:
            self._owed = self.decode_steps(self._spent_s)

    def decoded(self, seconds: float) -> None:
        """Record a decode step of all groups that took ``seconds``."""
        self._decode_s = seconds if not self._decode_s else 0.8 * self._decode_s + 0.2 * seconds
        self._owed -= 1
        self._spent_s = 0.0
        self._steps = 0

    def decode_steps(self, prefill_s: float) -> int:
        """Return the number of decode steps after ``prefill_s`` of prefill."""
        spare = self._target_gap_s - self._decode_s  # what each decode step leaves for prefill
        if prefill_s <= spare or not self._decode_s:
            return 1
        most = max(1, int(_DECODE_SHARE * prefill_s / self._decode_s))
        return min(most, math.ceil(prefill_s / spare)) if spare > 0 else most

"""Admission by bytes: what a request may need at worst, and what must leave the hot tier for it."""

from __future__ import annotations

from attrs import frozen

from agent_memory.errors import OutOfBudgetError

#: mlx-lm's caches grow in steps of this many tokens.
_STEP = 256


@frozen
class Budget:
    """The hot tier's bytes, shared by idle lineages and running rows."""

    limit_bytes: int
    token_bytes: int

    def worst_case(self, n_prompt: int, max_tokens: int) -> int:
        """Bytes of a row that uses all its tokens, spare room included.

        A growing cache is copied layer by layer, so the old and the new buffer of one layer exist together: the room
        for one more step covers it.
        """
        steps = (n_prompt + max_tokens + 2 * _STEP - 1) // _STEP
        return steps * _STEP * self.token_bytes

    def check(self, needed_bytes: int) -> None:
        """Raises OutOfBudgetError when a request could never run."""
        if needed_bytes > self.limit_bytes:
            raise OutOfBudgetError(needed_bytes, self.limit_bytes)

    def shortfall(self, needed_bytes: int, running_bytes: int, idle_bytes: int) -> int:
        """Bytes that idle lineages must give up; more than ``idle_bytes`` means the request waits."""
        return max(0, needed_bytes + running_bytes + idle_bytes - self.limit_bytes)

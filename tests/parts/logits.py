"""The logits behind a reply, bit by bit."""

from __future__ import annotations

from typing import Any

from agent_memory import Memory


def answer(memory: Memory, prompt: str, max_tokens: int = 4) -> tuple[list[bytes], Any]:
    """The logits of every token, and the reply."""
    logits: list[bytes] = []

    def note(ids: Any, values: Any) -> Any:
        logits.append(values.tobytes())
        return values

    reply = memory.generate(prompt, raw=True, max_tokens=max_tokens, logits_processors=[note])
    return logits, reply

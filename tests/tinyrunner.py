"""Runners on the models of tests/tiny.py, whose replies always have their full length."""

from __future__ import annotations

from functools import cache
from typing import Any

from agent_memory import MLXRunner


@cache
def _parts(name: str) -> tuple[Any, Any]:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from tests import tiny
    from tests.reliability.tinytokenizer import tokenizer

    wrapper = TokenizerWrapper(tokenizer())
    wrapper.eos_token_ids = ()
    return tiny.model(name), wrapper


def endless(name: str) -> MLXRunner:
    """A runner on one tiny architecture; no id ends its replies, so each has ``max_tokens``."""
    return MLXRunner(*_parts(name), name=f"tiny {name}")

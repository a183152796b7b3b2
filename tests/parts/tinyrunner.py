"""Runners on the models of tests/parts/tiny.py, whose replies always have their full length."""

from __future__ import annotations

from functools import cache
from typing import Any

from agent_memory import MLXRunner


@cache
def _parts(name: str, layers: int | None) -> tuple[Any, Any]:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from tests import tiny
    from tests.parts.tinytokenizer import tokenizer

    wrapper = TokenizerWrapper(tokenizer())
    wrapper.eos_token_ids = ()
    return tiny.model(name, **({} if layers is None else {"num_hidden_layers": layers})), wrapper


def endless(name: str, layers: int | None = None) -> MLXRunner:
    """A runner on one tiny architecture; no id ends its replies, so each has ``max_tokens``."""
    return MLXRunner(*_parts(name, layers), name=f"tiny {name}")

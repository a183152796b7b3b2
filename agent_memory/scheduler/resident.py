"""Resident: the model that a Memory has now. Whoever holds it sees another model after a swap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_memory.kvcache.layout import Layout
from agent_memory.protocols import Batch, ModelRunner, Tokenizer


class Resident:
    """A ModelRunner that passes everything on to ``current``, which the engine thread alone replaces."""

    def __init__(self, runner: ModelRunner) -> None:
        self.current = runner

    @property
    def name(self) -> str:
        """As the current model has it; so are all others."""
        return self.current.name

    @property
    def tokenizer(self) -> Tokenizer:
        """Valid after ``open``."""
        return self.current.tokenizer

    @property
    def layout(self) -> Layout:
        """Valid after ``open``."""
        return self.current.layout

    @property
    def context_tokens(self) -> int | None:
        """The context length in tokens."""
        return self.current.context_tokens

    @property
    def prefill_tokens(self) -> int:
        """The prefill chunk that suits the device."""
        return self.current.prefill_tokens

    @property
    def weights_bytes(self) -> int:
        """Valid after ``open``."""
        return self.current.weights_bytes

    @property
    def host(self) -> str:
        """Build, device and threads."""
        return self.current.host

    @property
    def identity(self) -> Mapping[str, str]:
        """Valid after ``open``."""
        return self.current.identity

    @property
    def facts(self) -> Mapping[str, Any]:
        """For ``Memory.doctor()``."""
        return self.current.facts

    @property
    def choices(self) -> Mapping[str, str]:
        """Valid after ``open``."""
        return self.current.choices

    @property
    def early_states(self) -> Any:
        """The method of that name; None where the current model has none."""
        return getattr(self.current, "early_states", None)

    @property
    def n_vocab(self) -> Any:
        """The attribute of that name; None where the current model has none."""
        return getattr(self.current, "n_vocab", None)

    @property
    def encode(self) -> Any:
        """The method of that name; None where the current model has none."""
        return getattr(self.current, "encode", None)

    def open(self, recorded: Mapping[str, str]) -> None:
        """Load it. Engine thread."""
        self.current.open(recorded)

    def open_batch(self, chunk_tokens: int = 256) -> Batch:
        """Return an empty batch of it. Engine thread."""
        return self.current.open_batch(chunk_tokens)

    def close(self) -> None:
        """Drop it. Engine thread."""
        self.current.close()

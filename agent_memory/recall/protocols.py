"""What context memory asks of others: a redactor, an embedder, a counter of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import frozen

if TYPE_CHECKING:
    import numpy as np

#: Counts the tokens of a text as the resident model does.
TokenCounter = Callable[[str], int]


@frozen
class Found:
    """One secret that a redactor replaced. Holds no part of the secret."""

    kind: str  #: "email", "openai-key" ...
    start: int  #: of the placeholder in the redacted text, inclusive
    stop: int  #: exclusive


@frozen
class Redacted:
    """A text without its secrets, and what was replaced in it."""

    text: str
    found: tuple[Found, ...] = ()


@runtime_checkable
class Redactor(Protocol):
    """Takes secrets out of a text before anything is written. Thread-safe, in linear time."""

    def redact(self, text: str) -> Redacted:
        """Return ``text`` with a placeholder for each secret; equal secrets get equal placeholders.

        What it returns is a fixed point: redacting it again changes nothing.
        """


@frozen
class Extracted:
    """A typed item that an extractor found: characters [start, stop) of the text that it was given."""

    kind: str  #: decision, task, preference, instruction, requirement, constraint, fact or event
    start: int
    stop: int


@runtime_checkable
class Extractor(Protocol):
    """Finds typed items that rules miss, in idle time. May be slow and may fail: nothing stands on it."""

    @property
    def name(self) -> str:
        """Names model and version; kept with each item as ``Item.found_by``."""

    def extract(self, text: str) -> Sequence[Extracted]:
        """Return the items of ``text``, up to 1,200 characters that a person wrote, in whole sentences."""


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors of one length. Thread-safe."""

    @property
    def dim(self) -> int:
        """Numbers in a vector."""

    @property
    def fingerprint(self) -> str:
        """Names model and settings: vectors of two fingerprints are never compared."""

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return one vector a text: (len(texts), dim) float32, each of length 1 (zero where a text has no words)."""

"""The matcher that follows a reply through a grammar and says which ids may come next: llguidance's, an extra."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from agent_memory.errors import INSTALL, MissingExtraError, UnsupportedParameterError
from agent_memory.protocols import Tokenizer


def llguidance() -> ModuleType:
    """The package. Raises MissingExtraError."""
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError(
            f"forced tool choices, strict tools and schema= need one more package: {INSTALL['grammar']}"
        ) from error
    return llguidance


class Matcher:
    """Follows one reply through a grammar, id by id. Not thread-safe."""

    def __init__(self, inner: Any, vocabulary: Any) -> None:
        self._inner, self._vocabulary = inner, vocabulary
        self._words = np.zeros((vocabulary.vocab_size + 31) // 32, np.uint32)
        self._check()

    @classmethod
    def of(cls, grammar: str, vocabulary: Any) -> Matcher:
        """Compile a grammar; milliseconds. Raises UnsupportedParameterError where it does not compile."""
        return cls(llguidance().LLMatcher(vocabulary, grammar, log_level=0), vocabulary)

    def copy(self) -> Matcher:
        """Another one, where this one is; microseconds."""
        return Matcher(self._inner.deep_copy(), self._vocabulary)

    @property
    def n_words(self) -> int:
        """How many words a mask has."""
        return len(self._words)

    def accept(self, token: int) -> None:
        """Go on by one id. Raises UnsupportedParameterError where it is not one that the mask allowed.

        Behind the end anything goes: a batch computes one id more than a row is read for.
        """
        if not self._inner.is_stopped():
            self._inner.consume_token(token)
            self._check()

    def skip(self, text: str) -> bool:
        """Go on by a text that is written already; False, and unchanged, where the grammar has no such beginning."""
        ids = self._vocabulary.tokenize_str(text, parse_special=True)
        return self._inner.validate_tokens(ids) == len(ids) and bool(self._inner.consume_tokens(ids))

    def mask(self) -> np.ndarray[Any, Any]:
        """A bit for each id that may come next, lowest bit first, as u32 words; the same array every time."""
        self._inner.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check()
        return self._words

    def ahead(self, token: int, n_ids: int) -> list[int]:
        """Return ids of the text that the grammar forces after ``token``, at most ``n_ids``; changes nothing.

        The text is certain, its ids are not: other ids may spell it, so the model's own choice must be asked.
        """
        inner = self._inner.deep_copy()
        if inner.is_stopped() or not inner.consume_token(token) or inner.is_stopped():
            return []
        written = inner.compute_ff_bytes()
        return list(self._vocabulary.tokenize_bytes(written)[:n_ids]) if written else []

    def masks(self, ids: Sequence[int]) -> list[np.ndarray[Any, Any]]:
        """Return the mask after each of ``ids`` in turn, up to the first that is not allowed; changes nothing."""
        twin, out = self.copy(), []
        for token in ids:
            if twin.is_stopped or not twin._inner.validate_tokens([token]):
                break
            try:
                twin.accept(token)
                if twin.is_stopped:
                    break
                out.append(twin.mask().copy())
            except UnsupportedParameterError:  # raised again if the reply comes this far
                break
        return out

    @property
    def is_accepting(self) -> bool:
        """True if the reply may end here."""
        return bool(self._inner.is_accepting())

    @property
    def is_stopped(self) -> bool:
        """True if it can only end here."""
        return bool(self._inner.is_stopped())

    def _check(self) -> None:
        if self._inner.is_error():
            error = str(self._inner.get_error()).partition("\n")[0]
            raise UnsupportedParameterError(f"this reply cannot be held to its schema: {error}")


def vocabulary_of(tokenizer: Tokenizer) -> Any:
    """What llguidance needs of a tokenizer: some 0.3 s for 50,000 ids. Raises UnsupportedParameterError."""
    vocabulary, ends = tokenizer.vocabulary, sorted(tokenizer.eos_ids)
    if isinstance(vocabulary, str):
        return llguidance().LLTokenizer(vocabulary, eos_token=ends or None)
    return llguidance().LLTokenizer(_Bytes(tokenizer, vocabulary), eos_token=ends)


class _Bytes:
    """A tokenizer given as the bytes of its ids, with the attributes that llguidance looks for."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[bytes]) -> None:
        self.eos_token_id, self.bos_token_id = min(tokenizer.eos_ids), tokenizer.bos_id
        self.tokens, self.special_token_ids = list(pieces), sorted(tokenizer.special_ids)
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)

"""What a forced reply may say next: its grammar, behind whatever reasoning the template has opened."""

from __future__ import annotations

from typing import Any

import numpy as np

from agent_memory.protocols import Tokenizer
from agent_memory.toolcall.grammar import Matcher


class Forced:
    """The Constraint of a reply that is one grammar's and nothing else. Engine thread only.

    ``closing``: the mark at which reasoning ends that the prompt has begun, "" for none. Up to there everything but the
    end of the reply is allowed.
    """

    def __init__(self, matcher: Matcher, tokenizer: Tokenizer, closing: str = "") -> None:
        self._matcher, self._closing = matcher, closing
        self._stream = tokenizer.detokenizer(marks=True)
        self._tail = ""  # of the reasoning: what the closing mark may have begun in
        self._goes_on = np.full(matcher.n_words, 2**32 - 1, np.uint32)
        for end in tokenizer.eos_ids:
            self._goes_on[end // 32] &= ~np.uint32(1 << end % 32)

    def accept(self, token: int) -> None:
        """One id more. Raises UnsupportedParameterError where the mask did not allow it."""
        if not self._closing:
            self._matcher.accept(token)
            return
        self._tail += self._stream.add(token)
        if self._closing in self._tail:
            self._closing = ""
        else:
            self._tail = self._tail[-len(self._closing) :]

    def mask(self) -> np.ndarray[Any, Any]:
        """The ids that may come next."""
        return self._goes_on if self._closing else self._matcher.mask()

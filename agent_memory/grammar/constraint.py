"""What a reply may say next: one that is forced, from its beginning; a free one, where it has opened a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agent_memory.errors import UnsupportedParameterError
from agent_memory.grammar.matcher import Matcher
from agent_memory.protocols import Tokenizer
from agent_memory.toolcall.forms import Form
from agent_memory.toolcall.parser import ToolParser


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

    def ahead(self, token: int, n_ids: int) -> Sequence[int]:
        """Ids of the text that must follow ``token``; () within reasoning."""
        return () if self._closing else self._matcher.ahead(token, n_ids)

    def masks(self, ids: Sequence[int]) -> Sequence[np.ndarray[Any, Any]]:
        """The masks after each of ``ids``; () within reasoning."""
        return () if self._closing else self._matcher.masks(ids)


class HeldCalls:
    """The Constraint of a reply that is free but for its calls. Engine thread only.

    - ``parser``, one of its own, says where a call opens; from there to its end a grammar holds it.
    - ``matcher`` gives the one for a form once the model has opened a call of it; None: the form cannot be held.
    - Where the token that opens a call has written more, and no tool fits that, the call is left free: whoever reads
      the reply rejects it.
    - A call that its grammar loses on the way ends the row where it was promised (``is_promised``), else it goes on
      free.
    """

    def __init__(
        self, parser: ToolParser, tokenizer: Tokenizer, matcher: Callable[[Form], Matcher | None], *, is_promised: bool
    ) -> None:
        self._parser, self._matcher_of, self._is_promised = parser, matcher, is_promised
        self._stream = tokenizer.detokenizer(marks=True)
        self._matcher: Matcher | None = None
        self._is_lost = False

    def accept(self, token: int) -> None:
        """One id more. Raises UnsupportedParameterError where a promised call's mask did not allow it."""
        self._parser.feed(self._stream.add(token))
        if self._matcher is not None:
            try:
                self._matcher.accept(token)
            except UnsupportedParameterError as error:
                self._lose(error)
            else:
                self._matcher = None if self._matcher.is_stopped else self._matcher
        elif self._is_lost:
            self._is_lost = self._parser.in_call
        elif opened := self._parser.opened:
            form, written = opened
            matcher = self._matcher_of(form)
            self._is_lost = matcher is None or not matcher.skip(written)
            self._matcher = None if self._is_lost else matcher

    def mask(self) -> np.ndarray[Any, Any] | None:
        """The ids that may come next; None outside calls. Raises as ``accept`` does."""
        try:
            return self._matcher.mask() if self._matcher is not None else None
        except UnsupportedParameterError as error:
            self._lose(error)
            return None

    def ahead(self, token: int, n_ids: int) -> Sequence[int]:
        """Ids of the text that must follow ``token``; () outside calls."""
        return () if self._matcher is None else self._matcher.ahead(token, n_ids)

    def masks(self, ids: Sequence[int]) -> Sequence[np.ndarray[Any, Any]]:
        """The masks after each of ``ids``, up to the call's end; () outside calls."""
        return () if self._matcher is None else self._matcher.masks(ids)

    def _lose(self, error: UnsupportedParameterError) -> None:
        if self._is_promised:
            raise error
        self._matcher, self._is_lost = None, True

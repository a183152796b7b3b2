"""Why KV of a prompt is missing: lost, never kept, another model's or tenant's, or the prompt differs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import field, frozen

from agent_memory.kvcache.layout import Layout
from agent_memory.scheduler.request import Prompt, Why
from agent_memory.scheduler.unkept import Unkept
from agent_memory.store.store import Store
from agent_memory.types import MissCause

log = logging.getLogger("agent_memory.reuse")
Ids = np.ndarray[Any, Any]
Other = tuple[int, Ids]  #: where a prompt differs from computed ids, and these ids from there on

_NOT_STORED: tuple[MissCause, str] = ("not_stored", "the KV was not kept: it was neither in memory nor written")
_FROM_MEMORY: tuple[MissCause, str] = ("evicted", "the KV was evicted from memory, and there is no disk tier")
_UNWRITTEN: tuple[MissCause, str] = ("not_stored", "the KV was evicted from memory and had not been written")
#: ``Match.stopped`` -> cause and sentence.
_STOPPED: dict[str, tuple[MissCause, str]] = {
    "damaged": ("damaged", "a stored file was damaged, and was dropped with all that depends on it"),
    "missing": ("damaged", "a stored file was missing or of another size, and all that depends on it was dropped"),
    "unreadable": ("not_stored", "a stored file cannot be read just now; it stays, and is tried again"),
    "evicted": ("evicted", "the KV was evicted to keep the disk within its budget"),
    "no snapshot": ("not_stored", "layers that cannot be truncated have no stored state at that position"),
}
_SHARE = 0.5  #: least share of a prompt that another one must have in common to explain a miss


@frozen
class Loss:
    """What a look-up knows of a miss; ``why`` reads texts as well, and may wait until the reply is done.

    ``explain`` None: ``known`` is the whole answer. Else ``known`` is the answer if the texts tell nothing.
    """

    known: Why | None = None
    explain: Callable[[int, Ids], Why] | None = field(default=None, repr=False)
    other: Other = field(default=(0, np.zeros(0, np.uint32)), repr=False, eq=False)
    is_near: bool = False  #: True if the two prompts share so little that they may be unrelated

    def why(self) -> Why | None:
        """Return the cause, with texts; None if there was no miss. Milliseconds: renders the chat template."""
        if self.explain is None:
            return self.known
        try:
            found: Why | None = self.explain(*self.other)
        except Exception as error:  # noqa: BLE001 - a miss that cannot be explained ends no request
            log.warning("a miss could not be explained: %s", type(error).__name__)
            return self.known
        if found is not None and self.is_near and not found.is_alike:
            found = None
        return found if found is not None and (self.known is None or found.cause != "never_seen") else self.known


class Losses:
    """Explains why no more of a prompt's KV exists. Engine thread only; reads no KV and changes nothing.

    The first of these that holds:
    - KV that the agent's turns had computed is gone;
    - the prompt differs from its agent's log;
    - a request with more of the prompt was cancelled, or its KV was evicted from memory without a copy;
    - the prompt differs from another stored one, for a cause that the text shows;
    - a stored file was lost at that position, or another model or tenant has the KV.
    """

    def __init__(self, unkept: Unkept, store: Store, layout: Layout) -> None:
        self._unkept, self._store, self._layout = unkept, store, layout

    def of(self, prompt: Prompt, wanted: Ids, n_tokens: int, stopped: str | None, other: Other | None) -> Loss:
        """Return why only ``n_tokens`` of ``wanted`` have KV. ``other``: ids from which the prompt differs."""
        if is_lost(prompt, len(wanted), n_tokens):
            return Loss(Why(*self._reason(prompt, stopped)))
        if n_tokens >= len(wanted):
            return Loss()
        if prompt.explain is None and prompt.why is not None and n_tokens < prompt.n_logged:
            return Loss(prompt.why)
        at = other[0] if other is not None else n_tokens
        if (why := self._unkept_why(wanted, n_tokens, at)) is not None:
            return Loss(why)
        known = Why(*_STOPPED[stopped]) if prompt.explain is not None and stopped in _STOPPED else None
        known = known or self._elsewhere(wanted, max(n_tokens, at))
        if prompt.explain is None or other is None:
            return Loss(known)
        return Loss(known, prompt.explain, other, at < self._store.chunk_tokens)

    def _reason(self, prompt: Prompt, stopped: str | None) -> tuple[MissCause, str]:
        if prompt.why is not None and prompt.why.cause == "forgotten":  # the KV before the card went with it
            return prompt.why.cause, prompt.why.detail
        if prompt.foreign:
            return "other_model", "the agent's turns so far ran under another model, whose KV is no use to this one"
        if not self._layout.is_storable:
            return "not_stored", f"KV of the kind {self._layout.unstored[0]} can be neither stored nor truncated"
        if stopped:
            return _STOPPED.get(stopped, ("damaged", stopped))
        return _NOT_STORED if self._store.has_disk else _FROM_MEMORY

    def _unkept_why(self, wanted: Ids, n_tokens: int, at: int) -> Why | None:
        found = self._unkept.longest(wanted)
        if found is None:
            return None
        gone, shared = found
        is_whole = shared >= min(len(gone.ids), len(wanted))
        if shared <= max(n_tokens, at) or not (is_whole or shared >= n_tokens + self._least(wanted)):
            return None
        n_lost = f"{shared - n_tokens:,} tokens of it are computed now"
        if gone.reason == "cancelled":
            return Why("cancelled", f"a request with this prompt ended before all of it was computed; {n_lost}")
        cause, detail = _UNWRITTEN if self._store.has_disk else _FROM_MEMORY
        return Why(cause, f"{detail}; {n_lost}")

    def _elsewhere(self, wanted: Ids, n_tokens: int) -> Why | None:
        """Return the cause if the same ids are stored for another model or another tenant; else None."""
        if n_tokens >= self._store.chunk_tokens:
            return None
        found = self._store.elsewhere(wanted)
        if found is None or found.n_tokens <= n_tokens or found.n_tokens < self._least(wanted):
            return None
        whose = "another model" if found.whose == "other_model" else "another tenant (Config.salt)"
        return Why(found.whose, f"{found.n_tokens:,} of these tokens are stored as KV of {whose}, which is not shared")

    def _least(self, wanted: Ids) -> float:
        return min(self._store.chunk_tokens, _SHARE * len(wanted))


def is_lost(prompt: Prompt, n_wanted: int, n_tokens: int) -> bool:
    """True if KV that the agent's turns had computed is missing."""
    return n_tokens < min(prompt.known, n_wanted) or (prompt.foreign and not n_tokens)

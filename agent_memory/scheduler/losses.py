"""Why a prompt's KV is not there: lost, never kept, somebody else's, or left by the prompt itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
Other = tuple[int, Sequence[int]]  #: where a prompt leaves computed ids, and those from there on

_NOT_STORED: tuple[MissCause, str] = ("not_stored", "the KV was not kept: it was neither in memory nor written")
_FROM_MEMORY: tuple[MissCause, str] = ("evicted", "the KV was evicted from memory, and there is no disk tier")
_UNWRITTEN: tuple[MissCause, str] = ("not_stored", "the KV was evicted from memory and had not been written")
#: Why a stored lineage ends, as the store remembers it.
_STOPPED: dict[str, tuple[MissCause, str]] = {
    "damaged": ("damaged", "a stored file was damaged, and was dropped with all that depends on it"),
    "missing": ("damaged", "a stored file was missing or of another size, and all that depends on it was dropped"),
    "unreadable": ("not_stored", "a stored file cannot be read just now; it stays, and is tried again"),
    "evicted": ("evicted", "the KV was evicted to keep the disk within its budget"),
    "no snapshot": ("not_stored", "layers that cannot be truncated have no stored state at that position"),
}
_SHARE = 0.5  #: of a prompt, below which the beginning that another one shares says nothing of it


@frozen
class Loss:
    """What was seen of a miss when the prompt was looked up; ``why`` reads texts, and may wait until the reply is done.

    ``explain`` None: ``known`` says it all. Else ``known`` holds where the texts tell nothing.
    """

    known: Why | None = None
    explain: Callable[[int, Sequence[int]], Why] | None = field(default=None, repr=False)
    other: Other = field(default=(0, ()), repr=False)
    is_near: bool = False  #: True if so little is shared that the two may be strangers

    def why(self) -> Why | None:
        """The cause, with texts; None where nothing was lost or left. Milliseconds: renders the chat template."""
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
    """Says why no more of a prompt's KV is there. Engine thread only; reads no KV and changes nothing.

    In this order:
    - KV that the agent's turns had computed is gone;
    - the prompt leaves its agent's log;
    - a longer part of it was cancelled, or evicted from memory without a copy;
    - it leaves what is stored of others, for a cause that its text shows;
    - a stored file was lost there; another model or tenant has it.
    """

    def __init__(self, unkept: Unkept, store: Store, layout: Layout) -> None:
        self._unkept, self._store, self._layout = unkept, store, layout

    def of(self, prompt: Prompt, wanted: Ids, n_tokens: int, stopped: str | None, other: Other | None) -> Loss:
        """Why no more than ``n_tokens`` of ``wanted`` are there. ``other``: ids that the prompt leaves."""
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
        """The same ids are stored, and are another model's or another tenant's."""
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
    """True if KV that the agent's turns had computed is not there."""
    return n_tokens < min(prompt.known, n_wanted) or (prompt.foreign and not n_tokens)

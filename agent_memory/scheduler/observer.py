"""Observer: what the scheduler reports of requests and KV while it works."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent_memory.scheduler.request import Request
from agent_memory.types import Tier, Usage


class Observer:
    """Receives a call for each thing that the scheduler has done. This class ignores every call: subclass it.

    - ``queued`` comes on the caller's thread, ``ended`` on the one that ends the request, all others on the engine's.
    - Of each request: ``queued``, at most one ``started``, its steps, and one ``ended``, whatever happens.
    - A method returns at once and never raises.
    - Times are of ``time.perf_counter``. ``owner`` is an agent's name, or None.
    """

    def queued(self, request: Request) -> None:
        """A request was submitted."""

    def started(self, request: Request, usage: Callable[[], Usage]) -> None:
        """A request has its row, and the KV that it starts from. ``usage``: its figures so far, until it has ended."""

    def fetched(self, request: Request, n_tokens: int, n_bytes: int, began: float) -> None:
        """A request has asked the bucket at ``began``, and takes up KV of ``n_tokens``; 0: it goes on without."""

    def prefilled(self, request: Request, start: int, stop: int, began: float) -> None:
        """The prompt ids ``[start, stop)`` of a request were fed."""

    def decoded(self, requests: Sequence[Request], began: float) -> None:
        """One decode step of one group gave each of these requests tokens, or fed the last id of its prompt."""

    def ended(self, request: Request) -> None:
        """A request has ended; its feed says how. The caller has not seen the end yet."""

    def saved(self, owner: str | None, n_tokens: int, to: Tier, began: float) -> None:
        """KV of ``n_tokens`` was handed to the store's I/O thread (``to`` "cold") or copied to warm."""

    def evicted(self, owner: str | None, n_tokens: int, n_bytes: int, to: Tier, began: float) -> None:
        """An idle lineage was evicted from hot. ``to``: the fastest tier that has its KV now; "none" where none has."""

    def faulted(self, error: BaseException) -> None:
        """A step of the model raised, or an exception struck the engine's thread."""

    def closed(self) -> None:
        """The engine has ended; no request is left. The last call but ``queued`` and ``ended`` of refused requests."""

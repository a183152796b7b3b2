"""A runner whose batch, and whose KV, raise or wait where a test says so: faults in the seam of protocols.py."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agent_memory.protocols import ModelRunner
from tests.parts.waiting import PATIENCE_S, wait_for


class Fault(Exception):
    """What a planned call raises."""


class Faults:
    """What happens at the next calls of a runner's batches, by the call's name. Any thread."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.kvs: weakref.WeakSet[Faulty] = weakref.WeakSet()  #: every KV that was handed out and is still held
        self._planned: dict[str, list[tuple[int, BaseException]]] = {}
        self._gates: dict[str, threading.Event] = {}
        self._held: set[str] = set()

    def fail(self, call: str, *, after: int = 0, error: BaseException | None = None) -> BaseException:
        """Let ``call`` raise once, after it went well ``after`` times more; what it will raise."""
        error = error or Fault(f"planned in {call}")
        self._planned.setdefault(call, []).append((self.calls[call] + after, error))
        return error

    @property
    def held_bytes(self) -> int:
        """Allocated bytes of all KV that the engine, its rows and the hot tier hold. Engine thread."""
        return sum({id(kv._real): int(kv.nbytes) for kv in self.kvs}.values())

    @contextmanager
    def hold(self, call: str) -> Iterator[None]:
        """The engine thread waits at the next ``call`` while the block runs, which starts when it has come there."""
        gate = self._gates[call] = threading.Event()
        try:
            wait_for(lambda: call in self._held, f"the engine to come to {call}")
            yield
        finally:
            del self._gates[call]
            gate.set()
            self._held.discard(call)

    def reached(self, call: str) -> None:
        """Called by the batch: waits, raises, or does nothing."""
        gate = self._gates.get(call)
        if gate is not None:
            self._held.add(call)
            gate.wait(PATIENCE_S)
        number = self.calls[call]
        self.calls[call] += 1
        for due in self._planned.get(call, []):
            if due[0] <= number:
                self._planned[call].remove(due)
                raise due[1]


class Faulty:
    """A Batch or a KV before which ``Faults`` stand; everything else is the real one's.

    Every decode step of such a batch is a ``step``: none is passed by in a verified draft. A pass that feeds the last
    ids and gives the first token is a ``prefill`` and an ``insert``.
    """

    def __init__(self, real: Any, faults: Faults) -> None:
        self._real, self._faults = real, faults

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if not callable(value):
            return value
        if name == "can_verify":
            return lambda group: False

        def call(*args: Any, **named: Any) -> Any:
            if name == "insert" and len(args[2]) - args[1].n_tokens > 1:
                self._faults.reached("prefill")
            self._faults.reached(name)
            given = [a._real if isinstance(a, Faulty) else a for a in args]
            result = value(*given, **named)
            return [self._kv(one) for one in result] if isinstance(result, list) else self._kv(result)

        return call

    def _kv(self, result: Any) -> Any:
        """A KV becomes a faulty one; anything else stays what it is."""
        if not hasattr(result, "trim"):
            return result
        kv = Faulty(result, self._faults)
        self._faults.kvs.add(kv)
        return kv


def with_faults(runner: ModelRunner, faults: Faults | None = None) -> Faults:
    """Let every batch that ``runner`` opens from now on be faulty; where to plan what happens."""
    faults, really_open = faults or Faults(), runner.open_batch

    def open_batch(chunk_tokens: int) -> Any:
        faults.reached("open_batch")
        return Faulty(really_open(chunk_tokens), faults)

    runner.open_batch = open_batch  # type: ignore[method-assign]
    return faults

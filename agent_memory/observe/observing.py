"""Observing: what a Memory keeps of what its engine does, and who is told of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define

from agent_memory.config import Config
from agent_memory.log.versions import shown_name
from agent_memory.observe.hook import Hook
from agent_memory.observe.meters import Meters
from agent_memory.observe.recorder import Recorder
from agent_memory.observe.trace import Begin, End, Ring, Step
from agent_memory.scheduler.observer import Observer
from agent_memory.scheduler.request import Request
from agent_memory.sealing.keys import Keys
from agent_memory.types import Tier, Usage

log = logging.getLogger("agent_memory.requests")

#: A running request has a line in the recorder this often.
_EVERY_S = 1.0


@define
class _Open:
    """A request that has not ended."""

    usage: Callable[[], Usage] | None = None  #: None until it starts
    recorded: float = 0.0  #: when its last ``decode`` line was written


class Observing(Observer):
    """Feeds the meters, the trace's ring, the recorder and the reply hook; see ``Observer`` for the threads.

    Costs some microseconds a request and less than one a token; the recorder adds its lines.
    """

    def __init__(self, config: Config, keys: Keys | None = None) -> None:
        self.zero, self.started_s = time.perf_counter(), time.time()
        self.meters, self.ring = Meters(), Ring()
        self.recorder = Recorder(config.recorder, keys) if config.recorder is not None else None
        self.hook = Hook(config.on_reply, config.callable_timeout_s) if config.on_reply is not None else None
        self.fault: tuple[str, float] | None = None  #: the newest fault since the last reply: its kind, and when
        self._open: dict[str, _Open] = {}

    def queued(self, request: Request) -> None:
        """Note a request."""
        id = request.feed.id
        self._open[id] = _Open()
        if self.hook is not None:
            self.hook.start()
        if self.recorder is not None:
            asked = {"max_tokens": request.max_tokens, "priority": request.priority}
            self.recorder.write("queued", {"id": id, "agent": shown_name(request.owner), **asked})

    def started(self, request: Request, usage: Callable[[], Usage]) -> None:
        """Note what a request starts from."""
        so_far, id = usage(), request.feed.id
        if (one := self._open.get(id)) is not None:
            one.usage, one.recorded = usage, time.perf_counter()
        self.ring.add(Begin(id, shown_name(request.owner), request.created, so_far))
        if self.recorder is not None:
            self.recorder.write("start", {"id": id, **_chosen(so_far, _AT_START)})

    def fetched(self, request: Request, n_tokens: int, n_bytes: int, began: float) -> None:
        """Note what came out of the bucket for a request, and how long it waited."""
        if self.recorder is not None:  # the trace shows what the engine did, and it did nothing
            found = {"tokens": n_tokens, "bytes": n_bytes, "s": _s(time.perf_counter() - began)}
            self.recorder.write("fetch", {"id": request.feed.id, **found})

    def prefilled(self, request: Request, start: int, stop: int, began: float) -> None:
        """Note a prefill step."""
        now, id = time.perf_counter(), request.feed.id
        self.ring.add(Step("prefill", began, now, shown_name(request.owner), (id,), {"start": start, "stop": stop}))
        if self.recorder is not None:
            self.recorder.write("prefill", {"id": id, "start": start, "stop": stop, "s": _s(now - began)})

    def decoded(self, requests: Sequence[Request], began: float) -> None:
        """Note a decode step."""
        now = time.perf_counter()
        ids = tuple([request.feed.id for request in requests])
        self.ring.add(Step("decode", began, now, None, ids))
        if self.recorder is None:
            return
        for id in ids:
            one = self._open.get(id)
            if one is not None and one.usage is not None and now - one.recorded >= _EVERY_S:
                one.recorded = now
                self.recorder.write("decode", {"id": id, "output_tokens": one.usage().output_tokens})

    def ended(self, request: Request) -> None:
        """Note how a request ended, and hand its reply to the hook."""
        now, feed, agent = time.perf_counter(), request.feed, shown_name(request.owner)
        reply, one, total_s = feed.reply, self._open.get(feed.id), now - request.created
        if reply is not None:
            usage: Usage | None = reply.usage
        else:
            usage = one.usage() if one is not None and one.usage is not None else None
        error = None if feed.error is None else type(feed.error).__name__
        self.meters.ended(feed.state, agent, None if reply is None else usage, total_s)
        self.ring.add(End(feed.id, agent, request.created, now, feed.state, usage))
        if self.recorder is not None:
            how = {"state": feed.state, "error": error, "finish": None if reply is None else reply.finish}
            figures = {} if usage is None else _chosen(usage, _AT_END)
            self.recorder.write("end", {"id": feed.id, "agent": agent, **how, "s": _s(total_s), **figures})
        self._open.pop(feed.id, None)  # from here on ``closed`` writes no end for it
        log.debug("request end id=%s agent=%r state=%s error=%s s=%.3f", feed.id, agent, feed.state, error, total_s)
        if reply is not None:
            self.fault = None
            if self.hook is not None:
                self.hook.put(reply)

    def saved(self, owner: str | None, n_tokens: int, to: Tier, began: float) -> None:
        """Note KV on its way to disk or in warm."""
        self._step("save", began, {"agent": shown_name(owner), "tokens": n_tokens, "to": to})

    def evicted(self, owner: str | None, n_tokens: int, n_bytes: int, to: Tier, began: float) -> None:
        """Note KV that has left hot."""
        self._step("evict", began, {"agent": shown_name(owner), "tokens": n_tokens, "bytes": n_bytes, "to": to})

    def faulted(self, error: BaseException) -> None:
        """Note a step that raised."""
        now, kind = time.perf_counter(), type(error).__name__
        self.fault = (kind, now)
        self.meters.faults += 1
        self._step("fault", now, {"error": kind})

    def closed(self) -> None:
        """Close the recorder, every request with an end, and let the hook have what waits."""
        if self.recorder is not None:
            for id in list(self._open):
                self.recorder.write("end", {"id": id, "agent": None, "state": "failed", "error": "ClosedError"})
            self.recorder.close()
        if self.hook is not None:
            self.hook.close()

    def _step(self, name: str, began: float, args: Mapping[str, Any]) -> None:
        now = time.perf_counter()
        self.ring.add(Step(name, began, now, args=args))
        if self.recorder is not None:
            self.recorder.write(name, {**args, "s": _s(now - began)})


#: Figures of a request in its ``start`` line, and in its ``end`` line.
_AT_START = ("prompt_tokens", "cached_tokens", "tier", "exactness", "miss", "queue_s", "restore_s")
_AT_END = (
    "prompt_tokens",
    "cached_tokens",
    "computed_tokens",
    "output_tokens",
    "tier",
    "exactness",
    "miss",
    "replaced_messages",
    "ttft_s",
    "queue_s",
    "restore_s",
    "prefill_s",
    "decode_tps",
)


def _chosen(usage: Usage, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(usage, name) for name in names}
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def _s(seconds: float) -> float:
    return round(seconds, 6)

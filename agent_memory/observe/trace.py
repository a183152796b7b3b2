"""``Memory.trace()``: what the engine did lately, as Chrome trace events, which Perfetto and chrome://tracing open."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

from attrs import field, frozen

from agent_memory.config import as_path
from agent_memory.usage import Usage

#: Things that the ring keeps: the newest.
MOST_STEPS = 32_768
_ENGINE, _OTHERS = 1, 2  #: numbers of tracks


@frozen
class Step:
    """One thing that the engine did. Times are of ``time.perf_counter``."""

    name: str  #: prefill, decode, save, evict, fault
    began: float
    ended: float
    owner: str | None = None  #: the agent
    requests: tuple[str, ...] = ()  #: ids
    args: Mapping[str, Any] = field(factory=dict)


@frozen
class Begin:
    """A request that has started; ``usage`` is of that moment."""

    id: str
    owner: str | None
    created: float
    usage: Usage


@frozen
class End:
    """A request that has ended; ``usage``: of its reply, or its figures so far; None where it never started."""

    id: str
    owner: str | None
    created: float
    ended: float
    state: str
    usage: Usage | None


Entry = Step | Begin | End


class Ring:
    """The newest things that the engine did. Any thread adds and reads; less than a microsecond each."""

    def __init__(self, n_most: int = MOST_STEPS) -> None:
        self._entries: deque[Entry] = deque(maxlen=n_most)
        self.add = self._entries.append

    def entries(self) -> list[Entry]:
        """A copy, the oldest first."""
        while True:
            try:
                return list(self._entries)
            except RuntimeError:  # an entry was added meanwhile
                continue


@frozen(kw_only=True)
class Trace:
    """Chrome trace events of the newest requests and engine steps. No text of prompts or replies; agents by name."""

    events: tuple[Mapping[str, Any], ...] = field(repr=False)  #: times in microseconds since the Memory was opened
    n_requests: int
    seconds: float  #: from the first event to the last

    def to_json(self) -> str:
        """Return the file that ui.perfetto.dev and chrome://tracing open."""
        return json.dumps({"traceEvents": list(self.events), "displayTimeUnit": "ms"})

    def save(self, path: str | PathLike[str]) -> Path:
        """Write that file; return its absolute path. Raises ConfigError for no path, OSError as writing does."""
        target = as_path(path, "path")
        target.write_text(self.to_json(), encoding="utf-8")
        return target


def trace_of(entries: Iterable[Entry], *, title: str, zero: float, now: float) -> Trace:
    """Return the trace of some entries. ``zero``: the time that counts as 0; ``now``: when the entries were read."""
    found = list(entries)
    tracks = _Tracks()
    slices = [*_engine_slices(found), *_request_slices(found, now)]
    events: list[dict[str, Any]] = []
    for group, outer in slices:
        tid = tracks.tid(group, outer[0])
        for one in outer:
            events.append(
                {
                    "name": one.name,
                    "cat": "engine" if group is None else group[0],
                    "ph": "X",
                    "pid": 1,
                    "tid": tid,
                    "ts": _us(one.began, zero),
                    "dur": max(0.0, _us(one.ended, zero) - _us(one.began, zero)),
                    "args": {**({"requests": list(one.requests)} if one.requests else {}), **one.args},
                }
            )
    events += _counted(found, zero)
    events.sort(key=lambda event: (event["ts"], -event.get("dur", 0.0)))
    seconds = (max(e["ts"] + e.get("dur", 0.0) for e in events) - events[0]["ts"]) / 1e6 if events else 0.0
    n_requests = len({one.id for one in found if not isinstance(one, Step)})
    return Trace(events=(*tracks.names(title), *events), n_requests=n_requests, seconds=seconds)


#: What a track belongs to: (category, name); None is the engine's own.
Group = tuple[str, str] | None


class _Tracks:
    """Numbers of tracks. Slices of one track nest: one that overlaps another of its group gets a track beside it."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str], list[tuple[int, float]]] = {}  # (number, when it is free) of each
        self._n = _OTHERS

    def tid(self, group: Group, outer: Step) -> int:
        if group is None:
            return _ENGINE
        lanes = self._lanes.setdefault(group, [])
        for index, (tid, free) in enumerate(lanes):
            if free <= outer.began:
                lanes[index] = (tid, outer.ended)
                return tid
        tid, self._n = self._n, self._n + 1
        lanes.append((tid, outer.ended))
        return tid

    def names(self, title: str) -> Iterator[dict[str, Any]]:
        yield _meta("process_name", 0, {"name": title})
        yield from _named(_ENGINE, "engine")
        for (_, name), lanes in self._lanes.items():
            for number, (tid, _) in enumerate(lanes, 1):
                yield from _named(tid, name if number == 1 else f"{name} ({number})")


def _named(tid: int, name: str) -> Iterator[dict[str, Any]]:
    yield _meta("thread_name", tid, {"name": name})
    yield _meta("thread_sort_index", tid, {"sort_index": tid})


def _meta(what: str, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": 1, "tid": tid, "ts": 0, "args": args}


def _us(at: float, zero: float) -> float:
    return round((at - zero) * 1e6, 1)


def _engine_slices(entries: Iterable[Entry]) -> Iterator[tuple[Group, list[Step]]]:
    steps = sorted((one for one in entries if isinstance(one, Step)), key=lambda one: one.began)
    for one in steps:
        yield (("saves", "saves") if one.name == "save" else None), [one]


def _request_slices(entries: Sequence[Entry], now: float) -> Iterator[tuple[Group, list[Step]]]:
    """Of each request one slice with its phases in it, the earliest request first."""
    begins = {one.id: one for one in entries if isinstance(one, Begin)}
    ends = {one.id: one for one in entries if isinstance(one, End)}
    decoded = {id: one.began for one in reversed(entries) if _is_decode(one) for id in one.requests}
    running = [one for id, one in begins.items() if id not in ends]
    requests: list[Begin | End] = [*ends.values(), *running]
    for one in sorted(requests, key=lambda one: one.created):
        last, state = (one.ended, one.state) if isinstance(one, End) else (now, "running")
        begin = begins.get(one.id)
        usage = one.usage or (begin.usage if begin is not None else None)
        first = decoded.get(one.id)
        if isinstance(one, End) and one.usage is not None and one.usage.output_tokens:
            first = one.created + one.usage.ttft_s
        args = {"id": one.id, "agent": one.owner, "state": state, **({} if usage is None else _figures(usage))}
        group = ("agent", one.owner) if one.owner is not None else ("no agent", "no agent")
        yield group, [Step("request", one.created, last, args=args), *_phases(one.created, first, last, usage)]


def _is_decode(entry: Entry) -> TypeGuard[Step]:
    return isinstance(entry, Step) and entry.name == "decode"


def _phases(created: float, first: float | None, last: float, usage: Usage | None) -> Iterator[Step]:
    """The phases of a request. ``first``: the time of its first token, if it has one."""
    if usage is None:  # it never started
        yield Step("queue", created, last)
        return
    started = min(created + usage.queue_s, last)
    restored = min(started + usage.restore_s, last)
    prefilled = last if first is None else min(max(first, restored), last)
    yield Step("queue", created, started)
    yield Step("restore", started, restored, args={"tier": usage.tier, "cached_tokens": usage.cached_tokens})
    yield Step("prefill", restored, prefilled, args={"computed_tokens": usage.computed_tokens})
    if first is not None:
        yield Step("decode", prefilled, last, args={"output_tokens": usage.output_tokens})


def _figures(usage: Usage) -> dict[str, Any]:
    names = ("prompt_tokens", "cached_tokens", "computed_tokens", "output_tokens", "tier", "exactness", "miss")
    return {name: getattr(usage, name) for name in names}


def _counted(entries: Iterable[Entry], zero: float) -> Iterator[dict[str, Any]]:
    """How many rows decode together, over time."""
    was = -1
    for one in entries:
        if _is_decode(one) and len(one.requests) != was:
            was = len(one.requests)
            yield {"name": "rows", "ph": "C", "pid": 1, "tid": 0, "ts": _us(one.began, zero), "args": {"decoding": was}}

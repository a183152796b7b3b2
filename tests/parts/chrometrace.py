"""Checks a trace against the Chrome trace event format, as far as Perfetto's importer depends on it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

#: Keys that an event of each phase must have ("Trace Event Format", section "Event Types").
_NEEDED = {"X": {"ts", "dur", "tid"}, "i": {"ts", "tid"}, "C": {"ts", "args"}, "M": {"args"}}
_METADATA = {"process_name": "name", "thread_name": "name", "thread_sort_index": "sort_index"}


def problems(text: str) -> list[str]:
    """What is wrong with a trace's JSON; [] where nothing is."""
    loaded = json.loads(text, parse_constant=lambda name: name)  # NaN and Infinity are no JSON
    found: list[str] = []
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    named: set[tuple[int, int]] = set()
    for event in loaded["traceEvents"]:
        phase = event.get("ph")
        missing = ({"name", "pid"} | _NEEDED.get(phase, {"no such phase"})) - event.keys()
        times = [event.get(key, 0) for key in ("ts", "dur")]
        if missing:
            found.append(f"{event}: without {sorted(missing)}")
        elif any(not isinstance(at, int | float) or not math.isfinite(at) or at < 0 for at in times):
            found.append(f"{event}: times must be numbers of 0 or more")
        elif phase == "M" and not isinstance(event["args"].get(_METADATA.get(event["name"], "")), str | int):
            found.append(f"{event}: metadata without its value")
        elif phase == "C" and not all(isinstance(value, int | float) for value in event["args"].values()):
            found.append(f"{event}: a counter's values must be numbers")
        elif phase == "X":
            tracks[event["pid"], event["tid"]].append(event)
        if event.get("name") == "thread_name":
            named.add((event["pid"], event["tid"]))
    found += [f"track {track} has no name" for track in tracks.keys() - named]
    return found + [line for events in tracks.values() for line in _overlaps(events)]


def _overlaps(events: list[dict[str, Any]]) -> list[str]:
    """Slices of one track that begin in another and end after it: an importer drops or misplaces them."""
    found: list[str] = []
    open_until: list[float] = []
    for event in sorted(events, key=lambda one: (one["ts"], -one["dur"])):
        while open_until and open_until[-1] <= event["ts"] + 0.05:  # times are rounded to 0.1 us
            open_until.pop()
        stop = event["ts"] + event["dur"]
        if open_until and stop > open_until[-1] + 0.15:
            found.append(f"{event['name']} at {event['ts']} ends after the slice that it is in")
        open_until.append(stop)
    return found

"""JSON inside a text: objects whose keys stand in another order are the same to who reads them, not to a cache."""

from __future__ import annotations

import json

_DECODER = json.JSONDecoder()


def sorted_keys(text: str) -> str:
    """The text with every JSON object in it written with sorted keys. O(text) for text without broken objects."""
    out, at = [], 0
    while (start := text.find("{", at)) >= 0:
        try:
            value, stop = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            out.append(text[at : start + 1])
            at = start + 1
            continue
        out += [text[at:start], json.dumps(value, sort_keys=True)]
        at = stop
    return "".join([*out, text[at:]])


def differ_in_key_order_alone(one: str, other: str) -> bool:
    """True if two texts differ, and in nothing but the order of keys in JSON objects."""
    return one != other and sorted(one) == sorted(other) and sorted_keys(one) == sorted_keys(other)

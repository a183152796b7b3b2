"""The texts of a step as they are kept: parameters as JSON, long observations without their middle."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from agent_memory.errors import repr_of

MOST_BYTES = 100_000  #: of one text of a step, UTF-8
_CUT = re.compile(r"\n\[[\d,]+ characters cut\]\n")


def parameters_json(parameters: Mapping[str, Any] | None, clean: Callable[[str], str]) -> str:
    """Return parameters as redacted JSON; what JSON has no form for as its text."""
    if not parameters:
        return "{}"
    cleaned = clean(json.dumps(_clean_leaves(parameters, clean), ensure_ascii=False))  # some are secrets by their name
    try:
        json.loads(cleaned)
    except ValueError:  # a number that was a secret, say: the placeholder is no JSON
        cleaned = json.dumps({"redacted": cleaned}, ensure_ascii=False)
    if len(cleaned.encode("utf-8", "replace")) > MOST_BYTES:
        cleaned = json.dumps({"cut": shortened(cleaned)[0]}, ensure_ascii=False)
    return cleaned


def _clean_leaves(value: object, clean: Callable[[str], str]) -> object:
    """A value as JSON has it, its texts redacted one by one: inside of JSON their quotes would be escaped."""
    if isinstance(value, Mapping):
        return {clean(str(name)): _clean_leaves(part, clean) for name, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean_leaves(part, clean) for part in value]
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and isfinite(value)):
        return value
    return clean(value if isinstance(value, str) else repr_of(value))


def shortened(text: str) -> tuple[str, int]:
    """Return a text that fits, and how many characters of its middle were cut out."""
    if len(text) <= MOST_BYTES // 4 or len(text.encode("utf-8", "replace")) <= MOST_BYTES:
        return text, 0
    half = MOST_BYTES // 8 - 20
    cut = len(text) - 2 * half
    return f"{text[:half]}\n[{cut:,} characters cut]\n{text[-half:]}", cut


def partition_at_cut(text: str) -> tuple[str, str, str]:
    """Return what stands before the cut of a ``shortened`` text, the line that tells of it, and what stands behind;
    as ``str.partition``, the last two empty where nothing was cut."""
    found = _CUT.search(text)
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")

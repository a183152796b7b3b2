"""What callers give to context and episodes, checked before any work. Each raises UnsupportedParameterError. Pure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from typing import Any

from agent_memory.errors import UnsupportedParameterError, repr_of

MOST_INT = 2**63 - 1  #: what a database can hold
_MOST = sys.float_info.max  #: an int above it is no float


def checked_text(value: object, name: str) -> str:
    """Return a text, which may be empty. It may have lone surrogates: what is stored of it has them escaped."""
    if not isinstance(value, str):
        raise UnsupportedParameterError(f"{name} must be a text, got {type(value).__name__}")
    return value


def checked_unicode(value: object, name: str) -> str:
    """Return a text that the database is asked for as it is: valid Unicode."""
    text = checked_text(value, name)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnsupportedParameterError(f"{name} must be valid Unicode: {error}") from None
    return text


def checked_id(value: object, name: str = "id") -> int:
    """Return the id of an item or an episode."""
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MOST_INT:
        raise UnsupportedParameterError(f"{name} must be an int of at most {MOST_INT}, got {repr_of(value)}")
    return value


def checked_ids(value: object, name: str) -> list[int]:
    """Return ids: of one, or of several."""
    if isinstance(value, int):
        return [checked_id(value, name)]
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise UnsupportedParameterError(f"{name} must be an id or several, got {repr_of(value)}")
    return [checked_id(one, f"an id in {name}") for one in value]


def checked_number(value: object, name: str, least: float = -_MOST, most: float = _MOST) -> float:
    """Return a number between two bounds that a float can hold: finite, unless ``most`` is infinite."""
    is_number = isinstance(value, float) or (isinstance(value, int) and abs(value) <= _MOST)
    if not is_number or isinstance(value, bool) or not least <= value <= most:  # type: ignore[operator]  # a number
        bounds = (
            "" if least == -_MOST else f" of {least:g} or more" if most >= MOST_INT else f" of {least:g} to {most:g}"
        )
        raise UnsupportedParameterError(f"{name} must be a number{bounds}, got {repr_of(value)}")
    return value  # type: ignore[return-value]  # as above


def checked_count(value: object, name: str, most: int = MOST_INT) -> int:
    """Return how many of something, at least one."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise UnsupportedParameterError(f"{name} must be an int of 1 to {most:,}, got {repr_of(value)}")
    return value


def checked_kinds(value: object, known: Collection[str]) -> frozenset[str]:
    """Return kinds, each of them known."""
    if isinstance(value, str) or not isinstance(value, Collection) or not all(isinstance(one, str) for one in value):
        raise UnsupportedParameterError(f"kinds must be a list of texts, got {repr_of(value)}")
    if unknown := sorted(set(value) - set(known)):
        raise UnsupportedParameterError(f"kinds has {repr_of(unknown[0])}; known: {', '.join(known)}")
    return frozenset(value)


def a_text(_: Any, attribute: Any, value: Any) -> None:
    """Validate a field that is a text."""
    checked_text(value, attribute.name)


def a_flag(_: Any, attribute: Any, value: Any) -> None:
    """Validate a field that is a bool."""
    if not isinstance(value, bool):
        raise UnsupportedParameterError(f"{attribute.name} must be True or False, got {repr_of(value)}")


def a_number(least: float, most: float = _MOST) -> Callable[[Any, Any, Any], None]:
    """Return a validator of fields that are numbers between two bounds."""

    def check(_: Any, attribute: Any, value: Any) -> None:
        checked_number(value, attribute.name, least, most)

    return check

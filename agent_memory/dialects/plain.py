"""Parts of both dialects: objects that read like the SDKs', requests read by name, and malformed calls."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.toolcall.found import loads
from agent_memory.toolcall.jsonscan import JSONScanner, Seen
from agent_memory.types import CallEnd

_FREE = frozenset({"input", "metadata"})  #: fields whose value is the model's or the caller's own JSON, left as it is


class Data(Mapping[str, Any]):
    """A JSON object with attribute and item access; ``to_dict()`` gives plain dicts and lists. Immutable."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = {key: value if key in _FREE else _wrapped(value) for key, value in fields.items()}

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "_fields")[name]
        except KeyError:
            raise AttributeError(f"this object has no {repr_of(name)}; it has {', '.join(self._fields)}") from None

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Data({repr_of(self.to_dict())})"

    def to_dict(self) -> dict[str, Any]:
        """A plain copy."""
        return {key: value if key in _FREE else _plain(value) for key, value in self._fields.items()}

    model_dump = to_dict  #: the name under which the SDKs' objects have it


def _wrapped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Data(value)
    return [_wrapped(one) for one in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Data):
        return value.to_dict()
    return [_plain(one) for one in value] if isinstance(value, list) else value


class Parameters:
    """A request's parameters, each taken by name; None counts as not given. ``end`` refuses the others."""

    def __init__(self, request: Mapping[str, Any], method: str) -> None:
        self._rest = {key: value for key, value in request.items() if not _is_unset(value)}
        self._method = method
        self._known: list[str] = []  #: names that were asked for

    def take(self, name: str, *kinds: type, default: Any = None) -> Any:
        """The parameter, of one of ``kinds`` where any are named. Raises UnsupportedParameterError."""
        self._known.append(name)
        value = self._rest.pop(name, default)
        is_right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if kinds and value is not default and not is_right:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UnsupportedParameterError(f"{self._method}: {name} must be {wanted}, got {repr_of(value)}")
        return value

    def need(self, name: str, *kinds: type) -> Any:
        """The same for a parameter that must be given."""
        if name not in self._rest:
            raise UnsupportedParameterError(f"{self._method}: {name} is missing")
        return self.take(name, *kinds)

    def only(self, name: str, *values: Any) -> None:
        """Accept a parameter with a value that asks for nothing. Raises UnsupportedParameterError for any other."""
        self._known.append(name)
        value = self._rest.pop(name, values[0])
        if value not in values:
            known = " or ".join(map(repr, values))
            raise UnsupportedParameterError(f"{self._method}: {name}={repr_of(value)} is not supported; only {known}")

    def ignore(self, *names: str) -> None:
        """Accept parameters of any value that ask nothing of a local model, as hints to a provider's cache."""
        for name in names:
            self._rest.pop(name, None)

    def end(self) -> None:
        """Raise UnsupportedParameterError for parameters that were not taken; it names the nearest that there is."""
        if self._rest:
            unknown = sorted(self._rest)
            nearest = [near for name in unknown for near in difflib.get_close_matches(name, self._known, n=1)]
            hint = f"; did you mean {repr_of(nearest[0])}?" if nearest else ""
            raise UnsupportedParameterError(f"{self._method}: {', '.join(unknown)} is not supported{hint}")


def _is_unset(value: object) -> bool:
    """True for None and for what the SDKs have in its place (their NOT_GIVEN and omit)."""
    kind = type(value)
    return value is None or (
        kind.__name__ in ("NotGiven", "Omit") and kind.__module__.partition(".")[0] in ("openai", "anthropic")
    )


def is_malformed(end: CallEnd) -> bool:
    """True if a call that a stream has begun is none: its text follows, and the whole object holds that text alone."""
    return end.rejected is not None and end.rejected.reason == "malformed"


def begun_object(text: str) -> dict[str, Any]:
    """Return the complete part of the beginning of a JSON object: up to the last value that ended.

    A model wrote it: it also ends before the first key or value that no JSON has, as an unknown escape.
    """
    scanner, at, kept = JSONScanner(keeps=len(text)), 0, ""
    while True:
        at, seen = scanner.next(text, at)
        if seen is None or (seen.text is not None and not _is_whole(text[: seen.at], seen)):
            break
        if seen.kind == "end":
            kept = text[: seen.at] + scanner.closers
        elif seen.kind == "begin" and seen.mark in "{[":
            kept = text[: seen.at + 1] + ("}" if seen.mark == "{" else "]") + scanner.closers
    if at == len(text) and scanner.open_literal is not None and _is_json(scanner.open_literal):
        kept = text + scanner.closers
    found: dict[str, Any] = json.loads(kept or "{}")
    return found


def _is_whole(read: str, seen: Seen) -> bool:
    """True if a key, a string or a literal is JSON that can be written again."""
    written = seen.text or ""
    return _is_json(f'"{written}"' if read.endswith('"') else written)


def _is_json(token: str) -> bool:
    """True if a string or a literal can be read, and written again."""
    try:
        json.dumps(loads(token), ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return False
    return True

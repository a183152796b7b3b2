"""Scenarios of the examples: TOML files, read and checked before any model is loaded."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCENARIOS = Path(__file__).parent / "scenarios"

#: What a scenario may say: a type, or for a list of tables the keys of each.
Keys = Mapping[str, Any]


class ScenarioError(ValueError):
    """A scenario says something that it may not say, or leaves out what it must. Names the key and what is allowed."""


def read_scenario(file: Path, keys: Keys) -> dict[str, Any]:
    """Return a checked scenario. Every key is needed. Raises ScenarioError."""
    try:
        found = tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{file.name} is no TOML: {error}") from error
    _check(found, keys, file.name)
    return found


def _check(table: Any, keys: Keys, where: str) -> None:
    if not isinstance(table, Mapping):
        raise ScenarioError(f"{where}: must be a table, got {type(table).__name__}")
    if unknown := sorted(set(table) - set(keys)):
        raise ScenarioError(f"{where}: unknown key {unknown[0]!r}; allowed are {', '.join(sorted(keys))}")
    for key, kind in keys.items():
        name = f"{where}: {key}"
        if key not in table:
            raise ScenarioError(f"{name} is missing")
        value = table[key]
        if isinstance(kind, list):
            if not isinstance(value, list) or not value:
                raise ScenarioError(f"{name} must be a list of at least one {_name(kind[0])}, got {value!r:.60}")
            for number, one in enumerate(value):
                _check_value(one, kind[0], f"{name}[{number}]")
        else:
            _check_value(value, kind, name)


def _check_value(value: Any, kind: Any, name: str) -> None:
    if isinstance(kind, Mapping):
        _check(value, kind, name)
    elif isinstance(kind, tuple):
        if value not in kind:
            raise ScenarioError(f"{name} must be one of {', '.join(map(repr, kind))}, got {value!r:.60}")
    elif type(value) is not kind or (kind is int and value < 0) or (kind is str and not value.strip()):
        raise ScenarioError(f"{name} must be {_name(kind)}, got {value!r:.60}")


def _name(kind: Any) -> str:
    names = {str: "a text that is not empty", int: "a whole number, not negative", bool: "true or false"}
    return names.get(kind, "table") if not isinstance(kind, Mapping) else "table"

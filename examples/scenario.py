"""Scenarios of the examples: TOML files, read and checked before any model is loaded; and a plot of their figures."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_memory import EchoRunner

SCENARIOS = Path(__file__).parent / "scenarios"

#: What a scenario must say: ``str`` or ``int``, a table of keys, or a list of one of these.
Keys = Mapping[str, Any]


class ScenarioError(ValueError):
    """A scenario says something that it may not say, or leaves out what it must. Names the key and what is allowed."""


def options(doc: str | None, scenario: str) -> argparse.ArgumentParser:
    """Return a parser with what every scenario's program is asked: model, echo, scenario."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=None, help="hub id, mlx-lm folder or .gguf file (default: the starter model)"
    )
    parser.add_argument("--echo", action="store_true", help="no model: a stand-in answers")
    parser.add_argument("--scenario", type=Path, default=SCENARIOS / scenario)
    return parser


def chosen_model(args: argparse.Namespace, echo_says: str) -> str | EchoRunner | None:
    """Return the model of the options, made anew for each Memory."""
    return EchoRunner(echo_says) if args.echo else args.model


def drawn(title: str, groups: Mapping[str, Sequence[float]]) -> str:
    """Return an SVG with the bars of each group, grey and then blue, and their values."""
    top = max(value for values in groups.values() for value in values) or 1.0
    parts = [f'<text x="20" y="14" font-size="12">{title}</text>']
    x = 20.0
    for name, values in groups.items():
        parts.append(f'<text x="{x:.0f}" y="208" font-size="12">{name}</text>')
        for value, colour in zip(values, ("#999", "#06c"), strict=False):
            height = 150 * value / top
            parts.append(
                f'<rect x="{x:.0f}" y="{190 - height:.1f}" width="38" height="{height:.1f}" fill="{colour}"/>'
                f'<text x="{x:.0f}" y="{186 - height:.1f}" font-size="10">{value:,.0f}</text>'
            )
            x += 40
        x += max(20.0, 8.0 * len(name) - 40 * len(values))
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{x:.0f}" height="216">{"".join(parts)}</svg>\n'


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
                raise ScenarioError(
                    f"{name} must be a list with at least one value, {_name(kind[0])} each, got {repr(value)[:60]}"
                )
            for number, one in enumerate(value):
                _check_value(one, kind[0], f"{name}[{number}]")
        else:
            _check_value(value, kind, name)


def _check_value(value: Any, kind: Any, name: str) -> None:
    if isinstance(kind, Mapping):
        _check(value, kind, name)
    elif type(value) is not kind or (kind is int and value < 0) or (kind is str and not value.strip()):
        raise ScenarioError(f"{name} must be {_name(kind)}, got {repr(value)[:60]}")


def _name(kind: Any) -> str:
    return (
        "a table"
        if isinstance(kind, Mapping)
        else {str: "a text that is not empty", int: "a whole number, not negative"}[kind]
    )

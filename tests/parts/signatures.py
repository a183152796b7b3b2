"""Signatures of every public name, as text: one line each, sorted."""

from __future__ import annotations

import inspect
import sys

import agent_memory

ROOT = "agent_memory"


def signatures() -> list[str]:
    """Return one line for each public name, and for each public member of each public class."""
    lines = []
    for name in sorted(agent_memory.__all__):
        value = getattr(agent_memory, name)
        lines.append(_line(name, value))
        if inspect.isclass(value):
            lines += [_line(f"{name}.{key}", inspect.getattr_static(value, key)) for key in _members(value)]
    return lines


def _members(value: type) -> list[str]:
    """Return public members of a class that this package defines."""
    owners = [base for base in value.__mro__ if base.__module__.startswith(ROOT)]
    return sorted({key for base in owners for key in vars(base) if not key.startswith("_")})


def _line(name: str, value: object) -> str:
    value = getattr(value, "__func__", value)
    if isinstance(value, property) or not callable(value):
        return name
    try:
        return f"{name}{inspect.signature(value)}"
    except (TypeError, ValueError):
        return name


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in signatures()))

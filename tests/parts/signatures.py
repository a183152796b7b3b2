"""Signatures of every public name, as text, sorted. Run as a program, it records them in signatures.txt.

python -m tests.parts.signatures
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import agent_memory

ROOT = "agent_memory"
RECORD = Path(__file__).with_suffix(".txt")
_WIDTH = 120
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_LONG = 80  #: characters of a default that are shown


def signatures() -> str:
    """Return a line for each public name, and for each public member of each public class; a long one is broken."""
    lines = []
    for name in sorted(agent_memory.__all__):
        value = getattr(agent_memory, name)
        lines.append(_line(name, value))
        if inspect.isclass(value):
            lines += [_line(f"{name}.{key}", inspect.getattr_static(value, key)) for key in _members(value)]
    return "".join(f"{line}\n" for line in lines)


def _members(value: type) -> list[str]:
    """Return public members of a class that this package defines."""
    owners = [base for base in value.__mro__ if base.__module__.startswith(ROOT)]
    return sorted({key for base in owners for key in vars(base) if not key.startswith("_")})


def _line(name: str, value: object) -> str:
    value = getattr(value, "__func__", value)
    if isinstance(value, property):
        return f"{name}: {_annotation(inspect.signature(value.fget).return_annotation) if value.fget else ''}"
    if not callable(value):
        return name
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    arguments = _arguments(signature)
    is_told = signature.return_annotation is not inspect.Signature.empty
    result = f" -> {_annotation(signature.return_annotation)}" if is_told else ""
    line = f"{name}({', '.join(arguments)}){result}"
    return line if len(line) <= _WIDTH else f"{name}(\n" + "".join(f"    {one},\n" for one in arguments) + f"){result}"


def _arguments(signature: inspect.Signature) -> list[str]:
    found = []
    is_open = True  #: no `*` has been written yet
    for one in signature.parameters.values():
        if one.kind is inspect.Parameter.KEYWORD_ONLY and is_open:
            found.append("*")
        is_open = is_open and one.kind not in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL)
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(one.kind, "")
        text = f"{stars}{one.name}"
        if one.annotation is not inspect.Parameter.empty:
            text += f": {_annotation(one.annotation)}"
        if one.default is not inspect.Parameter.empty:
            text += f" = {_default(one.default)}"
        found.append(text)
    n_positional = sum(one.kind is inspect.Parameter.POSITIONAL_ONLY for one in signature.parameters.values())
    return found[:n_positional] + ["/"] * bool(n_positional) + found[n_positional:]


def _annotation(value: object) -> str:
    return value if isinstance(value, str) else inspect.formatannotation(value)


def _default(value: object) -> str:
    """Return a default's repr: without addresses, and a long one not to its end."""
    text = _ADDRESS.sub("", repr(value))
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


if __name__ == "__main__":
    RECORD.write_text(signatures(), encoding="utf-8")

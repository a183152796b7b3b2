"""The formats of calls, looked up by name. ``known.py`` lists them; ``choice.py`` tells which one a model has."""

from __future__ import annotations

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.toolcall.forms import Form, Format
from agent_memory.toolcall.frames import FRAMES
from agent_memory.toolcall.known import ELEMENTS, LITERALS, OBJECTS

KNOWN: dict[str, Format] = {one.name: one for one in (*OBJECTS, *FRAMES, *LITERALS, *ELEMENTS)}
FORMATS: tuple[str, ...] = tuple(KNOWN)  #: every name that ``format=`` takes
_ANY = ("tool_use", "function_call", "json_tools", "llama3")


def forms(name: str | None) -> tuple[Form, ...]:
    """The forms of a format; of None, the JSON objects that models without a known format write.

    Raises UnsupportedParameterError for an unknown name.
    """
    if name is None:
        return tuple(form for one in _ANY for form in KNOWN[one].forms)
    return format_of(name).forms


def format_of(name: str) -> Format:
    """A format by its name. Raises UnsupportedParameterError for an unknown one."""
    if name not in KNOWN:
        raise UnsupportedParameterError(f"format must be None or one of {', '.join(FORMATS)}; got {repr_of(name)}")
    return KNOWN[name]

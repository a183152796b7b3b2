"""mlx-lm's own parsers of calls, loaded one by one; neither MLX nor the rest of mlx-lm is imported for them."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_memory.errors import MissingExtraError
from agent_memory.toolcall.formats import NativeForm
from agent_memory.toolcall.found import Found, from_mapping
from agent_memory.tools import as_functions
from agent_memory.types import Tool

_PACKAGE = "agent_memory.toolcall._mlx_lm_tool_parsers"  #: the name under which mlx-lm's folder of parsers is loaded

_NAME = re.compile(r"[\w.:-]+")
_BARE_NAME = ("glm47", "laguna", "longcat")  #: a name alone is a call without arguments; longcat's parser raises on it


def read(form: NativeForm, inside: str, quoted: Sequence[tuple[int, int]], tools: Sequence[Tool] | None) -> list[Found]:
    """The calls that mlx-lm's parser finds in ``inside``, at least one. Raises ValueError in words for what is no call.

    ``quoted``: half-open ranges of text values, in which the form's closing marks do not count; mlx-lm's patterns
    would stop at them, so they are replaced while it reads.
    """
    if form.body is not None and not form.body.fullmatch(inside):
        raise ValueError("the text between the marks is not of this format")
    if form.name in _BARE_NAME and _NAME.fullmatch(name := inside.strip()):
        return [Found(name, {}, "{}")]
    parser = _parser(form.name)
    hidden, marks = _hide(inside, quoted, form.closers)
    try:
        found = parser(hidden, None if tools is None else as_functions(tools))
    except Exception as error:
        # Another library's boundary: its patterns meet whatever a model writes, and fail in every way there is.
        raise ValueError(f"mlx-lm's parser {form.name!r} finds no call: {type(error).__name__}") from error
    calls = [from_mapping(_shown(call, marks)) for call in (found if isinstance(found, list) else [found])]
    if not calls:
        raise ValueError("it holds no call")
    return calls


def _hide(text: str, quoted: Sequence[tuple[int, int]], closers: Sequence[str]) -> tuple[str, dict[str, str]]:
    """``text`` with the closers inside ``quoted`` replaced by one unused character each, and what stands for what."""
    unused = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    marks = {next(unused): closer for closer in closers}
    parts, done = [], 0
    for start, stop in quoted:
        value = text[start:stop]
        for mark, closer in marks.items():
            value = value.replace(closer, mark)
        parts += [text[done:start], value]
        done = stop
    return "".join(parts) + text[done:], marks


def _shown(value: Any, marks: dict[str, str]) -> Any:
    """The reverse of ``_hide`` in every text of a value."""
    if isinstance(value, str):
        for mark, closer in marks.items():
            value = value.replace(mark, closer)
        return value
    if isinstance(value, list):
        return [_shown(one, marks) for one in value]
    if isinstance(value, dict):
        return {_shown(key, marks): _shown(one, marks) for key, one in value.items()}
    return value


def _parser(name: str) -> Any:
    """``parse_tool_call`` of one of mlx-lm's parser modules.

    They need only the standard library and ``regex``; loading them as a package of their own leaves ``mlx_lm`` alone,
    whose import needs a backend, sets an environment variable and lowers a process limit.
    """
    if _PACKAGE not in sys.modules:
        found = importlib.util.find_spec("mlx_lm")
        if found is None or not found.submodule_search_locations:
            raise MissingExtraError(f"the format {name!r} is read by mlx-lm's parser; pip install mlx-lm")
        folder = Path(found.submodule_search_locations[0]) / "tool_parsers"
        spec = importlib.util.spec_from_file_location(
            _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{_PACKAGE}.{name}").parse_tool_call

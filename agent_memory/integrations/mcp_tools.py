"""Tools of a Model Context Protocol server as functions for ``Memory.run_tools``. Extra ``[mcp]``.

    with mcp_tools(StdioServerParameters(command="uvx", args=["mcp-server-fetch"])) as functions:
        memory.run_tools("ann", "What does example.org say?", functions)

The connection has a thread and an event loop of its own until the block ends, so that the functions may be called from
any thread. Tools are those that the server lists at the beginning: a list that changed would change the prompt.

- A tool's schema becomes the types of a function as far as Python's types say it (``$ref``, ``allOf``, patterns and
  ranges do not); the rest is the server's to check, whose error the model reads.
- A result's text comes back, or its structured content where it has no text; other content is named by its type.
- Not supported: prompts, resources, sampling, elicitation.
"""

from __future__ import annotations

import inspect
import json
import keyword
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Union

from anyio.from_thread import start_blocking_portal
from mcp import Client

_TYPES: dict[Any, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "null": None, "object": dict}

Function = Callable[..., str]


class MCPToolError(Exception):
    """Raised by a function whose server says that the call failed, with what it says."""


@contextmanager
def mcp_tools(
    server: Any, *, names: Collection[str] | None = None, prefix: str = "", timeout_s: float | None = None
) -> Iterator[list[Function]]:
    """Connect to a server and yield its tools as functions, in its order; the block's end disconnects.

    ``server``: whatever ``mcp.Client`` takes: ``StdioServerParameters``, a URL, a transport, or a server in this
    process. ``names``: of the tools to offer, of all by default. ``prefix``: for their names, where two servers have
    one of the same name. ``timeout_s``: of each call. Raises LookupError for names that the server has not.
    """
    with start_blocking_portal() as portal:
        client = Client(server, read_timeout_seconds=timeout_s)
        connection = portal.wrap_async_context_manager(client)
        connection.__enter__()
        try:
            found = {tool.name: tool for tool in portal.call(_listed, client)}
            if missing := sorted(set(names or ()) - found.keys()):
                raise LookupError(f"the server has no tool {missing[0]!r}; it has {', '.join(found)}")
            chosen = [tool for name, tool in found.items() if names is None or name in names]
            yield [_function(tool, prefix, partial(portal.call, client.call_tool, tool.name)) for tool in chosen]
        finally:  # without the block's error, which the client's task group would wrap
            connection.__exit__(None, None, None)


async def _listed(client: Client) -> list[Any]:
    page = await client.list_tools()
    tools = list(page.tools)
    while page.next_cursor is not None:
        page = await client.list_tools(cursor=page.next_cursor)
        tools += page.tools
    return tools


def _function(tool: Any, prefix: str, call: Callable[[dict[str, Any]], Any]) -> Function:
    """A function with the tool's name, description and parameters, as ``run_tools`` reads them."""
    properties: Mapping[str, Any] = tool.input_schema.get("properties", {})
    given = {_identifier(name): name for name in properties}
    required = set(tool.input_schema.get("required", ()))

    def function(**arguments: Any) -> str:
        return _shown(call({given[name]: value for name, value in arguments.items()}))

    lines = [
        f"    {own}: {' '.join(str(properties[name]['description']).split())}"
        for own, name in given.items()
        if properties[name].get("description")
    ]
    function.__name__ = function.__qualname__ = prefix + tool.name
    function.__doc__ = "\n".join([tool.description or tool.title or "", *(["", "Args:", *lines] if lines else [])])
    function.__annotations__ = {own: _hint(properties[name]) for own, name in given.items()} | {"return": str}
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                own,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if name in required else None,
                annotation=function.__annotations__[own],
            )
            for own, name in given.items()
        ]
    )
    return function


def _identifier(name: str) -> str:
    own = re.sub(r"\W|^(?=\d)", "_", name)
    return f"{own}_" if keyword.iskeyword(own) else own


def _hint(schema: Any) -> Any:
    """The Python type that a JSON Schema says, or Any."""
    if not isinstance(schema, Mapping):
        return Any
    if choices := schema.get("enum"):
        is_plain = all(isinstance(one, str | int | bool | None) for one in choices)
        return Literal[tuple(choices)] if is_plain else Any
    kind = schema.get("type")
    options = schema.get("anyOf") or schema.get("oneOf") or [{**schema, "type": one} for one in _many(kind)]
    if options:
        hints = [_hint(one) for one in options]
        return Any if Any in hints else Union[tuple(hints)]  # noqa: UP007 - of a tuple
    if kind == "array":
        return list[_hint(schema.get("items", {}))]  # type: ignore[misc]
    return _TYPES.get(str(kind), Any)


def _many(kind: Any) -> list[str]:
    return kind if isinstance(kind, list) else []


def _shown(result: Any) -> str:
    """A result's text. Raises MCPToolError where it is an error."""
    texts = [getattr(block, "text", f"[{block.type}]") for block in result.content]
    if not texts and result.structured_content is not None:
        texts = [json.dumps(result.structured_content, ensure_ascii=False)]
    if result.is_error:
        raise MCPToolError("\n".join(texts) or "the call failed")
    return "\n".join(texts)

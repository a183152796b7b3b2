"""Calls whose arguments are trees of elements, named after the arguments: MiniMax M3's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from attrs import field, mutable

from agent_memory.errors import repr_of
from agent_memory.toolcall import values
from agent_memory.toolcall.found import Found, dumps, from_members
from agent_memory.types import Tool

NAMESPACE = "]<]minimax[>["  #: what stands before every tag, so that a tag in a value is text
_TAG = re.compile(re.escape(NAMESPACE) + r"<(/?)([^<>\s]{1,200})((?:\s[^<>]{0,200})?)>")
_INVOKE = re.compile(r"""\s*name\s*=\s*["']?([^"'<>]+)["']?\s*""")
_MAX_DEPTH = 64


@mutable
class _Element:
    """An element: its name, its text, and the elements in it."""

    name: str
    text: str = ""
    inner: list[_Element] = field(factory=list)


def tree_calls(text: str, tools: Sequence[Tool] | None) -> list[Found]:
    """The calls in the inside of a group, at least one. Raises ValueError in words."""
    calls = [_call(element, tools) for element in _elements(text)]
    if not calls:
        raise ValueError("it holds no call")
    return calls


def _call(element: _Element, tools: Sequence[Tool] | None) -> Found:
    kind, _, attributes = element.name.partition(" ")
    named = _INVOKE.fullmatch(attributes)
    if kind != "invoke" or named is None:
        raise ValueError(f"{repr_of(kind)} stands where a call should")
    if element.text.strip():
        raise ValueError("text stands outside its arguments")
    schema = next((tool.parameters for tool in tools or () if tool.name == named[1]), {})
    members = [(one.name, _source(one, values.property_of(schema, one.name, schema), schema)) for one in element.inner]
    return from_members(named[1], members)


def _source(element: _Element, schema: object, root: Mapping[str, object]) -> str:
    """The JSON text of an element's value: its text, or an object or an array of the elements in it."""
    if not element.inner:
        empty = {frozenset({"object"}): "{}", frozenset({"array"}): "[]"}
        if not element.text.strip() and (source := empty.get(frozenset(values.kinds_of(schema, root)))):
            return source
        return values.source_of(element.text, schema, root)
    if element.text.strip():
        raise ValueError(f"the argument {repr_of(element.name)} holds text beside elements")
    names = Counter(one.name for one in element.inner)
    is_list = "array" in values.kinds_of(schema, root) or (set(names) == {"item"} and not _has(schema, "item", root))
    if is_list:
        items = [_source(one, values.item_of(schema, root), root) for one in element.inner]
        return f"[{', '.join(items)}]"
    members: dict[str, list[str]] = {name: [] for name in names}
    for one in element.inner:
        part = values.property_of(schema, one.name, root)
        members[one.name].append(_source(one, values.item_of(part, root) if names[one.name] > 1 else part, root))
    parts = (
        f"{dumps(name)}: {some[0] if len(some) == 1 else '[' + ', '.join(some) + ']'}" for name, some in members.items()
    )
    return "{" + ", ".join(parts) + "}"


def _has(schema: object, name: str, root: Mapping[str, object]) -> bool:
    return any(name in part.get("properties", {}) for part in values.parts_of(schema, root))


def _elements(text: str) -> Iterator[_Element]:
    """The elements that a text is made of. Raises ValueError where one is not closed, or text stands beside them."""
    stack, done = [_Element("")], 0
    for tag in _TAG.finditer(text):
        stack[-1].text += text[done : tag.start()]
        done = tag.end()
        if not tag[1]:
            stack.append(_Element(tag[2] + tag[3]))
            if len(stack) > _MAX_DEPTH:
                raise ValueError("it is nested too deeply")
            continue
        if len(stack) < 2 or stack[-1].name.partition(" ")[0] != tag[2]:
            raise ValueError(f"{repr_of(tag[2])} is closed where it is not open")
        element = stack.pop()
        stack[-1].inner.append(element)
    if len(stack) > 1 or stack[0].text.strip() or text[done:].strip():
        raise ValueError("an element is not closed, or text stands outside the calls")
    yield from stack[0].inner

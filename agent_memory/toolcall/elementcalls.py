"""What was read as elements, as calls: each value as its parameter's schema means it."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from attrs import field, mutable

from agent_memory.toolcall import values
from agent_memory.toolcall.forms import ElementForm
from agent_memory.toolcall.found import Found, dumps, from_mapping, from_members, from_text, loads
from agent_memory.toolcall.marks import Match
from agent_memory.types import Tool

_ATTRIBUTE = re.compile(r'([\w-]+)\s*=\s*(?:"([^"]*)"|\'([^\']*)\')')
_CDATA = re.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*", re.DOTALL)
_NAME = re.compile(r"[\w.:/-]+")
_INLINE = re.compile(r"\s*([\w.:/-]+)\s+(\S.*)", re.DOTALL)
_PAIR = re.compile(r"""\s*([\w.-]+)=("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s"'=]+)(?=\s|$)""")


@mutable
class Argument:
    """An argument as it was read: its name, its attributes, the pieces of its text."""

    name: str
    attributes: Mapping[str, str]
    parts: list[str] = field(factory=list)
    is_block: bool = False


@mutable
class Call:
    """A call as it was read: its name, and its arguments, or JSON in their place."""

    name: str
    arguments: list[Argument] = field(factory=list)
    json: list[str] = field(factory=list)


def attributes(found: Match) -> dict[str, str]:
    """A tag's attributes, with the name under ``name``."""
    if (name := found.groups.get("name")) is not None:
        quoted = len(name) > 1 and name[0] == name[-1] and name[0] in "\"'"
        return {"name": html.unescape(name[1:-1]) if quoted else name.strip()}
    pairs = {key: html.unescape(a or b) for key, a, b in _ATTRIBUTE.findall(found.groups["attributes"])}
    return {"name": pairs.get("name") or pairs.get("key") or pairs.get("tool") or "", **pairs}


def _schema_of(name: str, tools: Sequence[Tool] | None) -> Mapping[str, object]:
    return next((tool.parameters for tool in tools or () if tool.name == name), {})


def element_calls(form: ElementForm, call: Call, tools: Sequence[Tool] | None) -> list[Found]:
    """A call that was read, or the ones that its JSON holds. Raises ValueError in words."""
    if call.json:
        text = "".join(call.json)
        if call.name:
            return [from_text(call.name, text)]
        rows = loads(text)
        return [from_mapping(row) for row in (rows if isinstance(rows, list) else [rows])]
    schema = _schema_of(call.name, tools)
    blocks = [one for one in call.arguments if one.is_block]
    if blocks:
        if len(call.arguments) > 1:
            raise ValueError("it has more than one set of arguments")
        return [from_text(call.name, "".join(blocks[0].parts))]
    members = [(one.name, _source(form, one, schema)) for one in call.arguments]
    return [from_members(call.name, members)]


def _source(form: ElementForm, argument: Argument, schema: Mapping[str, object]) -> str:
    """The JSON text of an argument's value."""
    if not argument.name:
        raise ValueError("an argument has no name")
    text = "".join(argument.parts)
    if form.has_cdata and (found := _CDATA.fullmatch(text)):
        text = found[1]
    elif form.is_padded:
        text = text.removeprefix("\n").removesuffix("\n")
    said = argument.attributes.get("string") or argument.attributes.get("type")
    part: object = values.property_of(schema, argument.name, schema)
    if said in ("true", "string"):
        part = {"type": "string"}
    elif said is not None and not values.kinds_of(part, schema) - {"string"}:
        part = {}  # the model says that it is no string
    return values.source_of(text, part, schema)


def named_call(form: ElementForm, begun: str, calls: Sequence[Call], tools: Sequence[Tool] | None) -> list[Found]:
    """The call of a form in which a call has no tag: a name and arguments, or one of the shorter ways to write it."""
    if calls:
        if not _NAME.fullmatch(calls[0].name):
            raise ValueError("its name is no name")
        return element_calls(form, calls[0], tools)
    text = begun.strip()
    if text.startswith(("{", "[")):
        rows = loads(text)
        return [from_mapping(row) for row in (rows if isinstance(rows, list) else [rows])]
    if _NAME.fullmatch(text):
        return [Found(text, {}, "{}")]
    if (found := _INLINE.fullmatch(text)) is None:
        raise ValueError("the text between the marks is not of this format")
    name, rest = found.groups()
    if rest.startswith("{"):
        return [from_text(name, rest.strip())]
    schema, members, at = _schema_of(name, tools), [], 0
    while at < len(rest.rstrip()):
        if (pair := _PAIR.match(rest, at)) is None:
            raise ValueError("the text between the marks is not of this format")
        members.append((pair[1], _inline(pair[2], values.property_of(schema, pair[1], schema), schema)))
        at = pair.end()
    return [from_members(name, members)]


def _inline(text: str, schema: object, root: Mapping[str, object]) -> str:
    """A value of ``name key=value``: in quotes, it is a text."""
    if text[0] in "\"'":
        return dumps(text[1:-1].replace("\\" + text[0], text[0]))
    return values.source_of(text, schema, root)

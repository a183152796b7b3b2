"""Grammars of calls whose values are no JSON: elements, Python's literals, Gemma's, trees of elements.

What is written is what ``toolcall`` reads as a value of the parameter's schema: a string as it is, with whatever ends
it left out; everything else as JSON. Objects have the properties that they name, in their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent_memory.errors import UnsupportedParameterError
from agent_memory.grammar.writing import Writer, text
from agent_memory.toolcall.forms import ElementForm, LiteralForm
from agent_memory.toolcall.trees import NAMESPACE
from agent_memory.toolcall.values import kinds_of, parts_of
from agent_memory.types import Tool

_STRING_KEYS = {"type", "enum", "const", "maxLength", "minLength", "pattern", "description", "title", "default",
                "examples", "nullable", "x-guidance", "$comment"}  # fmt: skip
_CONSTANTS = r"\s*(?i:true|false|null|none)\s*"
_NUMBERISH = r"\s*[+.-]?\.?[0-9](?s:.*)"
_BRACKETED = r"""\s*[{\[("'](?s:.*)"""
_NUMBER = "/[0-9]{1,3}/"
_KEY = re.compile(r"[A-Za-z_][\w-]*")
_QUOTES = {"gemma4": '<|"|>', "function_gemma": "<escape>"}
_ANYTHING: dict[str, Any] = {"type": ["integer", "boolean", "null"], "minimum": -(2**53), "maximum": 2**53}


def element_calls(tools: Sequence[Tool], form: ElementForm, write: Writer, is_single: bool) -> str:
    """The inside of a group of calls, written as elements."""
    before, _, _, behind = form.writes
    is_tight, calls = bool(form.call_mark) and form.start.endswith(form.call_mark), []
    for tool in tools:
        said, number, rest = before.replace("{name}", tool.name).strip("\n").partition("{number}")
        head = f"{write.fixed(said)} {_NUMBER} {write.fixed(rest)}" if number else write.fixed(said)
        inner = _Elements(form, write, tool).arguments()
        parts = [
            "" if is_tight else _gap(write, before[:1]),
            head,
            _gap(write, before[-1:]),
            inner,
            write.fixed(behind.strip("\n")),
        ]
        calls.append(write.rule(" ".join(filter(None, parts))))
    call = f"({' | '.join(calls)})"
    can_repeat = form.call_end not in ("", form.end)
    return call if is_single or not can_repeat else f"{call} ({write.blanks} {call})*"


def literal_calls(tools: Sequence[Tool], form: LiteralForm, write: Writer, is_single: bool) -> str:
    """The inside of a group of calls, written as literals."""
    if form.dialect == "tree":
        calls = [write.rule(_tree_call(write, tool)) for tool in tools]
        call = f"({' | '.join(calls)})"
        return call if is_single else f"{call} ({write.blanks} {call})*"
    if form.dialect == "python":
        calls = [write.rule(_Python(write, tool).call()) for tool in tools]
        call = f"({' | '.join(calls)})"
        more = "" if is_single else f'("," {_gap(write, " ")} {call})*'
        return f'{write.blanks if write.is_open else ""} "[" {call} {more} "]"'
    quote = _QUOTES[form.dialect]
    calls = []
    for tool in tools:
        members = _Literals(write, quote, tool).members(tool.parameters)
        calls.append(write.rule(f"{text(f'call:{tool.name}')} {members}"))
    return f"({' | '.join(calls)})"


def _gap(write: Writer, written: str) -> str:
    """Blanks where a form writes some, and where the model may want them."""
    if write.is_open:
        return r"/[ \t\r\n]{1,8}/?"
    return text(written) if written and not written.strip() else ""


def _named(schema: Mapping[str, Any], place: str) -> list[tuple[str, Mapping[str, Any], bool]]:
    """An object's properties, and which must be there. Raises UnsupportedParameterError where it may have others."""
    if schema.keys() & {"anyOf", "oneOf", "allOf", "$ref", "patternProperties", "minProperties", "maxProperties"}:
        raise UnsupportedParameterError(f"{place}: schemas that describe one object together cannot be held here")
    named = schema.get("properties")
    if named is None or schema.get("additionalProperties", False) is not False:
        raise UnsupportedParameterError(f"{place}: an object with any properties cannot be held here")
    required = schema.get("required", ())
    if unnamed := [name for name in required if name not in named]:
        raise UnsupportedParameterError(f"{place}.required: {unnamed[0]} is no property")
    for name in named:
        if not _KEY.fullmatch(name):
            raise UnsupportedParameterError(f"{place}.properties.{name}: such a name cannot be held here")
    return [(name, part if isinstance(part, Mapping) else {}, name in required) for name, part in named.items()]


def _separated(write: Writer, parts: Sequence[tuple[str, bool]], separator: str) -> str:
    """Parts in a row, some of which must be there, with a separator between each two of those that are."""
    first = following = '""'
    for part, is_required in reversed(parts):
        has_more = write.rule(f"{separator} {part} {following}" + ("" if is_required else f" | {following}"))
        first = write.rule(f"{part} {following}" + ("" if is_required else f" | {first}"))
        following = has_more
    return first


class _Texts:
    """Writes values that are strings by their schemas, and everything else as JSON."""

    def __init__(self, write: Writer, tool: Tool) -> None:
        self.write, self.tool, self.root = write, tool, tool.parameters

    def json(self, schema: Mapping[str, Any]) -> str:
        """A value as JSON, with what its schema refers to."""
        shared = {key: self.root[key] for key in ("$defs", "definitions") if key in self.root}
        return self.write.json({**shared, **schema})

    def plain(self, schema: Mapping[str, Any], end: str, place: str) -> list[tuple[str, str]]:
        """How a value may be written, up to and with ``end``: pairs of its type and an expression."""
        kinds = kinds_of(schema, self.root)
        if not kinds:
            free = self.write.free(end, "(?s:.+)", _CONSTANTS, _NUMBERISH, _BRACKETED)
            return [("string", free), ("number", self._ended({"type": ["number", "boolean", "null"]}, end))]
        if kinds == {"string"}:
            return [("string", self.string(schema, end, place))]
        if len(kinds) == 1:
            return [(_type(kinds), self._ended(schema, end))]
        return [self._one_of(part, kinds, end, place) for part in self._alternatives(schema, place)]

    def string(self, schema: Mapping[str, Any], end: str, place: str) -> str:
        """A string as it is, up to and with ``end``."""
        parts = [part for part in parts_of(schema, self.root) if part.keys() - {"anyOf", "oneOf", "$ref", "$defs"}]
        if len(parts) != 1 or parts[0].keys() - _STRING_KEYS:
            more = sorted({key for part in parts for key in part.keys() - _STRING_KEYS}) or ["anyOf"]
            raise UnsupportedParameterError(f"{place}.{more[0]}: such a string cannot be held here")
        [part] = parts
        if "enum" in part or "const" in part:
            listed = [value for value in part.get("enum", [part.get("const")]) if isinstance(value, str)]
            return f"({' | '.join(map(text, listed))}) {self.write.fixed(end)}"
        if (pattern := part.get("pattern")) is None:
            return self.write.free(end, f"(?s:.){{{part.get('minLength', 0)},{part.get('maxLength', '')}}}")
        if "minLength" in part or "maxLength" in part:
            raise UnsupportedParameterError(f"{place}.pattern: a pattern beside a length cannot be held here")
        begins = "" if pattern.startswith("^") else "(?s:.*)"
        ends = "" if pattern.endswith("$") else "(?s:.*)"
        inner = pattern.removeprefix("^").removesuffix("$").replace("/", "\\/")
        return self.write.free(end, f"{begins}(?:{inner}){ends}")

    def _ended(self, schema: Mapping[str, Any], end: str) -> str:
        return f"{self.json(schema)} {self.write.fixed(end)}"

    def _one_of(self, part: Mapping[str, Any], kinds: set[str], end: str, place: str) -> tuple[str, str]:
        own = kinds_of(part, self.root)
        if own != {"string"}:
            return _type(own), self._ended(part, end)
        if "enum" in part or "const" in part or kinds == {"string", "null"}:
            return "string", self.string(part, end, place)
        if part.keys() - {"type", "description", "title"}:
            raise UnsupportedParameterError(f"{place}: a string beside other types cannot be held here")
        return "string", self.write.free(end, "(?s:.*)", _CONSTANTS, _NUMBERISH, _BRACKETED)

    def _alternatives(self, schema: Mapping[str, Any], place: str) -> list[Mapping[str, Any]]:
        """Schemas of one type each."""
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return [one for part in schema[key] for one in self._alternatives(part, place)]
        if isinstance(kinds := schema.get("type"), list):
            listed = [value for value in schema.get("enum", ()) if isinstance(value, str)]
            if listed:
                others = [value for value in schema["enum"] if not isinstance(value, str)]
                return [{"enum": listed}, *([{"enum": others}] if others else [])]
            return [{**schema, "type": kind} for kind in kinds]
        if schema.get("nullable") is True:
            return [{key: value for key, value in schema.items() if key != "nullable"}, {"type": "null"}]
        if "type" not in schema and "enum" in schema:
            listed = [value for value in schema["enum"] if isinstance(value, str)]
            others = [value for value in schema["enum"] if not isinstance(value, str)]
            return [{"enum": listed}, *([{"enum": others}] if others else [])]
        if "$ref" in schema:
            found = list(parts_of(schema, self.root))[1:]
            return self._alternatives(found[0], place) if found else [{}]
        return [schema]


def _type(kinds: set[str]) -> str:
    """The type by the name that a tag says."""
    kind = sorted(kinds)[0] if len(kinds) == 1 else "number"
    return "number" if kind == "integer" else kind


class _Elements(_Texts):
    """Writes the arguments of a call as elements."""

    def __init__(self, form: ElementForm, write: Writer, tool: Tool) -> None:
        super().__init__(write, tool)
        self._form = form

    def arguments(self) -> str:
        """All of them, in their order."""
        place = f"{self.tool.name}.parameters"
        parts = []
        for name, schema, is_required in _named(self.tool.parameters, place):
            one = self.write.rule(self._argument(name, schema, f"{place}.properties.{name}"))
            parts.append(one if is_required else f"{one}?")
        return " ".join(parts)

    def _argument(self, name: str, schema: Mapping[str, Any], place: str) -> str:
        form, write, ways = self._form, self.write, []
        tag, end = form.writes[1], ("\n" if form.is_padded else "") + form.parameter_end
        for kind, value in self.plain(schema, end, place):
            is_string = json.dumps(kind == "string")
            said = tag.replace("{name}", name).replace("{type}", kind).replace("{is_string}", is_string)
            padding = '"\\n"' if form.is_padded else ""
            head = f" {_gap(write, chr(10))} ".join(write.fixed(part) for part in said.strip("\n").split("\n"))
            parts = [_gap(write, tag[:1]), head, padding, value, _gap(write, form.writes[2][-1:])]
            ways.append(" ".join(filter(None, parts)))
        return ways[0] if len(ways) == 1 else f"({' | '.join(ways)})"


class _Literals(_Texts):
    """Writes Gemma's literals: bare keys, and quotes that no text holds."""

    def __init__(self, write: Writer, quote: str, tool: Tool) -> None:
        super().__init__(write, tool)
        self._quote = quote
        self.separator = '","'

    def members(self, schema: Mapping[str, Any], place: str = "") -> str:
        """An object."""
        place = place or f"{self.tool.name}.parameters"
        parts = []
        for name, part, is_required in _named(schema, place):
            value = self.value(part, f"{place}.properties.{name}")
            parts.append((self.write.rule(f"{self.key(name)} {value}"), is_required))
        return f'"{{" {_separated(self.write, parts, self.separator)} "}}"'

    def key(self, name: str) -> str:
        """A key, and what stands between it and its value."""
        return text(name + ":")

    def value(self, schema: Mapping[str, Any], place: str) -> str:
        """A value of any type."""
        if not kinds_of(schema, self.root):
            return self.anything()
        ways = [self._one(part, place) for part in self._alternatives(schema, place)]
        return self.write.rule(" | ".join(ways))

    def anything(self) -> str:
        """A value of which nothing is said."""
        quote = self.write.fixed(self._quote)
        return self.write.rule(f"{quote} {self.write.free(self._quote)} | {self.json(_ANYTHING)}")

    def quoted(self, part: Mapping[str, Any], place: str) -> str:
        """A string."""
        return f"{self.write.fixed(self._quote)} {self.string(part, self._quote, place)}"

    def constant(self, kind: str, part: Mapping[str, Any]) -> str:
        """A boolean or null."""
        return self.json(part)

    def _one(self, part: Mapping[str, Any], place: str) -> str:
        kinds = kinds_of(part, self.root)
        if "$ref" in part or len(kinds) != 1:
            raise UnsupportedParameterError(f"{place}: such a schema cannot be held here")
        [kind] = kinds
        if kind == "object":
            return self.write.rule(self.members(part, place))
        if kind == "array":
            if part.keys() - {"type", "items", "minItems", "maxItems", "description", "title", "default"}:
                raise UnsupportedParameterError(f"{place}: such an array cannot be held here")
            item = self.value(part.get("items", {}), f"{place}.items")
            least, most = part.get("minItems", 0), part.get("maxItems")
            return self.write.rule(_listed(item, least, most, '"["', self.separator, '"]"'))
        if kind == "string":
            return self.quoted(part, place)
        return self.constant(kind, part) if kind in ("boolean", "null") else self.json(part)


class _Python(_Literals):
    """Writes Python's literals, also with JSON's constants and either kind of quotes where the model may want them."""

    def __init__(self, write: Writer, tool: Tool) -> None:
        super().__init__(write, "", tool)
        self.separator = f'"," {_gap(write, " ")}'

    def call(self) -> str:
        """``name(key=value, ...)``."""
        if not re.fullmatch(r"[A-Za-z_][\w.]*", self.tool.name):
            raise UnsupportedParameterError(f"{self.tool.name}: such a name cannot be held here")
        place, gap, parts = f"{self.tool.name}.parameters", _gap(self.write, ""), []
        for name, part, is_required in _named(self.tool.parameters, place):
            value = self.value(part, f"{place}.properties.{name}")
            parts.append((self.write.rule(f'{text(name)} {gap} "=" {gap} {value}'), is_required))
        return f'{text(self.tool.name)} "(" {gap} {_separated(self.write, parts, self.separator)} {gap} ")"'

    def key(self, name: str) -> str:
        return f'{self._any_quotes(name)} {_gap(self.write, "")} ":" {_gap(self.write, " ")}'

    def anything(self) -> str:
        return self.json({})

    def quoted(self, part: Mapping[str, Any], place: str) -> str:
        if "enum" in part or "const" in part:
            listed = [value for value in part.get("enum", [part.get("const")]) if isinstance(value, str)]
            return " | ".join(map(self._any_quotes, listed))
        is_free = self.write.is_open and not part.keys() & {"minLength", "maxLength", "pattern", "format"}
        return self.json(part) + (r" | /'([^'\\\x00-\x1f]|\\['\\n])*'/" if is_free else "")

    def constant(self, kind: str, part: Mapping[str, Any]) -> str:
        if part.keys() & {"enum", "const"}:
            return self.json(part)
        names = '"None"' if kind == "null" else '"True" | "False"'
        return f"{names} | {self.json(part)}" if self.write.is_open else names

    def _any_quotes(self, written: str) -> str:
        double = text(json.dumps(written, ensure_ascii=False))
        return (
            double if set(written) & set("'\\\n") or not self.write.is_open else f"({double} | {text(repr(written))})"
        )


def _listed(item: str, least: int, most: int | None, opening: str, separator: str, closing: str) -> str:
    """Items with separators between them, at least and at most so many."""
    if most == 0:
        return f"{opening} {closing}"
    more = f"({separator} {item}){{{max(0, least - 1)},{'' if most is None else most - 1}}}"
    return f"{opening} {item} {more} {closing}" if least else f"{opening} ({item} {more})? {closing}"


def _tree_call(write: Writer, tool: Tool) -> str:
    inner = _Trees(write, tool).members(tool.parameters, f"{tool.name}.parameters")
    head, tail = write.fixed(f'{NAMESPACE}<invoke name="{tool.name}">'), write.fixed(f"{NAMESPACE}</invoke>")
    return f"{_gap(write, chr(10))} {head} {inner} {tail} {_gap(write, chr(10))}"


class _Trees(_Texts):
    """Writes trees of elements."""

    def members(self, schema: Mapping[str, Any], place: str) -> str:
        """An object's properties."""
        parts = []
        for name, part, is_required in _named(schema, place):
            one = self.write.rule(self._element(name, part, f"{place}.properties.{name}"))
            parts.append(one if is_required else f"{one}?")
        return " ".join(parts)

    def _element(self, tag: str, schema: Mapping[str, Any], place: str) -> str:
        opening, end = self.write.fixed(f"{NAMESPACE}<{tag}>"), f"{NAMESPACE}</{tag}>"
        kinds, ways = kinds_of(schema, self.root), []
        if not kinds & {"object", "array"}:
            ways = [value for _, value in self.plain(schema, end, place)]
        else:
            for part in self._alternatives(schema, place):
                ways += self._inner(part, kinds, end, place)
        return f"{opening} ({' | '.join(ways)})"

    def _inner(self, part: Mapping[str, Any], kinds: set[str], end: str, place: str) -> list[str]:
        own = kinds_of(part, self.root)
        if "$ref" in part or (own & {"object", "array"} and "string" in kinds):
            raise UnsupportedParameterError(f"{place}: such a schema cannot be held here")
        if own == {"object"}:
            return [f"{self.members(part, place)} {self.write.fixed(end)}"]
        if own == {"array"}:
            item = self.write.rule(self._element("item", part.get("items", {}), f"{place}.items"))
            items = _listed(item, part.get("minItems", 0), part.get("maxItems"), "", "", "")
            return [f"{items} {self.write.fixed(end)}"]
        return [value for _, value in self.plain(part, end, place)]

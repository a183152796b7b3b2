"""The forms of calls that are written as elements: their tags, by the name of the format."""

from __future__ import annotations

from agent_memory.toolcall.forms import ElementForm
from agent_memory.toolcall.marks import Part, Shape, ahead, word

_QUOTED = Part(r"(?:\"[^\"<>]{1,200}\"|'[^'<>]{1,200}'|[^\s\"'<>]{1,200})", r"[\"']?[^\"'<>]{0,200}[\"']?", "name")
_ATTRIBUTES = word(r"^<>", "attributes", 600)


def _equals(
    start: str, end: str, writes: tuple[str, str, str, str], *, is_padded: bool, takes_json: bool
) -> ElementForm:
    """``<function=name>`` and ``<parameter=name>``."""
    name = word(r"^<>\n", "name")
    return ElementForm(
        start=start,
        end=end,
        call_mark="<function=",
        call=Shape((name, ">")) if start == "<function=" else Shape(("<function=", name, ">")),
        call_end="</function>",
        parameter_mark="<parameter=",
        parameter=Shape(("<parameter=", name, ">")),
        parameter_end="</parameter>",
        nested=Shape(("<function=", word(r"^<>\n"), ">", ahead("<parameter=", "</function>"))),
        is_padded=is_padded,
        takes_json=takes_json,
        writes=writes,
    )


def _invoked(prefix: str, group: str, *, has_types: bool = False, takes_json: bool = False) -> ElementForm:
    """``<invoke name="name">`` and ``<parameter name="name">``; ``has_types``: a parameter says if it is a string."""
    call, parameter = f"<{prefix}invoke name=", f"<{prefix}parameter name="
    tag = (f"<{prefix}parameter", _ATTRIBUTES, ">") if has_types else (parameter, _QUOTED, ">")
    nested = Part(_QUOTED.whole, _QUOTED.begun)
    said = ' string="{is_string}"' if has_types else ""
    return ElementForm(
        start=f"<{prefix}{group}>" if ":" not in group else f"<{group}>",
        end=f"</{prefix}{group}>" if ":" not in group else f"</{group}>",
        call_mark=call,
        call=Shape((call, _QUOTED, ">")),
        call_end=f"</{prefix}invoke>",
        parameter_mark=f"<{prefix}parameter" if has_types else parameter,
        parameter=Shape(tag),
        parameter_end=f"</{prefix}parameter>",
        nested=Shape((call, nested, ">", ahead(f"<{prefix}parameter", f"</{prefix}invoke>"))),
        takes_json=takes_json,
        writes=(
            f'\n<{prefix}invoke name="{{name}}">',
            f'\n<{prefix}parameter name="{{name}}"{said}>',
            f"</{prefix}parameter>",
            f"\n</{prefix}invoke>\n",
        ),
    )


def _keyed(prefix: str) -> ElementForm:
    """The name, and then ``<arg_key>`` and ``<arg_value>`` for each argument."""
    key, key_end, value = f"<{prefix}arg_key>", f"</{prefix}arg_key>", f"<{prefix}arg_value>"
    start, end = f"<{prefix}tool_call>", f"</{prefix}tool_call>"
    between = Part(r"(?:\\n|\s){0,64}", r"(?:\\n|\s){0,64}\\?")
    return ElementForm(
        start=start,
        end=end,
        call_mark="",
        call=Shape((start,)),
        call_end="",
        parameter_mark=key,
        parameter=Shape((key, word(r"^<>\n", "name"), key_end, between, value)),
        parameter_end=f"</{prefix}arg_value>",
        nested=Shape((start, word(r"\w.:/-"), ahead(key, end))),
        writes=("{name}\n", f"{key}{{name}}{key_end}\n{value}", f"</{prefix}arg_value>\n", ""),
    )


def _opened(tag: str) -> tuple[str, str]:
    return f"<|open|>{tag}", f"<|close|>{tag}<|sep|>"


_CALL, _CALL_END = _opened("call")
_ARGUMENT, _ARGUMENT_END = _opened("argument")
_JSON, _JSON_END = _opened("json")

ELEMENT_FORMS: dict[str, ElementForm] = {
    "qwen3_coder": _equals(
        "<tool_call>",
        "</tool_call>",
        ("\n<function={name}>\n", "<parameter={name}>\n", "\n</parameter>\n", "</function>\n"),
        is_padded=True,
        takes_json=True,
    ),
    "qwen3_coder, bare": _equals(
        "<function=",
        "</function>",
        ("{name}>\n", "<parameter={name}>\n", "\n</parameter>\n", ""),
        is_padded=True,
        takes_json=False,
    ),
    "seed_oss": _equals(
        "<seed:tool_call>",
        "</seed:tool_call>",
        ("\n<function={name}>\n", "<parameter={name}>", "</parameter>\n", "</function>\n"),
        is_padded=False,
        takes_json=False,
    ),
    "minimax_m2": _invoked("", "minimax:tool_call"),
    "muse_spark": _invoked("atem:", "function_calls"),
    "deepseek_v32": _invoked("｜DSML｜", "function_calls", has_types=True, takes_json=True),
    "deepseek_v4": _invoked("｜DSML｜", "tool_calls", has_types=True, takes_json=True),
    "glm47": _keyed(""),
    "longcat": _keyed("longcat_"),
    "minicpm5": ElementForm(
        start="<function name=",
        end="</function>",
        call_mark="<function name=",
        call=Shape((_QUOTED, ">")),
        call_end="</function>",
        parameter_mark="<param name=",
        parameter=Shape(("<param name=", _QUOTED, ">")),
        parameter_end="</param>",
        nested=Shape(
            ("<function name=", Part(_QUOTED.whole, _QUOTED.begun), ">", ahead("<param name=", "</function>"))
        ),
        has_cdata=True,
        writes=('"{name}">', '<param name="{name}">', "</param>", ""),
    ),
    "kimi_k3": ElementForm(
        start="<|open|>tools<|sep|>",
        end="<|close|>tools<|sep|>",
        call_mark=_CALL,
        call=Shape((_CALL, _ATTRIBUTES, "<|sep|>")),
        call_end=_CALL_END,
        parameter_mark=_ARGUMENT,
        parameter=Shape((_ARGUMENT, _ATTRIBUTES, "<|sep|>")),
        parameter_end=_ARGUMENT_END,
        nested=Shape((_CALL, word(r"^<>", most=600), "<|sep|>", ahead(_ARGUMENT, _JSON, _CALL_END))),
        json_block=(Shape((_JSON, word(r"^<>", most=600), "<|sep|>")), _JSON, _JSON_END),
        writes=(
            f'{_CALL} tool="{{name}}" index="{{number}}"<|sep|>',
            f'{_ARGUMENT} key="{{name}}" type="{{type}}"<|sep|>',
            _ARGUMENT_END,
            _CALL_END,
        ),
    ),
}

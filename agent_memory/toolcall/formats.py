"""The ways in which models write a call: where one starts, where it ends, and what may stand between.

``JSONForm``: the call is one JSON object, read while it streams. ``NativeForm``: the call is written in a model
family's own way; here stands how to find its end, and mlx-lm's parser (``native.py``) reads what is inside.
Markers and bodies follow mlx-lm 0.32's ``tool_parsers``; Llama's follow its model cards' prompt format pages.
"""

from __future__ import annotations

import re

from attrs import frozen

from agent_memory.errors import UnsupportedParameterError


@frozen(kw_only=True)
class JSONForm:
    """A call as a JSON object: ``start`` and ``end`` around it, or bare (no ``start``) at the beginning of a line.

    ``wrapper``: the one key whose value is the call. ``arguments``: the keys that may hold the arguments.
    """

    start: str = ""
    end: str = ""
    wrapper: str = ""
    arguments: tuple[str, ...] = ("arguments",)

    @property
    def first_keys(self) -> tuple[str, ...]:
        """What the first key of a bare object must be for it to be taken for a call at all."""
        return (self.wrapper,) if self.wrapper else ("name", *self.arguments, "type", "id")


@frozen
class Quote:
    """What encloses text in which no marker counts. ``escapes``: whether a backslash takes the next character in."""

    open: str
    close: str
    escapes: bool = False


@frozen(kw_only=True)
class NativeForm:
    """A call in a model family's own way, between ``start`` and ``end``; mlx-lm's parser ``name`` reads the inside.

    ``closers``: marks inside a call that mlx-lm's parser would take for structure even in quoted text.
    ``whole``: the mark at which the inside of a complete call ends, so that one without ``end`` is told from a cut one.
    ``body``: what the inside must look like, where mlx-lm's parser takes anything for a call.
    ``around``: what stands before and behind the arguments of one call, where those are JSON: a grammar can write it.
    ``lists``: whether a JSON array of calls may stand in their place.
    """

    name: str
    start: str
    end: str
    quotes: tuple[Quote, ...] = ()
    closers: tuple[str, ...] = ()
    whole: str = ""
    body: re.Pattern[str] | None = None
    around: tuple[str, str] | None = None
    lists: bool = False


Form = JSONForm | NativeForm

_LLAMA = ("parameters", "arguments")
_JSON: dict[str, tuple[JSONForm, ...]] = {
    "tool_use": (JSONForm(wrapper="tool_use", arguments=("input",)),),
    "function_call": (JSONForm(wrapper="function_call"),),
    "json_tools": (JSONForm(start="<tool_call>", end="</tool_call>"),),
    "llama3": (JSONForm(end=";", arguments=_LLAMA), JSONForm(start="<|python_tag|>", end=";", arguments=_LLAMA)),
}
_DOUBLE, _SINGLE = Quote('"', '"', escapes=True), Quote("'", "'", escapes=True)
_GLM_BODY = r"\s*(?:[\w.:-]+\s*(?:<{0}arg_key>.*|\{{.*\}})?|\{{.*\}})\s*"


def _glm(name: str, prefix: str) -> NativeForm:
    return NativeForm(
        name=name,
        start=f"<{prefix}tool_call>",
        end=f"</{prefix}tool_call>",
        quotes=(Quote(f"<{prefix}arg_value>", f"</{prefix}arg_value>"),),
        closers=(f"</{prefix}tool_call>",),
        body=re.compile(_GLM_BODY.format(prefix), re.DOTALL),
    )


_NATIVE: dict[str, NativeForm] = {
    form.name: form
    for form in (
        NativeForm(
            name="function_gemma",
            start="<start_function_call>",
            end="<end_function_call>",
            quotes=(Quote("<escape>", "<escape>"),),
            closers=("}",),
            whole="}",
            # mlx-lm's pattern ends the arguments at the first brace: what holds an object would lose half of it.
            body=re.compile(r"\s*call:\w+\{(?:<escape>(?>.*?<escape>)|[^{}\[\]<])*+\}\s*", re.DOTALL),
        ),
        NativeForm(
            name="gemma4",
            start="<|tool_call>",
            end="<tool_call|>",
            quotes=(Quote('<|"|>', '<|"|>'),),
            whole="}",
        ),
        _glm("glm47", ""),
        _glm("laguna", ""),
        _glm("longcat", "longcat_"),
        NativeForm(
            name="kimi_k2",
            start="<|tool_calls_section_begin|>",
            end="<|tool_calls_section_end|>",
            quotes=(_DOUBLE,),
            closers=("<|tool_call_end|>", "<|tool_call_begin|>"),
            whole="<|tool_call_end|>",
            around=("<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>", "<|tool_call_end|>"),
        ),
        NativeForm(
            name="kimi_k3",
            start="<|open|>tools<|sep|>",
            end="<|close|>tools<|sep|>",
            quotes=(
                Quote("<|open|>argument", "<|close|>argument<|sep|>"),
                Quote("<|open|>json", "<|close|>json<|sep|>"),
            ),
            closers=("<|close|>call<|sep|>",),
            whole="<|close|>call<|sep|>",
        ),
        NativeForm(
            name="minicpm5",
            start="<function name=",
            end="</function>",
            quotes=(Quote("<![CDATA[", "]]>"),),
            closers=("</function>", "</param>"),
        ),
        NativeForm(
            name="minimax_m2",
            start="<minimax:tool_call>",
            end="</minimax:tool_call>",
            quotes=(Quote("<parameter name=", "</parameter>"),),
            closers=("</invoke>", "<invoke name="),
            whole="</invoke>",
        ),
        # No end: a list of calls ends with its bracket, name[ARGS]{...} calls when no other follows (see scanners).
        NativeForm(name="mistral", start="[TOOL_CALLS]", end="", around=("{name}[ARGS]", ""), lists=True),
        NativeForm(
            name="muse_spark",
            start="<atem:function_calls>",
            end="</atem:function_calls>",
            quotes=(Quote("<atem:parameter ", "</atem:parameter>"),),
            closers=("</atem:invoke>",),
            whole="</atem:invoke>",
        ),
        NativeForm(
            name="pythonic",
            start="<|tool_call_start|>",
            end="<|tool_call_end|>",
            quotes=(_DOUBLE, _SINGLE),
            whole="]",
        ),
        NativeForm(
            name="qwen3_coder",
            start="<tool_call>",
            end="</tool_call>",
            quotes=(Quote("<parameter=", "</parameter>"),),
            closers=("</function>", "<function="),
            whole="</function>",
        ),
    )
}


def can_be_held(form: Form) -> bool:
    """Whether a grammar can write a call of this form: whether its arguments are JSON."""
    return isinstance(form, JSONForm) or form.around is not None


FORMATS: tuple[str, ...] = (*_JSON, *_NATIVE)  #: every name that ``format=`` takes


def forms(name: str | None) -> tuple[Form, ...]:
    """The forms of a format; of None, every JSON form. Raises UnsupportedParameterError for an unknown name."""
    if name is None:
        return tuple(form for some in _JSON.values() for form in some)
    if name in _JSON:
        return _JSON[name]
    if name in _NATIVE:
        return (_NATIVE[name],)
    raise UnsupportedParameterError(f"format must be None or one of {', '.join(FORMATS)}; got {name!r}")

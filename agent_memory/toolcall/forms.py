"""Forms: the ways in which one call, or one group of calls, is written, and what tells where it ends.

- ``ObjectForm``: a JSON object with a name and arguments, or an array of them.
- ``FramedForm``: the arguments alone are JSON, between marks that hold the name.
- ``ElementForm``: elements as in XML: one for the call, one for each argument, whose text is the value.
- ``LiteralForm``: literals of Python, or of a language of the model's own.
- ``ChannelForm``: messages in channels, some of which are calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import field, frozen

from agent_memory.toolcall.found import ARGUMENTS, Found
from agent_memory.toolcall.marks import Shape
from agent_memory.types import Tool


@frozen(kw_only=True)
class ObjectForm:
    """A call as a JSON object: ``start`` and ``end`` around it, or bare (no ``start``) at the beginning of a line.

    ``wrapper``: the one key whose value is the call. ``name_key`` and ``arguments_key``: how the model writes these.
    ``is_array``: the model writes an array of calls. ``is_keyed``: the name is the one key of each. ``separator``: what
    may stand between two calls.
    """

    start: str = ""
    end: str = ""
    wrapper: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    is_array: bool = False
    is_keyed: bool = False
    separator: str = ""

    @property
    def first_keys(self) -> tuple[str, ...]:
        """What the first key of a bare object must be for it to be taken for a call at all."""
        return (self.wrapper,) if self.wrapper else ("name", *ARGUMENTS, "type", "id")


@frozen(kw_only=True)
class FramedForm:
    """Calls whose arguments are JSON, between ``start`` and ``end``; each has a header before and a mark behind them.

    ``header``: its match has the group ``name``, and ``id`` where the model writes one. ``behind``: what must follow
    the arguments. ``writes``: the header and what follows, as a grammar writes them. ``list_form``: how an array of
    calls is written instead. ``named``: the name and the id of a call, from the match's two groups.
    ``is_begun``: the prompt has written ``start`` already. ``is_tight``: no blanks stand around the name.
    """

    start: str
    end: str = ""
    header: Shape = field(eq=False)
    behind: Shape | None = field(default=None, eq=False)
    writes: tuple[str, str]
    list_form: ObjectForm | None = None
    named: Callable[[str, str | None], tuple[str, str | None]] = lambda name, call_id: (name, call_id)
    is_begun: bool = False
    is_tight: bool = False


@frozen(kw_only=True)
class ElementForm:
    """Calls between ``start`` and ``end``, each with an element for every argument.

    ``call`` and ``parameter``: the opening tags; their matches have the group ``name``, or ``attributes``, of which
    ``name``, ``key`` or ``tool`` is the name. An empty ``call_end``: there is one call, and its name is what stands
    before the first parameter. ``is_padded``: a line break around a value is not part of it. ``has_cdata``: a value
    may stand in ``<![CDATA[`` and ``]]>``. ``json_block``: the tags of an element that holds all arguments as JSON.
    ``takes_json``: JSON may stand in place of the elements. ``writes``: the tags, and what stands between them, as a
    grammar writes them: before a call, before a value, behind a value, behind a call.
    """

    start: str
    end: str
    call: Shape = field(eq=False)
    call_mark: str
    call_end: str
    parameter: Shape = field(eq=False)
    parameter_mark: str
    parameter_end: str
    nested: Shape | None = field(default=None, eq=False)
    json_block: tuple[Shape, str, str] | None = field(default=None, eq=False)
    is_padded: bool = False
    has_cdata: bool = False
    takes_json: bool = False
    writes: tuple[str, str, str, str]


@frozen
class Quote:
    """What encloses text in which no mark counts. ``escapes``: a backslash takes the next character in."""

    open: str
    close: str
    escapes: bool = False


@frozen(kw_only=True)
class LiteralForm:
    """Calls between ``start`` and ``end`` that ``read`` reads as a whole; ``start`` may be missing, before a bracket.

    ``last``: the character with which a complete group ends. ``is_list``: it is one list in brackets.
    ``dialect``: how a grammar writes the values.
    """

    start: str = ""
    end: str = ""
    quotes: tuple[Quote, ...]
    last: str
    is_list: bool = False
    dialect: str
    read: Callable[[str, Sequence[Tool] | None], list[Found]] = field(eq=False)


@frozen(kw_only=True)
class ChannelForm:
    """Messages with headers that name a channel and a receiver, as gpt-oss writes them (Harmony)."""

    start: str = "<|channel|>"
    end: str = "<|call|>"


Form = ObjectForm | FramedForm | ElementForm | LiteralForm | ChannelForm


@frozen(kw_only=True)
class Format:
    """How models of one kind write calls. ``source``: where that was read; ``models``: some that do.

    ``reasoning``: the marks of their thoughts, where a tokenizer's vocabulary does not tell. ``silent``: marks that are
    no part of the answer. ``breaks_reasoning``: a start mark ends the thoughts it stands in.
    """

    name: str
    models: str
    source: str
    forms: tuple[Form, ...] = field(repr=False)
    reasoning: tuple[str, str] | None = None
    silent: tuple[str, ...] = ()
    breaks_reasoning: bool = False

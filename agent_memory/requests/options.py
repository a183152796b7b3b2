"""Options of a request: one definition, from which signatures, documentation and checks are derived.

A new option is one key of ``Options``, which type checkers read, and one field of ``Settings``, which holds its
default, its check and the sentence that describes it. Public methods take ``**options: Unpack[Options]`` under
``@takes_options``.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import attrs
from attrs import field, frozen

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.prompt.tokens import check_stop
from agent_memory.protocols import LogitsProcessor
from agent_memory.requests.recalled import checked_recall
from agent_memory.scheduler.callables import checked
from agent_memory.types import OnDiverge, Recall, Sampling, ToolChoice, ToolLike

F = TypeVar("F", bound=Callable[..., Any])
_Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]


class Options(TypedDict, total=False):
    """Names and types of the options that ``generate``, ``say`` and the other request methods take as keywords."""

    tools: Sequence[ToolLike]
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    schema: Mapping[str, Any] | type[Any] | None
    sampling: Sampling
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    repetition_penalty: float | None
    max_tokens: int
    stop: str | Sequence[str]
    logits_processors: Sequence[LogitsProcessor]
    template: Mapping[str, Any] | None
    raw: bool
    priority: int
    timeout_s: float | None
    keep_reasoning: bool | None
    on_diverge: OnDiverge
    recall: bool | Recall | None
    exact: bool
    progress: bool | None


#: The options that are fields of ``Sampling``.
DRAWING = ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty")


def _says(sentence: str) -> dict[str, str]:
    """Return the line of help() for an option."""
    return {"sentence": sentence}


def _must(be: str, is_right: Callable[[Any], bool]) -> _Check:
    """Return a validator that raises UnsupportedParameterError."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not is_right(value):
            shown = type(value).__name__ if attribute.name == "sampling" else repr_of(value)
            raise UnsupportedParameterError(f"{attribute.name} must be {be}, got {shown}")

    return check


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_time(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0)


_A_BOOL = _must("a bool", lambda value: isinstance(value, bool))


@frozen(kw_only=True)
class Settings:
    """One request's options: checked, copied where a caller could change them, and with every default filled in."""

    tools: Sequence[Any] = field(default=(), metadata=_says("tools that the model may call; none: the agent's own"))
    tool_choice: Any = field(default="auto", metadata=_says("'auto', 'none', 'required', or {'name': ...} of one tool"))
    parallel_tool_calls: bool = field(
        default=True, validator=_A_BOOL, metadata=_says("False: the reply ends after one call")
    )
    schema: Any = field(default=None, metadata=_says("JSON Schema or class that the reply fits; see Reply.parsed"))
    sampling: Sampling = field(
        default=Sampling(),
        validator=_must("a Sampling", lambda value: isinstance(value, Sampling)),
        metadata=_says("how tokens are drawn, greedy by default; instead of the next six"),
    )
    temperature: float | None = field(default=None, metadata=_says("as in Sampling; 0 is greedy"))
    top_p: float | None = field(default=None, metadata=_says("as in Sampling: the likeliest tokens up to this sum"))
    top_k: int | None = field(default=None, metadata=_says("as in Sampling: the k likeliest tokens"))
    min_p: float | None = field(default=None, metadata=_says("as in Sampling: tokens from this share of the likeliest"))
    seed: int | None = field(default=None, metadata=_says("as in Sampling: equal seeds draw equal tokens"))
    repetition_penalty: float | None = field(default=None, metadata=_says("as in Sampling; 1 is none"))
    max_tokens: int = field(
        default=512,
        validator=_must("an int of at least 1", lambda value: _is_int(value) and value >= 1),
        metadata=_says("most tokens of the reply"),
    )
    stop: tuple[str, ...] = field(default=(), converter=check_stop, metadata=_says("texts that end the reply"))
    logits_processors: tuple[LogitsProcessor, ...] = field(
        default=(), converter=checked, metadata=_says("callables (ids, logits) -> logits, run on a side thread")
    )
    template: Mapping[str, Any] | None = field(
        default=None, metadata=_says("variables for the chat template, of JSON's types")
    )
    raw: bool = field(
        default=False, validator=_A_BOOL, metadata=_says("True: the prompt is the model's text as it is; no template")
    )
    priority: int = field(
        default=0,
        validator=_must("an int", lambda value: isinstance(value, int)),
        metadata=_says("higher starts earlier"),
    )
    timeout_s: float | None = field(
        default=None,
        validator=_must("a positive number of seconds or None", _is_time),
        metadata=_says("seconds from the call until RequestTimeoutError"),
    )
    keep_reasoning: bool | None = field(
        default=None,
        validator=_must("a bool or None", lambda value: value is None or isinstance(value, bool)),
        metadata=_says("True: earlier replies keep their reasoning, which costs room and spares computing them again"),
    )
    on_diverge: OnDiverge = field(
        default="replace",
        validator=_must("'replace', 'branch' or 'error'", lambda value: value in ("replace", "branch", "error")),
        metadata=_says("what a list does that is another history than the agent's: replace it, branch off, or raise"),
    )
    recall: bool | Recall | None = field(
        default=None,
        converter=checked_recall,
        metadata=_says("what is recalled before the turn, and whether it is remembered; None: as the agent has it"),
    )
    exact: bool = field(
        default=False,
        validator=_A_BOOL,
        metadata=_says("True: computed alone, so that no bit of the reply depends on what else runs or ran"),
    )
    progress: bool | None = field(
        default=None,
        validator=_must("a bool or None", lambda value: value is None or isinstance(value, bool)),
        metadata=_says("a bar while a long prompt is computed: always, never, or None: as Config.progress says"),
    )

    @classmethod
    def of(cls, method: Callable[..., Any], options: Mapping[str, Any]) -> Settings:
        """Return the options that ``method`` was called with. Raises UnsupportedParameterError, before any work."""
        known = attrs.fields_dict(cls)
        for name in options:
            if name not in known:
                raise unknown_option(method, name)
        named = {name: value for name in DRAWING if (value := options.get(name)) is not None}
        if not named:
            return cls(**options)
        if "sampling" in options:
            raise UnsupportedParameterError(
                f"{method.__qualname__}: give sampling= or {', '.join(f'{name}=' for name in named)}, not both; "
                f"Sampling takes {'it' if len(named) == 1 else 'them'} too"
            )
        return cls(**{**options, "sampling": Sampling(**named)})


def unknown_option(method: Callable[..., Any], name: str) -> UnsupportedParameterError:
    """Return the error for a keyword that ``method`` does not have: names the method and its nearest keyword."""
    parameters = inspect.signature(method).parameters.values()
    known = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {repr_of(nearest[0])}?" if nearest else f"it has {', '.join(known)}"
    return UnsupportedParameterError(f"{method.__qualname__} has no option {repr_of(name)}; {hint}")


def takes_options(*, without: Iterable[str] = ()) -> Callable[[F], F]:
    """Write the options into a method's signature and docstring, where help(), notebooks and editors look.

    The method is returned as it is. ``without``: options that it refuses.
    """

    def write(method: F) -> F:
        fields = [one for one in attrs.fields(Settings) if one.name not in without]
        own = inspect.signature(method)
        kept = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
        written = [
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=_type_of(one))
            for one in fields
        ]
        method.__signature__ = own.replace(parameters=[*kept, *written])  # type: ignore[attr-defined]
        if method.__doc__:  # absent under -OO
            lines = "".join(f"    {one.name}: {one.metadata['sentence']}\n" for one in fields)
            method.__doc__ = f"{inspect.cleandoc(method.__doc__)}\n\nOptions:\n{lines}"
        return method

    return write


def _type_of(option: attrs.Attribute[Any]) -> str:
    """Return an option's type as ``Options`` spells it."""
    spelled = Options.__annotations__[option.name]
    return str(getattr(spelled, "__forward_arg__", spelled))

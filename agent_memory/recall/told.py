"""What a caller passes to ``remember`` -> ``Told`` values: one a turn, a note, a diff or a log, of bounded size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

import attrs
from attrs import frozen

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.prompt.messages import normalize
from agent_memory.recall.types import TEXT_KINDS
from agent_memory.types import Message

MAX_TEXT_BYTES = 100_000  #: longer texts are split
MAX_CALL_BYTES = 16 * 1024 * 1024

_DIFF = re.compile(r"^(?:diff --git |@@ -\d+(?:,\d+)? \+\d+|--- \S+\n\+\+\+ \S+)", re.MULTILINE)
_LOG_LINE = re.compile(
    r"^(?:Traceback \(most recent call last\):|={3,} .+ ={3,}$|E   |\S+:\d+:\d+: (?:error|warning)|FAILED "
    r"|\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d|(?:ERROR|WARN(?:ING)?|INFO|DEBUG|FATAL|CRITICAL)\b)",
    re.MULTILINE,
)
_SPOKEN = re.compile(r"^(?P<speaker>[A-Z][\w .'-]{0,40}|user|assistant|system|tool):[ \t]+(?=\S)", re.MULTILINE)
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "ai": "assistant", "bot": "assistant",
          "system": "system", "tool": "tool"}  # fmt: skip


@frozen(kw_only=True)
class Told:
    """One text on its way into the store."""

    kind: str
    body: str
    role: str = "user"
    speaker: str | None = None
    source: str | None = None
    at: float = 0.0


def told(content: object, kind: str | None) -> list[Told]:
    """Return the texts in ``content``: a text, a message, or a list of messages of any shape that ``generate`` takes.

    System messages and reasoning are left out: instructions of a program are no memories. Raises
    UnsupportedParameterError for another kind or shape, a lone surrogate, nothing at all, or more than 16 MiB.
    """
    if kind is not None and kind not in TEXT_KINDS:
        raise UnsupportedParameterError(
            f"kind is {repr_of(kind)}; known: {', '.join(TEXT_KINDS)}, or None to see for itself"
        )
    if isinstance(content, str):
        found = _of_text(content, kind)
    elif isinstance(content, (Message, Mapping, Sequence)) and not isinstance(content, (bytes, bytearray)):
        if kind not in (None, "chat"):
            raise UnsupportedParameterError(f"messages are remembered as 'chat', not as {repr_of(kind)}")
        found = [one for message in normalize(content) if (one := _of_message(message))]
    else:
        raise UnsupportedParameterError(f"remember takes a text or messages, got {type(content).__name__}")
    n_bytes = sum(_n_bytes(one.body) for one in found)
    if n_bytes > MAX_CALL_BYTES:
        raise UnsupportedParameterError(
            f"remember was given {n_bytes:,} bytes; one call takes {MAX_CALL_BYTES:,}. Call it for each part"
        )
    return found


def split(one: Told) -> Iterator[Told]:
    """Yield ``one`` in pieces of at most ``MAX_TEXT_BYTES`` of UTF-8, cut at lines where there are any."""
    body = one.body
    if _n_bytes(body) <= MAX_TEXT_BYTES:
        yield one
        return
    start = 0
    while start < len(body):
        stop = min(len(body), start + MAX_TEXT_BYTES)
        while (size := len(body[start:stop].encode())) > MAX_TEXT_BYTES:
            stop = start + max(1, (stop - start) * MAX_TEXT_BYTES // size)
        if stop < len(body) and (line := body.rfind("\n", start + (stop - start) // 2, stop)) > 0:
            stop = line + 1
        if body[start:stop].strip():
            yield attrs.evolve(one, body=body[start:stop])
        start = stop


def detected(text: str) -> str:
    """Return "diff" or "log" if a text looks like one, else "note"."""
    if _DIFF.search(text):
        return "diff"
    n_lines = text.count("\n") + 1
    n_log = sum(1 for _ in _LOG_LINE.finditer(text))
    return "log" if "Traceback (most recent call last):" in text or n_log >= max(2, n_lines // 4) else "note"


def _of_text(text: str, kind: str | None) -> list[Told]:
    _n_bytes(text)
    if not text.strip():
        raise UnsupportedParameterError("remember was given an empty text")
    if kind == "chat":
        return _of_transcript(text)
    return [Told(kind=kind or detected(text), body=text)]


def _of_transcript(text: str) -> list[Told]:
    """The turns of a transcript whose turns begin with ``Name:``; one turn where none does."""
    marks = list(_SPOKEN.finditer(text))
    if not marks:
        return [Told(kind="chat", body=text)]
    out = [Told(kind="chat", body=before)] if (before := text[: marks[0].start()].strip()) else []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        body = text[mark.end() : following.start() if following else len(text)].rstrip()
        role = _ROLES.get(mark["speaker"].lower())
        if role != "system" and body:
            speaker = None if role else mark["speaker"]
            out.append(Told(kind="chat", body=body, role=role or "user", speaker=speaker))
    return out


def _of_message(message: Message) -> Told | None:
    if message.role == "system":
        return None
    calls = [f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})" for call in message.tool_calls]
    body = "\n".join([message.content, *calls]) if message.content.strip() else "\n".join(calls)
    return Told(kind="chat", body=body, role=message.role, speaker=message.name) if body.strip() else None


def _n_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise UnsupportedParameterError(
            f"the text is not valid Unicode: a lone surrogate at character {error.start}"
        ) from None

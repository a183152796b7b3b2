"""EchoTokenizer: 256 bytes, some merges, and role tokens; in Python alone.

As with Hugging Face's tokenizers, a special token written in a text becomes its id: who lets strangers write prompts
must strip such strings, or a stranger's message can end its turn and begin another.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from agent_memory.errors import UnsupportedParameterError

_ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>", "tool": "<|tool|>"}
_END, _BOS = "<|end|>", "<|bos|>"
_SPECIALS = (*_ROLES.values(), _END, _BOS)
_WORDS = (
    "in ou the er re on he st nd is es en at it to or an ing ed ion un be bel lie li ie va able vable ab le believable"
)
_MERGES = (*_WORDS.split(), "hel", "llo", "ell", "lo", "He", "wo", "rld", "12", "00", "\u00e9", "\u4e16", "\u754c")
_SPACED = (" ", "  ", "    ", " the", " a", " un", " be", " to", " w", "\n\n")
_HALVES = (b"\xe4\xb8", b"\xf0\x9f", b"\x98\x80", b"a\xc3")  #: parts of characters, as byte-level BPE learns them


class EchoTokenizer:
    """The tokenizer of an EchoRunner: greedy longest match over bytes."""

    def __init__(self, *, bos: bool = False) -> None:
        merges = dict.fromkeys([*(m.encode() for m in (*_MERGES, *_SPACED)), *_HALVES])
        self._pieces: list[bytes] = [bytes([b]) for b in range(256)] + [m for m in merges if len(m) > 1]
        self._ids = {piece: i for i, piece in enumerate(self._pieces)}
        self._special = {text: len(self._pieces) + i for i, text in enumerate(_SPECIALS)}
        self._names = {i: text for text, i in self._special.items()}
        self._keys = [piece.decode("latin-1") for piece in self._pieces] + list(_SPECIALS)
        longest_first = sorted(self._pieces[256:], key=len, reverse=True)
        self._piece_re = re.compile(b"|".join(map(re.escape, longest_first)) + b"|.", re.DOTALL)
        self._special_re = re.compile("(" + "|".join(map(re.escape, _SPECIALS)) + ")")
        self._special_ids = frozenset(self._special.values())
        self._bos_id = self._special[_BOS] if bos else None
        vocabulary = json.dumps(["echo-1", self._keys, bos])
        self._digest = hashlib.sha256(vocabulary.encode()).hexdigest()

    @property
    def digest(self) -> str:
        """sha256 hex of the vocabulary and of ``bos``."""
        return self._digest

    @property
    def n_vocab(self) -> int:
        """How many ids there are."""
        return len(self._keys)

    @property
    def bos_id(self) -> int | None:
        """The id of ``<|bos|>`` where this tokenizer puts one."""
        return self._bos_id

    @property
    def end_id(self) -> int:
        """The id of ``<|end|>``, the end of a turn."""
        return self._special[_END]

    @property
    def eos_ids(self) -> frozenset[int]:
        """``<|end|>`` alone."""
        return frozenset((self.end_id,))

    @property
    def special_ids(self) -> frozenset[int]:
        """Role tokens, ``<|end|>`` and ``<|bos|>``."""
        return self._special_ids

    @property
    def has_template(self) -> bool:
        """Always."""
        return True

    @property
    def knows_tools(self) -> bool:
        """Always."""
        return True

    @property
    def tool_format(self) -> str | None:
        """Any JSON form."""
        return None

    @property
    def reasoning(self) -> tuple[str, str] | None:
        """``<think>``, ``</think>``: plain text to this tokenizer."""
        return "<think>", "</think>"

    @property
    def vocabulary(self) -> Sequence[bytes]:
        """The bytes of every id; special tokens as written."""
        return [*self._pieces, *(text.encode() for text in _SPECIALS)]

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of ``text``; special tokens written in it become their ids. Raises UnsupportedParameterError."""
        ids: list[int] = []
        for place, part in enumerate(self._special_re.split(text)):
            ids.extend((self._special[part],) if place % 2 else self.encode_plain(part))
        if bos and self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids.insert(0, self._bos_id)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of ``text`` with special tokens taken as plain text."""
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedParameterError(f"the text is not Unicode: a lone surrogate at {error.start}") from error
        ids = self._ids
        return [ids[piece] for piece in self._piece_re.findall(data)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens; broken characters become U+FFFD."""
        n = len(self._pieces)
        return b"".join([self._pieces[i] for i in ids if i < n]).decode("utf-8", "replace")

    def key(self, ids: Sequence[int]) -> str:
        """Bytes as latin-1 characters, special tokens as written."""
        keys = self._keys
        return "".join([keys[i] for i in ids])

    def detokenizer(self, *, marks: bool = False) -> EchoDetokenizer:
        """A fresh streaming detokenizer; no special token is a mark."""
        return EchoDetokenizer(self._pieces)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> str:
        """``<|role|>text<|end|>`` per message; tools are named in the system message, made if there is none.

        The one variable is ``reply_prefix``: text after the opening ``<|assistant|>``.
        """
        if unknown := [m["role"] for m in messages if m["role"] not in _ROLES]:
            known = ", ".join(_ROLES)
            raise UnsupportedParameterError(f"the echo template knows no role {unknown[0]!r}; known: {known}")
        listed = "".join("\n" + json.dumps(tool, ensure_ascii=False, sort_keys=True) for tool in tools)
        parts = [_BOS] if self._bos_id is not None else []
        if tools and not (messages and messages[0]["role"] == "system"):
            parts.append(f"{_ROLES['system']}Tools:{listed}{_END}")
        for place, message in enumerate(messages):
            extra = f"\nTools:{listed}" if tools and not place and message["role"] == "system" else ""
            parts.append(f"{_ROLES[message['role']]}{_said(message)}{extra}{_END}")
        if generation_prompt:
            parts.append(_ROLES["assistant"] + str((variables or {}).get("reply_prefix", "")))
        return "".join(parts)

    def last_user_text(self, ids: Sequence[int]) -> str:
        """The last user message in ``ids``; all of their text where no ``<|user|>`` is among them."""
        user = self._special[_ROLES["user"]]
        if user not in ids:
            return self.decode(ids)
        start = len(ids) - 1 - list(reversed(ids)).index(user)
        stop = next((i for i in range(start + 1, len(ids)) if ids[i] in self._special_ids), len(ids))
        return self.decode(ids[start + 1 : stop])


class EchoDetokenizer:
    """Bytes to text, whole characters at a time."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that became final with this id."""
        return self._decoder.decode(self._pieces[token]) if token < len(self._pieces) else ""

    def end(self) -> str:
        """U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


def _said(message: Mapping[str, Any]) -> str:
    """Content and then calls, each on a line of its own."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    shown = [json.dumps({"name": c["name"], "arguments": c["arguments"]}, ensure_ascii=False) for c in calls]
    content = str(message.get("content") or "")
    break_ = "\n" if content and calls and not content.endswith("\n") else ""
    return content + break_ + "\n".join(f"<tool_call>{call}</tool_call>" for call in shown)

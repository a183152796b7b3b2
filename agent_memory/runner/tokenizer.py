"""Hugging Face tokenizers behind the ``Tokenizer`` protocol: exact text, whole characters, one lock.

Text is decoded here and not by mlx-lm's detokenizers, which write text twice or lose spaces for some decoders.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from agent_memory.errors import ConfigError, UnsupportedParameterError
from agent_memory.protocols import Detokenizer
from agent_memory.runner.decoders import Decoding, TokenStream
from agent_memory.runner.decodestages import byte_of, token_bytes
from agent_memory.toolcall import FORMATS
from agent_memory.toolcall.choice import Choice, choose
from agent_memory.toolcall.formats import format_of

log = logging.getLogger("agent_memory.runner")

#: Names that the template call itself sets; a caller's variable of that name would be lost or break it.
_RESERVED = {"messages", "conversation", "tools", "documents", "add_generation_prompt", "tokenize", "chat_template"}

#: Every directive of strftime that a template may use; "%%" last, since its text looks like one.
_DIRECTIVES = (
    *(f"%-{letter}" for letter in "dmHIMSjy"),
    *(f"%{letter}" for letter in "aAwdbBmyYHIpMSfzZjUWcxXGuVF"),
    "%%",
)
_TOLD_TIME = (
    "{%- macro strftime_now(format) -%}{%- set told = namespace(text=format) -%}"
    "{%- for key, value in told_time.items() -%}{%- set told.text = told.text.replace(key, value) -%}{%- endfor -%}"
    "{{- told.text -}}{%- endmacro -%}"
)


class HFTokenizer:
    """A tokenizer as mlx-lm loads it (``TokenizerWrapper``), or any Hugging Face fast tokenizer."""

    def __init__(self, wrapper: Any, tool_format: str | None = None) -> None:
        if tool_format not in (None, *FORMATS):
            raise ConfigError(f"tool_format must be None or one of {', '.join(FORMATS)}: {tool_format!r}")
        self._tool_format = tool_format
        from mlx_lm.tokenizer_utils import TokenizerWrapper

        self._wrapper = wrapper if isinstance(wrapper, TokenizerWrapper) else TokenizerWrapper(wrapper)
        self._hf = self._wrapper._tokenizer
        # Fast tokenizers raise "Already borrowed" when two threads set their padding at once.
        self._lock = threading.Lock()
        eos: Any = getattr(wrapper, "eos_token_ids", None)  # a set in mlx-lm's wrapper, one int in transformers 5
        if eos is None or isinstance(eos, int):
            eos = [self._hf.eos_token_id if eos is None else eos]
        self._eos_ids = frozenset(int(i) for i in eos if i is not None)
        self._hidden = frozenset(int(i) for i in self._hf.all_special_ids)
        ends = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
        self._ends = self._eos_ids | {int(i) for name in ends if (i := getattr(self._hf, name, None)) is not None}
        self._special_ids = frozenset(int(i) for i in self._hf.added_tokens_decoder) | self._hidden
        probe = self._hf.encode("a")
        self._bos_id = self._hf.bos_token_id if probe and probe[0] == self._hf.bos_token_id else None

    @cached_property
    def digest(self) -> str:
        """sha256 hex of the tokenizer's own serialization."""
        backend = getattr(self._hf, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else json.dumps(sorted(self._hf.get_vocab().items()))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def bos_id(self) -> int | None:
        """The id that this tokenizer puts before raw text by itself."""
        return self._bos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a reply."""
        return self._eos_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Added tokens: taken out of the text before anything merges."""
        return self._special_ids

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of ``text``; BOS once when asked."""
        with self._lock:
            ids: list[int] = self._hf.encode(text, add_special_tokens=False, verbose=False)
        if bos and self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids.insert(0, self._bos_id)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens, byte for byte."""
        if (pieces := self._pieces) is not None:
            n, hidden = len(pieces), self._hidden
            return b"".join([pieces[one] for one in ids if one < n and one not in hidden]).decode("utf-8", "replace")
        stream = self.detokenizer()
        return "".join(map(stream.add, ids)) + stream.end()

    def key(self, ids: Sequence[int]) -> str:
        """Return the pieces of the vocabulary as one text; equal keys are equal text.

        Byte tokens stand for their byte, so that a character and its bytes have one key. Where the decoder looks at
        where tokens begin, so does the key.
        """
        # A model's vocabulary may be padded beyond its tokenizer's: an id without a piece has no text.
        pieces = [piece or "" for piece in self._hf.convert_ids_to_tokens(list(ids))]
        if self._decoding is None or self._decoding.is_byte_level:
            return "".join(pieces)
        if not self._decoding.is_concatenation:
            return "".join(f"{piece}\0" for piece in pieces)
        if not self._decoding.has_byte_tokens:
            return "".join(pieces)
        return b"".join(map(_bytes_of_piece, pieces)).decode("latin-1")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> str:
        """The chat template's text; the tokenizer must have a template."""
        if clash := _RESERVED & set(variables or ()):
            raise UnsupportedParameterError(
                f"template variable {min(clash)!r} is set by the library; choose another name"
            )
        functions = [dict(t) for t in tools] or None
        rows = [dict(m) for m in messages]
        asked = {
            "tools": functions,
            "add_generation_prompt": generation_prompt,
            **(variables or {}),
            **({} if now is None else self._dated(functions, now)),
        }
        try:
            try:
                text = self._hf.apply_chat_template(rows, tokenize=False, **asked)
            except TypeError:  # some templates join a call's arguments to text: they take them as JSON
                if not any(row.get("tool_calls") for row in rows):
                    raise
                text = self._hf.apply_chat_template([_in_json(row) for row in rows], tokenize=False, **asked)
        except Exception as error:  # a template is a program from elsewhere, which may divide by zero
            said = str(error) if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {error}"
            raise UnsupportedParameterError(f"the model's chat template refuses these messages: {said}") from error
        return str(text)

    def _dated(self, tools: list[dict[str, Any]] | None, now: datetime) -> dict[str, Any]:
        """Arguments under which the template's ``strftime_now`` tells ``now``; none where it does not ask.

        Templates get plain data alone, so the time goes in as a table of directives, which a macro fills in.
        """
        template = str(self._hf.get_chat_template(None, tools))
        if "strftime_now" not in template:
            return {}
        return {"chat_template": _TOLD_TIME + template, "told_time": {key: now.strftime(key) for key in _DIRECTIVES}}

    @property
    def has_template(self) -> bool:
        """True if a chat template came with the tokenizer."""
        return bool(getattr(self._hf, "chat_template", None))

    @cached_property
    def knows_tools(self) -> bool:
        """True if a tool's name comes out where one goes in."""
        probe = {"name": "probe_tool", "description": "", "parameters": {"type": "object", "properties": {}}}
        try:
            tools = [{"type": "function", "function": probe}]
            return self.has_template and "probe_tool" in self.render([{"role": "user", "content": "a"}], tools=tools)
        except UnsupportedParameterError:
            return False

    @property
    def tool_format(self) -> str | None:
        """As ``call_choice`` says."""
        return self.call_choice.format

    @cached_property
    def call_choice(self) -> Choice:
        """The format of calls and the marks of reasoning, by template and vocabulary, and why; mlx-lm's where neither
        tells.
        """
        template = getattr(self._hf, "chat_template", None)
        parser = getattr(self._wrapper, "tool_parser", None)
        named = str(parser.__module__.rpartition(".")[2]) if parser is not None else None
        vocabulary = frozenset(self._hf.get_vocab())
        if self._tool_format is not None:
            marks = choose(template if isinstance(template, str) else None, vocabulary, self._tool_format).reasoning
            return Choice(
                self._tool_format, "the configuration asks for it", format_of(self._tool_format).reasoning or marks
            )
        return choose(template if isinstance(template, str) else None, vocabulary, named if named in FORMATS else None)

    @cached_property
    def reasoning(self) -> tuple[str, str] | None:
        """As mlx-lm infers them from the vocabulary, else as ``call_choice`` says."""
        marks = (getattr(self._wrapper, "think_start", None), getattr(self._wrapper, "think_end", None))
        return (str(marks[0]), str(marks[1])) if all(marks) else self.call_choice.reasoning

    @cached_property
    def vocabulary(self) -> str:
        """The tokenizers library's JSON."""
        backend = getattr(self._hf, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedParameterError("constrained decoding needs one of Hugging Face's fast tokenizers")
        return str(backend.to_str())

    def detokenizer(self, *, marks: bool = False) -> Detokenizer:
        """A fresh streaming detokenizer."""
        hidden = self._hidden & self._ends if marks else self._hidden
        if self._pieces is not None:
            return _ByteStream(self._pieces, hidden)
        if self._decoding is not None:
            return _PieceStream(self._hf.backend_tokenizer.id_to_token, self._decoding.stream(), hidden)
        return _WindowStream(self._decode_all, hidden)

    @cached_property
    def _decoding(self) -> Decoding | None:
        """The tokenizer's decoder; None where the text is made in another way, which is known only to itself."""
        backend = getattr(self._hf, "backend_tokenizer", None)
        if backend is None or not all(_is_stock(self._hf, name) for name in ("decode", "_decode")):
            return None
        try:
            return Decoding(json.loads(backend.to_str()).get("decoder"))
        except ValueError as error:
            log.warning("tokenizer: %s; text is decoded in windows, and may differ where they meet", error)
            return None

    @cached_property
    def _pieces(self) -> list[bytes] | None:
        """Bytes of every id of a byte-level vocabulary; None where the decoder is of another kind."""
        if self._decoding is None or not self._decoding.is_byte_level:
            return None
        added = {int(i): str(t) for i, t in self._hf.added_tokens_decoder.items()}
        pieces = []
        for number, piece in enumerate(self._hf.convert_ids_to_tokens(list(range(len(self._hf))))):
            # An added token stands in the text as it is, also where all its letters are of the bytes' alphabet.
            pieces.append(added[number].encode() if number in added else token_bytes(piece or ""))
        return pieces

    def _decode_all(self, ids: Sequence[int]) -> str:
        with self._lock:
            return str(self._hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


class _ByteStream:
    """Byte-level ids to text: bytes go through one incremental UTF-8 decoder, so a character comes out whole."""

    __slots__ = ("_decoder", "_hidden", "_pieces")

    def __init__(self, pieces: list[bytes], hidden: frozenset[int]) -> None:
        self._pieces, self._hidden = pieces, hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        if token in self._hidden or token >= len(self._pieces):  # models pad their vocabulary beyond the tokenizer's
            return ""
        return self._decoder.decode(self._pieces[token])

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


class _PieceStream:
    """Ids to text through the tokenizer's own decoder."""

    __slots__ = ("_decoder", "_hidden", "_piece")

    def __init__(self, piece: Callable[[int], str | None], decoder: TokenStream, hidden: frozenset[int]) -> None:
        self._piece, self._decoder, self._hidden = piece, decoder, hidden

    def add(self, token: int) -> str:
        if token in self._hidden:
            return ""
        piece = self._piece(token)
        return "" if piece is None else self._decoder.add(piece)

    def end(self) -> str:
        return self._decoder.end()


class _WindowStream:
    """Ids to text where only the tokenizer knows how: the newest ids are decoded behind those before them.

    Text is given out when it goes on what the ids before gave and ends in no unfinished character.
    """

    __slots__ = ("_decode", "_hidden", "_ids", "_n_given", "_start")

    def __init__(self, decode: Callable[[Sequence[int]], str], hidden: frozenset[int]) -> None:
        self._decode, self._hidden = decode, hidden
        self._ids: list[int] = []
        self._start = self._n_given = 0  #: the window's first id; ids whose text was given out

    def add(self, token: int) -> str:
        if token in self._hidden:
            return ""
        self._ids.append(token)
        text = self._fresh()
        if not text or text.endswith("\ufffd"):
            return ""
        return self._given(text)

    def end(self) -> str:
        return self._given(self._fresh())

    def _fresh(self) -> str:
        before = self._decode(self._ids[self._start : self._n_given])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _given(self, text: str) -> str:
        self._start, self._n_given = self._n_given, len(self._ids)
        return text


def _bytes_of_piece(piece: str) -> bytes:
    byte = byte_of(piece)
    return piece.encode() if byte is None else bytes([byte])


def _is_stock(hf: Any, method: str) -> bool:
    """True if the method is transformers' own for all fast tokenizers."""
    found = getattr(type(hf), method, None)
    return found is None or str(found.__module__).startswith("transformers.tokenization_utils")


def _in_json(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose calls have their arguments as JSON text."""
    calls = []
    for call in message.get("tool_calls") or ():
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**message, "tool_calls": calls} if calls else dict(message)

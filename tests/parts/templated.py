"""An EchoRunner that speaks through a model family's chat template, and says what a test has written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from agent_memory import EchoRunner
from agent_memory.runner.tokenizer import HFTokenizer
from agent_memory.toolcall.formats import FORMATS
from tests.parts.templates import NATIVE, Native, backend

_FORMATS = {"qwen": "json_tools", "llama": "llama3"}
_ANY = '<tool_call>{{"name": "{name}", "arguments": {args}}}</tool_call>'


class Templated(HFTokenizer):
    """A real tokenizer with one of the templates, and what an EchoRunner asks of its own tokenizer beside that."""

    def __init__(self, native: Native) -> None:
        from mlx_lm.tokenizer_utils import TokenizerWrapper

        fast = backend(native)
        ends = [fast.convert_tokens_to_ids(text) for text in native.ends]
        super().__init__(TokenizerWrapper(fast, eos_token_ids=ends))
        self.native, self.n_vocab, self.end_id = native, len(fast), ends[0]

    @property
    def tool_format(self) -> str | None:
        """The family's own where the library reads it; else any JSON form."""
        wanted = _FORMATS.get(self.native.name, self.native.name)
        return wanted if wanted in FORMATS else None

    @property
    def reasoning(self) -> tuple[str, str] | None:
        """The marks of Qwen's template."""
        return ("<think>", "</think>") if self.native.name == "qwen" else None

    @property
    def call(self) -> str:
        """How a call is written, for ``str.format`` with name and args."""
        return self.native.call if self.tool_format is not None else _ANY

    @property
    def call_end(self) -> int:
        """The id that ends a reply with calls."""
        return self.encode(self.native.call_end)[0] if self.native.call_end else self.end_id

    def encode_plain(self, text: str) -> list[int]:
        return self.encode(text)

    def last_user_text(self, ids: Sequence[int]) -> str:
        return self.decode(ids[-8:])


@cache
def templated(name: str) -> Templated:
    return Templated(NATIVE[name])


def says(tokenizer: Any, *replies: str | Sequence[int]) -> EchoRunner:
    """A runner whose model says these one after another, in ids that the whole text would not have; then "ok"."""
    rest = list(replies)

    def say(asked: str, ids: tuple[int, ...]) -> Sequence[int]:
        reply = rest.pop(0) if rest else "ok"
        return uneven(tokenizer, reply) if isinstance(reply, str) else reply

    runner = EchoRunner(say)
    runner._tokenizer = tokenizer
    return runner


def uneven(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text, tokenized three characters at a time between special tokens: few merges survive."""
    out: list[int] = []
    specials = tokenizer.special_ids
    run: list[int] = []
    decode: Callable[[Sequence[int]], str] = tokenizer.decode
    for token in [*tokenizer.encode(text), None]:
        if token is not None and token not in specials:
            run.append(token)
            continue
        piece = decode(run)
        out += [i for at in range(0, len(piece), 3) for i in tokenizer.encode(piece[at : at + 3])]
        run = []
        if token is not None:
            out.append(token)
    return out

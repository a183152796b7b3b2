"""Prompt ids hold what the template says, one BOS, and the ids that are known."""

from __future__ import annotations

from typing import Any

import pytest

from agent_memory.echo.tokenizer import EchoTokenizer
from agent_memory.prompt.template import prompt_ids, raw_ids, render
from agent_memory.types import Message, Tool


class Bare(EchoTokenizer):
    """A tokenizer that came without a chat template."""

    @property
    def has_template(self) -> bool:
        return False

    def render(self, *args: Any, **options: Any) -> str:
        raise AssertionError("there is no template")


SYSTEM, USER = Message("system", "Be brief."), Message("user", "hi")


@pytest.mark.parametrize("bos", [False, True])
def test_bos_stands_once_at_most(bos: bool) -> None:
    tokenizer = EchoTokenizer(bos=bos)
    known: list[int] = []
    history = [USER]
    for _ in range(3):
        known = prompt_ids(tokenizer, history, known)
        assert known == tokenizer.encode(render(tokenizer, history))
        assert known.count(tokenizer.encode("<|bos|>")[0]) == int(bos)
        history += [Message("assistant", "yes"), USER]
    raw = raw_ids(tokenizer, "abc")
    assert raw_ids(tokenizer, "<|bos|>abc").count(tokenizer.encode("<|bos|>")[0]) == 1
    assert raw_ids(tokenizer, "abc", raw) == [*raw, *tokenizer.encode("abc")]
    assert (raw[0] == tokenizer.bos_id) is bos


def test_generated_ids_of_a_turn_are_kept_in_the_next_prompt() -> None:
    tokenizer = EchoTokenizer()
    known = [*prompt_ids(tokenizer, [USER]), *b"unbelievable", tokenizer.end_id]
    history = [USER, Message("assistant", "unbelievable"), Message("user", "more")]
    assert prompt_ids(tokenizer, history)[: len(known)] != known
    assert prompt_ids(tokenizer, history, known)[: len(known)] == known


def test_variables_tools_and_the_generation_prompt_reach_the_template() -> None:
    tokenizer = EchoTokenizer()
    assert render(tokenizer, [USER], variables={"reply_prefix": "Well"}).endswith("<|assistant|>Well")
    assert not render(tokenizer, [USER], generation_prompt=False).endswith("<|assistant|>")
    assert '"clock"' in render(tokenizer, [SYSTEM, USER], tools=[Tool("clock")])


def test_a_tokenizer_without_a_template_gets_plain_paragraphs() -> None:
    assert render(Bare(), [USER]) == "User: hi\n\nAssistant:"
    assert render(Bare(), [SYSTEM, USER], generation_prompt=False) == "System: Be brief.\n\nUser: hi\n\n"

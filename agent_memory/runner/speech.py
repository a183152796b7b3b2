"""How a model's turns begin and end: what about its tokenizer and template makes replies run on, or fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_memory.errors import UnsupportedParameterError

if TYPE_CHECKING:
    from agent_memory.runner.tokenizer import HFTokenizer

_ANSWER = "Zq7"  #: an answer that no template writes by itself


def notes(tokenizer: HFTokenizer, where: str | None) -> list[str]:
    """What a user should know before the first reply; ``where``: the model's folder, if it has one."""
    found = []
    end = None
    if not tokenizer.has_template:
        found.append(
            "the model has no chat template: conversations are written as paragraphs such as 'User: ...'. "
            "A chat model's template belongs into chat_template.jinja in its folder"
        )
    else:
        try:
            end = _turn_end(tokenizer)
        except UnsupportedParameterError as error:
            found.append(f"the chat template cannot write one question and its answer: {error}")
    if (note := _about_end(tokenizer, end, where)) is not None:
        found.append(note)
    return found


def _about_end(tokenizer: HFTokenizer, end: int | None, where: str | None) -> str | None:
    """What is wrong with the ids that end a reply, given the one with which the template ends a turn."""
    if end is None:
        if tokenizer.eos_ids:
            return None
        return "the tokenizer names no token that ends a text: replies end at max_tokens or a stop string alone"
    if end in tokenizer.eos_ids:
        return None
    known = ", ".join(f"{tokenizer.key([i])!r} ({i})" for i in sorted(tokenizer.eos_ids)) or "none"
    ids = sorted({*tokenizer.eos_ids, end})
    name = tokenizer.key([end])
    cure = f'"eos_token_id": {ids} in {where}/generation_config.json' if where else f"tokenizer.add_eos_token({name!r})"
    return (
        f"the chat template ends a turn with {name!r} ({end}), and a reply ends only with: {known}. "
        f"Replies may run on to max_tokens. Write {cure}"
    )


def _turn_end(tokenizer: HFTokenizer) -> int | None:
    """The special token that the template writes behind an answer, or before what follows it; None where it has none.

    Raises UnsupportedParameterError where the template fails.
    """
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
    for messages in (talk, [*talk, {"role": "user", "content": "b"}]):
        _, answer, rest = tokenizer.render(messages, generation_prompt=False).rpartition(_ANSWER)
        special = next((i for i in tokenizer.encode(rest) if i in tokenizer.special_ids), None)
        if answer and special is not None:
            return special
    return None

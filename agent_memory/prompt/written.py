"""The text of ids with special tokens as they are written."""

from __future__ import annotations

from collections.abc import Sequence

from agent_memory.protocols import Tokenizer


def written(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids, special tokens included."""
    specials = tokenizer.special_ids
    out: list[str] = []
    run: list[int] = []
    for token in ids:
        if token in specials:
            out += [tokenizer.decode(run), tokenizer.key([token])]
            run = []
        else:
            run.append(token)
    return "".join([*out, tokenizer.decode(run)])

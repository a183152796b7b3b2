"""Rows of turns: written, ended, and read back with their checksums. Under the database's lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

import numpy as np

from agent_memory.log.soundness import BAD_JSON, is_turn
from agent_memory.log.turns import Turn, turn_sum


def checked_turn(
    branch: Any,
    number: Any,
    messages: Any,
    keep: Any,
    ids: Any,
    tokenizer: Any,
    finish: Any,
    created_s: Any,
    kept: Any,
    n_kv: Any,
    n_reply: Any,
    digest: Any,
) -> Turn:
    """The turn of a row, its messages not taken apart yet. Raises one of BAD_JSON where its checksum is wrong."""
    is_typed = isinstance(n_reply, int | None) and isinstance(tokenizer, str)
    if not is_typed or not is_turn((branch, number, keep, kept, n_kv), ids, created_s):
        raise ValueError("its values could not have been written")
    turn = Turn((), keep, np.frombuffer(ids, "<u4"), tokenizer, finish, created_s, kept, n_kv, n_reply)
    if turn_sum(branch, number, turn, messages) != digest or n_kv > keep + len(turn.ids):
        raise ValueError("its checksum is wrong")
    return turn


def put_turn(db: sqlite3.Connection, branch: int, number: int, turn: Turn, messages: str) -> None:
    """Add a turn to a branch; ``messages``: JSON of its own."""
    row = (
        branch,
        number,
        messages,
        turn.n_messages_kept,
        turn.n_messages_kept + len(turn.messages),
        turn.keep,
        turn.keep + len(turn.ids),
        turn.tokenizer,
        turn.finish,
        turn.created_s,
        turn.n_kv,
        turn_sum(branch, number, turn, messages),
        turn.ids.astype("<u4").tobytes(),
        turn.n_reply,
    )
    db.execute(f"INSERT INTO turns VALUES ({','.join('?' * len(row))})", row)


def is_whole_turn(row: Mapping[str, Any]) -> bool:
    """True if the checksum of a turn's row holds; columns by name, those of newer versions may be missing."""
    try:
        checked_turn(
            row["agent"],
            row["number"],
            row["messages"],
            row["keep"],
            row["ids"],
            row["tokenizer"],
            row["finish"],
            row["created_s"],
            row["n_messages_kept"],
            row["n_kv"],
            row.get("n_reply"),
            row["xxh3"],
        )
    except BAD_JSON:
        return False
    return True


def end_turns(db: sqlite3.Connection, branch: int, n_turns: int) -> None:
    """End the turns of a branch from a number on, and rows whose number could not have been written."""
    odd = "number < 0 OR typeof(number) != 'integer'"
    db.execute(f"DELETE FROM turns WHERE agent = ? AND (number >= ? OR {odd})", (branch, n_turns))

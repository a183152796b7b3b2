"""Plain SQLite FTS5 over a conversation's turns: what one gets in twenty lines, to compare with.

Porter's stems, stop words of the question dropped, the date in the text; turns, windows of three turns (credited to the
middle one), or both by reciprocal ranks. Nothing is tuned, and nothing of this library is used.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

STOP = frozenset(
    """a about an and any are as at be been but by can could did do does for from had has have he her hers him his how i
    if in into is it its me my of on or our she should so than that the their them then there these they this those to
    was we were what when where which while who whom why will with would you your""".split()
)
VIEWS = ("turn", "window", "both")
_RANKED = 50
_RRF_K = 10


def ranked(texts: Sequence[str], dates: Sequence[str]) -> Callable[[str, str], list[int]]:
    """Index turns; return a function of a question and a view that gives turns' places, best first."""
    db = sqlite3.connect(":memory:")
    for view in ("turn", "window"):
        db.execute(f"CREATE VIRTUAL TABLE {view} USING fts5 (body, tokenize='porter unicode61')")
        reach = 1 if view == "window" else 0
        for place, date in enumerate(dates):
            body = " ".join(texts[max(0, place - reach) : place + reach + 1])
            db.execute(f"INSERT INTO {view} (rowid, body) VALUES (?, ?)", (place + 1, f"{date} {body}"))

    def ask(question: str, view: str) -> list[int]:
        words = [word for word in re.findall(r"\w+", question.lower()) if word not in STOP]
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in dict.fromkeys(words))
        if view != "both":
            sql = f"SELECT rowid - 1 FROM {view} WHERE {view} MATCH ? ORDER BY rank LIMIT {_RANKED}"
            return [place for (place,) in db.execute(sql, (query,))]
        scores: dict[int, float] = defaultdict(float)
        for one in ("turn", "window"):
            for rank, place in enumerate(ask(question, one)):
                scores[place] += 1 / (_RRF_K + rank)
        return sorted(scores, key=lambda place: (-scores[place], place))

    return ask


def recall_at(n: int, conversations: Sequence[Any], view: str) -> list[dict[str, Any]]:
    """One row a question: its conversation, and the share of its evidence turns among the first ``n``."""
    rows = []
    for conversation in conversations:
        turns = [turn for turn in conversation.turns if turn.text.strip()]
        texts = [f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text for turn in turns]
        ask = ranked(texts, [turn.at.strftime("%d %B %Y") for turn in turns])
        for asked in conversation.questions:
            got = {turns[place].id for place in ask(asked.question, view)[:n]}
            rows.append({"name": conversation.name, "recall": len(asked.evidence & got) / len(asked.evidence)})
    return rows

"""Episodes without forgotten texts: steps that hold results of ``recall``, and what was done after those."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent_memory.log.forgetting import marked, phrases_of, says_enough
from agent_memory.prompt.escaping import escaped
from agent_memory.recall.episode_rows import note_change
from agent_memory.recall.episode_texts import partition_at_cut
from agent_memory.recall.rows import rows_of, span_texts
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows

_REST = r".*(?:\n  .*)*"  #: of a card: to the end of its line, and further lines, which are indented (``recall.cards``)
_CARD = re.compile(rf"^- \({_REST}", re.MULTILINE)
_AT_ONCE = 500  #: texts


def mark_forgotten(db: Rows, scope: Scope, texts: Sequence[int]) -> None:
    """Mark the items of ``texts`` as forgotten in the workspace's episodes, in the transaction that deletes them.

    A step whose observation has a card of one shows it. From there on its sentences are marked in that episode. Reads
    every step that has cards, once.
    """
    sql = (
        "SELECT v.episode, v.number, v.observation FROM episode_events v JOIN episodes e ON e.episode = v.episode "
        "WHERE e.workspace = ? AND v.observation LIKE ?"
    )
    steps = db.execute(sql, (scope.workspace, "%- (%")).fetchall()
    wanted = _said(db, scope, texts) if steps else set()
    shown: dict[int, tuple[int, set[str]]] = {}  # episode -> its first step that shows one, and all that it shows
    for episode, number, observation in steps:
        if found := _shown(str(observation), wanted):
            first, known = shown.get(int(episode), (int(number), set()))
            shown[int(episode)] = min(first, int(number)), known | found
    for episode, (first, told) in shown.items():
        _mark(db, scope, episode, first, phrases_of(told))
    if shown:
        note_change(db, scope)


def _said(db: Rows, scope: Scope, texts: Sequence[int]) -> set[str]:
    """Return what the items of some texts say, as they are and as a card has them."""
    found: set[str] = set()
    sql = "SELECT item FROM items WHERE text = ? AND workspace = ?"
    for at in range(0, len(texts), _AT_ONCE):
        items = [
            int(item)
            for text in texts[at : at + _AT_ONCE]
            for (item,) in db.execute(sql, (text, scope.workspace)).fetchall()
        ]
        for one in span_texts(db, rows_of(db, scope, items).values()).values():
            found |= {one.strip(), escaped(one)}
    return found - {""}


def _bodies(observation: str) -> list[str]:
    """Return the texts of the cards in an observation, without dash and head."""
    return [card.partition(") ")[2].strip() for card in _CARD.findall(observation)]


def _shown(observation: str, wanted: set[str]) -> set[str]:
    """Return the texts of ``wanted`` that an observation has cards of; of one that its cut goes through, the halves
    that are left too."""
    before, cut, behind = partition_at_cut(observation)
    found = wanted & {*_bodies(before), *_bodies(behind)}
    if not cut:
        return found
    last = _bodies(before)[-1:]
    first = re.match(_REST, behind)
    halves = [half for half in (*last, first[0].strip() if first else "") if says_enough(half)]
    for half in halves:
        whole = {text for text in wanted if text.startswith(half) or text.endswith(half)}
        found |= {half, *whole} if whole else set()
    return found


def _mark(db: Rows, scope: Scope, episode: int, first: int, phrases: Sequence[str]) -> None:
    sql = "SELECT number, tool, action, observation, parameters FROM episode_events WHERE episode = ? AND number >= ?"
    for number, *texts, parameters in db.execute(sql, (episode, first)).fetchall():
        told = [marked(str(text), phrases) for text in texts]
        row = (*told, _parameters(str(parameters), phrases), episode, number)
        sql = (
            "UPDATE episode_events SET tool = ?, action = ?, observation = ?, parameters = ? "
            "WHERE episode = ? AND number = ?"
        )
        db.execute(sql, row)
    sql = "SELECT result, error FROM episodes WHERE episode = ? AND workspace = ?"
    result, error = db.execute(sql, (episode, scope.workspace)).fetchone()
    sql = "UPDATE episodes SET result = ?, error = ? WHERE episode = ? AND workspace = ?"
    db.execute(sql, (marked(str(result), phrases), marked(str(error), phrases), episode, scope.workspace))


def _parameters(text: str, phrases: Sequence[str]) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return marked(text, phrases)
    clean = _inside(value, phrases)
    return text if clean == value else json.dumps(clean, ensure_ascii=False)


def _inside(value: Any, phrases: Sequence[str]) -> Any:
    if isinstance(value, str):
        return marked(value, phrases)
    if isinstance(value, Mapping):
        return {key: _inside(one, phrases) for key, one in value.items()}
    return [_inside(one, phrases) for one in value] if isinstance(value, list) else value

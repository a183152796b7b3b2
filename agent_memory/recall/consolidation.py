"""Consolidation: notes and typed items that say the same are merged. A plan first; nothing is destroyed; undone by id.

Two items are the same from a Jaccard similarity of their words of 0.85 on: the older one is hidden behind the newer
one. Facts of one slot are left alone: they supersede one another. Conversation turns stay as they were said.
Pairs are found exactly without comparing all: two such sets share one of their rarest words.

Source: Bayardo, Ma, Srikant, "Scaling Up All Pairs Similarity Search", WWW 2007.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict

from agent_memory.errors import UnsupportedParameterError
from agent_memory.recall import audit
from agent_memory.recall.given import checked_id
from agent_memory.recall.rows import ItemRow, rows_where, span_text
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows
from agent_memory.recall.types import Change, Plan
from agent_memory.recall.words import terms

SAME = 0.85
_FEWEST_WORDS = 3  #: shorter items say too little to be called the same


def planned(db: Rows, scope: Scope) -> tuple[Change, ...]:
    """Return the merges that are due, in order of the older item. Reads, changes nothing."""
    condition = (
        "i.merged_into IS NULL AND i.superseded_by IS NULL AND i.slot IS NULL "
        "AND (t.kind = 'note' OR NOT i.is_passage) AND i.kind NOT IN ('change', 'log_entry')"
    )
    rows = list(rows_where(db, scope, f"{condition} ORDER BY i.at, i.item"))
    words = {row.item: frozenset(terms(span_text(db, row))) for row in rows}
    rows = [row for row in rows if len(words[row.item]) >= _FEWEST_WORDS]
    rarity = Counter(word for row in rows for word in words[row.item])
    by_word: dict[str, list[ItemRow]] = defaultdict(list)
    changes = []
    for row in reversed(rows):  # newest first: a newer item is what an older one is merged into
        own = words[row.item]
        prefix = sorted(own, key=lambda word: (rarity[word], word))[: len(own) - math.ceil(SAME * len(own)) + 1]
        near = {other.item: other for word in prefix for other in by_word[word]}
        target = _most_alike(row, [other for _, other in sorted(near.items())], words)
        if target is not None:
            share = _jaccard(own, words[target.item])
            changes.append(
                Change(
                    action="merge", item=row.item, other=target.item, reason=f"{share:.0%} of the words are the same"
                )
            )
            continue
        for word in prefix:
            by_word[word].append(row)
    return tuple(sorted(changes, key=lambda change: change.item))


def apply(db: Rows, scope: Scope, now: float) -> Plan:
    """Do what ``planned`` says, and keep it as a plan that ``undo`` takes. Inside a write transaction."""
    changes = planned(db, scope)
    if not changes:
        return Plan(id=0, changes=())
    for change in changes:
        db.execute("UPDATE items SET merged_into = ? WHERE item = ?", (change.other, change.item))
    stored = json.dumps([[change.item, change.other] for change in changes])
    sql = "INSERT INTO plans (workspace, at, changes) VALUES (?, ?, ?) RETURNING plan"
    (plan,) = db.execute(sql, (scope.workspace, now, stored)).fetchone()
    audit.note(db, scope, now, "consolidate", None, {"plan": plan, "changes": len(changes)})
    return Plan(id=plan, changes=changes)


def undo(db: Rows, scope: Scope, plan: int, now: float) -> None:
    """Take a plan's merges back, where they still stand; once. Inside a write transaction."""
    sql = "SELECT changes, undone_s FROM plans WHERE plan = ? AND workspace = ?"
    row = db.execute(sql, (checked_id(plan, "plan_id"), scope.workspace)).fetchone()
    if row is None:
        raise UnsupportedParameterError(f"plan {plan} is none of this workspace; consolidate() returns a plan's id")
    if row[1] is not None:
        return
    for item, other in json.loads(row[0]):
        sql = "UPDATE items SET merged_into = NULL WHERE item = ? AND merged_into = ? AND workspace = ?"
        db.execute(sql, (item, other, scope.workspace))
    db.execute("UPDATE plans SET undone_s = ? WHERE plan = ?", (now, plan))
    audit.note(db, scope, now, "undo", None, {"plan": plan})


def _most_alike(row: ItemRow, others: list[ItemRow], words: dict[int, frozenset[str]]) -> ItemRow | None:
    best, most = None, SAME
    for other in others:
        if other.kind == row.kind and other.text != row.text:
            share = _jaccard(words[row.item], words[other.item])
            if share >= most:
                best, most = other, share
    return best


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)

"""Working sets: which cards a task gets, in an order whose beginning stays the same from task to task.

A model computes a prompt only from its first difference on, so the order decides what a recall costs:

- Pinned items first, in the order in which they were pinned; then the others in the order of their first recall.
- New cards go to the end. A card that is no longer wanted stays until such cards hold more than half of the wanted
  ones' tokens, or the budget is needed: then all of them leave at once (``is_compacted``).
- A card that was superseded, merged or forgotten leaves at once; what stands behind it is computed anew.
- Wanted cards take at most two thirds of what pinned ones leave of the budget, so others have room to stay.

Where a window's cards stand is kept in the file, so the order outlives the process.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from agent_memory.prompt.recalled import HEAD
from agent_memory.recall.cards import CardStyle
from agent_memory.recall.protocols import TokenCounter
from agent_memory.recall.rows import ItemRow, rows_of, rows_where, span_text, stale_items
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows
from agent_memory.recall.types import Dropped, Hit, Item, WorkingSet
from agent_memory.types import Message

MOST_TOKENS = 32_768
HITS = 64  #: recalled for one working set
_WANTED_SHARE = 2 / 3
_STALE_SHARE = 0.5
_RELEVANT = 0.2  #: of the best hit's score: less is noise


@define
class Window:
    """The cards of one window, and what they cost. Inside one write transaction."""

    db: Rows
    scope: Scope
    name: str
    count: TokenCounter
    style: CardStyle
    budget: int
    dropped: list[Dropped] = field(factory=list)
    texts: dict[int, str] = field(factory=dict)
    costs: dict[int, int] = field(factory=dict)
    items: dict[int, Item] = field(factory=dict)

    def fill(self, hits: Sequence[Hit]) -> WorkingSet:
        """Return the working set for a task that recalled ``hits``; store the window's new order."""
        head = self.count(HEAD)
        left = self.budget - head
        pinned = self._pinned(left)
        core = set(pinned)
        left -= sum(self.costs[item] for item in pinned)
        wanted = self._wanted(hits, core, int(left * _WANTED_SHARE))
        before = self.stored()
        kept = [item for item in before if item not in core and self._is_valid(item)]
        order = [*kept, *(item for item in wanted if item not in kept)]
        has_hole = kept != [item for item in before if item not in core]
        order, is_compacted = self._compacted(order, kept, core | set(wanted), left)
        shown = [*pinned, *order]
        text = HEAD + "".join(self.texts[item] for item in shown) if shown else ""
        while text and self.count(text) > self.budget:  # joined cards may count more than the cards
            item = shown.pop()
            self.dropped.append(Dropped(item=self.items[item], reason="budget"))
            text = HEAD + "".join(self.texts[item] for item in shown) if shown else ""
        self._store([item for item in shown if item not in core], before)
        return WorkingSet(
            text=text,
            messages=(Message("system", text),) if text else (),
            items=tuple(self.items[item] for item in shown),
            n_tokens=self.count(text) if text else 0,
            dropped=tuple(self.dropped),
            is_compacted=is_compacted or has_hole,
        )

    def _pinned(self, left: int) -> list[int]:
        rows = rows_where(self.db, self.scope, "i.pinned_s IS NOT NULL ORDER BY i.pinned_s, i.item")
        found = []
        for row in list(rows):
            if row.superseded_by is not None or row.merged_into is not None:
                continue
            cost = self._add(self._item(row))
            if cost <= left:
                found.append(row.item)
                left -= cost
            else:
                self.dropped.append(Dropped(item=self.items[row.item], reason="budget"))
        return found

    def _wanted(self, hits: Sequence[Hit], core: set[int], left: int) -> list[int]:
        best = hits[0].score if hits else 0.0
        wanted = []
        for hit in hits:
            if hit.item.id in core or hit.score < _RELEVANT * best:
                continue
            cost = self._add(hit.item)
            if cost <= left:
                wanted.append(hit.item.id)
                left -= cost
            else:
                self.dropped.append(Dropped(item=hit.item, reason="budget"))
        return wanted

    def _compacted(self, order: list[int], kept: list[int], wanted: set[int], left: int) -> tuple[list[int], bool]:
        """``order`` without its stale cards where these are too many; whether any card in front was removed."""
        stale = [item for item in order if item not in wanted]  # ``wanted``: pinned ones included
        stale_tokens = sum(self.costs[item] for item in stale)
        wanted_tokens = sum(self.costs[item] for item in wanted)
        is_over = sum(self.costs[item] for item in order) > left
        if not stale or (stale_tokens <= _STALE_SHARE * wanted_tokens and not is_over):
            return order, False
        self.dropped.extend(Dropped(item=self.items[item], reason="stale") for item in stale)
        left_over = [item for item in order if item in wanted]
        return left_over, kept[: len(left_over)] != left_over[: len(kept)]

    def _is_valid(self, item: int) -> bool:
        """True if a card of the window may stay; reads it again, for what it depends on may have changed."""
        row = rows_of(self.db, self.scope, [item]).get(item)
        if row is None:
            return False  # forgotten
        self._add(self.items.get(item) or self._item(row))
        if row.superseded_by is None and row.merged_into is None:
            return True
        self.dropped.append(Dropped(item=self.items[item], reason="superseded"))
        return False

    def _item(self, row: ItemRow) -> Item:
        is_stale = row.item in stale_items(self.db, [row.item])
        return row.as_item(self.scope, span_text(self.db, row), is_stale=is_stale)

    def _add(self, item: Item) -> int:
        if item.id not in self.costs:
            self.items[item.id] = item
            self.texts[item.id] = self.style(item)
            self.costs[item.id] = self.count(self.texts[item.id])
        return self.costs[item.id]

    def stored(self) -> list[int]:
        """Return the cards that the window had, in order; pinned ones aside."""
        sql = "SELECT item FROM windows WHERE workspace = ? AND name = ? ORDER BY position"
        return [int(item) for (item,) in self.db.execute(sql, (self.scope.workspace, self.name))]

    def _store(self, order: list[int], before: list[int]) -> None:
        if order == before:
            return
        self.db.execute("DELETE FROM windows WHERE workspace = ? AND name = ?", (self.scope.workspace, self.name))
        rows = [(self.scope.workspace, self.name, position, item) for position, item in enumerate(order)]
        self.db.executemany("INSERT INTO windows (workspace, name, position, item) VALUES (?, ?, ?, ?)", rows)

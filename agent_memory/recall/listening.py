"""Who shows remembered items elsewhere and is told when they are forgotten: agents' logs, unknown to this room.

A ``ContextMemory`` by itself has nobody to tell. What it forgets is noted by number, without a text, and told by the
next one that has a listener: a Memory in whose folder the file lies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from attrs import frozen

from agent_memory.recall.rows import rows_of, span_text
from agent_memory.recall.scope import Scope
from agent_memory.recall.storage import Rows, Storage

_MOST_UNTOLD = 100_000  #: of one workspace; a file that no Memory opens keeps no more

#: Takes a workspace's name and its forgotten items with their texts ("" where the text is gone).
OnForget = Callable[[str, Mapping[int, str]], None]


@frozen
class Listener:
    """Tells of what is forgotten in one workspace."""

    database: Storage
    scope: Scope
    on_forget: OnForget | None

    def items(self, texts: Collection[int]) -> dict[int, str]:
        """Return the items of ``texts`` with what each says."""
        found: dict[int, str] = {}
        with self.database.read() as db:
            for text in texts:
                sql = "SELECT item FROM items WHERE text = ? AND workspace = ?"
                ids = [int(item) for (item,) in db.execute(sql, (text, self.scope.workspace))]
                found |= {item: span_text(db, row) for item, row in rows_of(db, self.scope, ids).items()}
        return found

    def tell(self, forgotten: Mapping[int, str]) -> None:
        """Tell of items, outside of any transaction: the listener may wait for requests to end."""
        if self.on_forget is not None and forgotten:
            self.on_forget(self.scope.name, forgotten)

    def note(self, db: Rows, items: Collection[int]) -> None:
        """Note items for a listener to come, where there is none. In the transaction that deletes them."""
        if self.on_forget is not None or not items:
            return
        sql = "INSERT INTO untold (workspace, item) VALUES (?, ?) ON CONFLICT DO NOTHING"
        db.executemany(sql, [(self.scope.workspace, item) for item in items])
        sql = (
            "DELETE FROM untold WHERE workspace = ? AND item <= "
            "(SELECT item FROM untold WHERE workspace = ? ORDER BY item DESC LIMIT 1 OFFSET ?)"
        )
        db.execute(sql, (self.scope.workspace, self.scope.workspace, _MOST_UNTOLD))

    def catch_up(self) -> None:
        """Tell of what others on the same file have forgotten. Outside of any transaction."""
        if self.on_forget is None:
            return
        with self.database.read() as db:
            sql = "SELECT item FROM untold WHERE workspace = ?"
            items = [int(item) for (item,) in db.execute(sql, (self.scope.workspace,))]
        if items:
            self.tell(dict.fromkeys(items, ""))
            with self.database.write() as db:
                sql = "DELETE FROM untold WHERE workspace = ? AND item = ?"
                db.executemany(sql, [(self.scope.workspace, item) for item in items])

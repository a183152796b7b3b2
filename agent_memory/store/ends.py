"""Where lineages end, in memory: a plan must know which pieces others need, and wait for no disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from agent_memory.prefix.pieces import HeadMove

_Key = TypeVar("_Key")
_One = TypeVar("_One")


class Ends:
    """Which holders' lineages end in which pieces of the attached model, those of saves under way too.

    Known here so that neither a plan nor a deletion reads the lineages of all agents. Saves that failed stay noted:
    what is removed is decided by the manifest's own rows, of the holders that are noted here: ``has_head`` looks them
    up.
    """

    def __init__(self, has_head: Callable[[Iterable[int], str, bytes], bool]) -> None:
        self._has_head, self._identity = has_head, ""
        self._holders: dict[bytes, tuple[int, ...]] = {}
        self._heads: dict[int, tuple[bytes, ...]] = {}  # the same, by holder

    def load(self, heads: Iterable[tuple[int, str, bytes]], identity: str) -> None:
        """Read the ends of lineages of one identity."""
        self._holders, self._heads, self._identity = {}, {}, identity
        for holder, of, head in heads:
            if of == identity:
                self.note(holder, head)

    def note(self, holder: int | None, head: bytes | None) -> None:
        """Record that a lineage ends, or will end, in a piece."""
        if holder is None or head is None:
            return
        others = self._holders.get(head, ())
        if holder not in others:
            self._holders[head] = (*others, holder)
            self._heads[holder] = (*self._heads.get(holder, ()), head)

    def move(self, moves: Iterable[HeadMove], heads: Mapping[bytes, bytes], ended: int | None) -> None:
        """Follow an Edit. O(lineages that it changes)."""
        for old, new in heads.items():
            for holder in self._holders.get(old, ()):
                self._drop(holder, old)
                self.note(holder, new)
        for one in moves:
            for head in one.former:
                self._drop(one.agent_id, head)
            self.note(one.agent_id, one.head)
        if ended is not None:
            self.give(ended, None)

    def give(self, former: int, to: int | None) -> None:
        """Record that a holder's lineages are another one's; None: nobody's."""
        for head in self._heads.get(former, ()):
            self._drop(former, head)
            self.note(to, head)

    def _drop(self, holder: int, head: bytes) -> None:
        _take(self._holders, head, holder)
        _take(self._heads, holder, head)

    def of(self, holder: int) -> tuple[bytes, ...]:
        """Return the pieces in which a holder's lineages end."""
        return self._heads.get(holder, ())

    def others(self, piece: bytes, holder: int | None) -> tuple[int, ...]:
        """Return the other holders whose lineages end in a piece."""
        return tuple(one for one in self._holders.get(piece, ()) if one != holder)

    def is_stored(self, piece: bytes, holder: int | None) -> bool:
        """True if the lineage of another holder ends in a piece, and its save has committed. One row a holder."""
        return self._has_head(self.others(piece, holder), self._identity, piece)


def _take(found: dict[_Key, tuple[_One, ...]], key: _Key, one: _One) -> None:
    """Take one value from what a key has; the key goes with its last value."""
    left = tuple(other for other in found.pop(key, ()) if other != one)
    if left:
        found[key] = left

"""Where lineages end, in memory: a plan must know which pieces others need, and wait for no disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent_memory.prefix.pieces import HeadMove


class Ends:
    """Which holders' lineages end in which pieces of the attached model, those of saves under way too.

    Known here so that a plan need not wait for the manifest. A hint alone: what is removed is decided at the commit.
    """

    def __init__(self) -> None:
        self._holders: dict[bytes, tuple[int, ...]] = {}

    def load(self, heads: Iterable[tuple[int, str, bytes]], identity: str) -> None:
        """Read the ends of lineages of one identity."""
        self._holders = {}
        for holder, of, head in heads:
            if of == identity:
                self.note(holder, head)

    def note(self, holder: int | None, head: bytes | None) -> None:
        """Record that a lineage ends, or will end, in a piece."""
        if holder is not None and head is not None:
            others = self._holders.get(head, ())
            self._holders[head] = others if holder in others else (*others, holder)

    def move(self, moves: Iterable[HeadMove], heads: Mapping[bytes, bytes], ended: int | None) -> None:
        """Follow an Edit."""
        for old, new in heads.items():
            for holder in self._holders.pop(old, ()):
                self.note(holder, new)
        for one in moves:
            for head in one.former:
                self._drop(one.agent_id, head)
            self.note(one.agent_id, one.head)
        for head in [head for head, holders in self._holders.items() if ended in holders] if ended is not None else ():
            self._drop(ended, head)

    def _drop(self, holder: int | None, head: bytes) -> None:
        left = tuple(one for one in self._holders.pop(head, ()) if one != holder)
        if left:
            self._holders[head] = left

    def has_other(self, piece: bytes, holder: int | None) -> bool:
        """True if another holder's lineage ends in a piece."""
        return any(one != holder for one in self._holders.get(piece, ()))

"""The warm tier: encoded KV of idle lineages in RAM, within a byte budget.

Pieces are named, found and truncated as on disk (``prefix/index.py``, ``prefix/resume.py``).

- Equal prefixes are stored once, whoever computed them; every kind of layer resumes where it would from disk.
- A piece is evicted only after all that depend on it, so what is in memory of a lineage begins at its start.
- The bytes counted are those allocated: rows, states, ids and the index.
- No checksums: this is process memory, trusted as much as the live arrays are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence, Set

from attrs import evolve

from agent_memory.config import Codec
from agent_memory.kvcache.coding import Coding, coded, coding, fitted
from agent_memory.kvcache.layout import Layout
from agent_memory.prefix.chunks import piece_id, root_id
from agent_memory.prefix.index import Index, n_tokens
from agent_memory.prefix.pieces import Ids, Piece, Segment, resume_segment
from agent_memory.prefix.provenance import Provenance
from agent_memory.prefix.resume import Held, Needs, Plan, best_plan, missing_resume, stale
from agent_memory.prefix.worth import Costs, leaves_first, worth
from agent_memory.tiers.copies import Base, Bytes, Copy, CopySide, WarmPiece
from agent_memory.types import Tier, is_weaker, weakest

#: Bytes of a piece's entries here and in the index, and of each array's header.
PIECE_BYTES = 2048
ARRAY_BYTES = 176


class Warm:
    """Pieces of one identity in memory. Engine thread only.

    - Evict the lowest worth first (``prefix/worth.py``), within a lineage the tail first; so a shared prefix goes last.
    - Of the agents that use a piece, the one whose turn is expected first counts (``wait_of``).
    - Pieces that a pinned agent (``pins``) uses are evicted after all others, and only for a pinned agent.
    - A lineage that does not fit whole is refused.
    - Pieces unused for ``ttl_s`` are evicted, except pinned ones.
    - ``n_bytes <= budget_bytes`` after every call.
    """

    def __init__(
        self,
        budget_bytes: int,
        *,
        codec: Codec = "exact",
        ttl_s: float | None = None,
        costs: Costs,
        pins: Set[int],
        is_stored: Callable[[bytes], bool],
        wait_of: Callable[[int | None, float], float] = lambda agent_id, idle_s: idle_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget_bytes, self.ttl_s = budget_bytes, ttl_s
        self._wanted = self.codec = codec  #: ``codec``: what was wanted, fitted to the model's layout
        self._costs, self._pins, self._is_stored, self._clock = costs, pins, is_stored, clock
        self._wait_of = wait_of
        self.n_bytes = self.n_evicted = 0
        self.layout: Layout | None = None
        self.needs: Needs | None = None
        self.codings: tuple[Coding | None, ...] = ()  #: of each tensor's rows, windows last; None: not encoded
        self._token_bytes = 0  # bytes of one encoded token
        self._index: Index | None = None
        self._identity = self._host = ""
        self._held: dict[bytes, WarmPiece] = {}
        self._leaves: dict[bytes, WarmPiece] = {}  # pieces without a child
        self._sides: dict[bytes, Segment] = {}
        self._heads: dict[int | None, bytes] = {}  # last piece of each agent's newest lineage

    @property
    def is_lossy(self) -> bool:
        """True if any tensor is stored by a lossy codec."""
        return any(form is not None for form in self.codings)

    @property
    def is_on(self) -> bool:
        """True if there is a warm tier."""
        return self.budget_bytes > 0

    def __len__(self) -> int:
        return len(self._held)

    def attach(self, identity: str, layout: Layout, host: str, chunk_tokens: int) -> None:
        """Drop everything, and take KV of one identity from now on."""
        self.n_bytes = 0
        self._held, self._leaves, self._sides, self._heads = {}, {}, {}, {}
        self._identity, self._host, self.layout = identity, host, layout
        self.needs = None if layout.is_full else Needs.of(layout, chunk_tokens)
        self.codec = fitted(layout, self._wanted)
        self.codings = tuple(coding(spec, self.codec) for spec in (*layout.tensors, *layout.windows))
        self._token_bytes = sum(coded(spec, self.codec).token_bytes for spec in layout.tensors)
        self._index = Index(root_id(identity), chunk_tokens, lambda piece: piece.segment.ids)

    # looking up

    def plan(self, ids: Ids) -> Plan:
        """Return the pieces of the longest prefix of ``ids`` that can be restored."""
        if self._index is None or not self._held:
            return Plan([])
        if self.needs is None:
            return Plan(self._index.plan(ids))
        return best_plan(self._index.paths(ids), self._sides, self.needs)

    def use(self, ids: Ids) -> tuple[int, int]:
        """Return (tokens, allocated bytes) of the pieces that lead ``ids``."""
        pieces = self.plan(ids).pieces
        held = [found for piece, _ in pieces if (found := self.find(piece.id)) is not None]
        return n_tokens(pieces), sum(one.n_bytes for one in held)

    def find(self, piece: bytes) -> WarmPiece | None:
        """Return a piece by its id; None if it is unknown or still being copied."""
        found = self._held.get(piece)
        return found if found is not None and found.piece.segment.is_ready else None

    def touch(self, pieces: Iterable[WarmPiece], used_s: float | None = None) -> None:
        """Record a use of pieces, now or at ``used_s``. ``pieces`` includes the ancestors of each."""
        used_s = self._clock() if used_s is None else used_s
        for held in pieces:
            held.used_s = max(held.used_s, used_s)

    # filling

    def begin(
        self,
        ids: Ids,
        lineage: Provenance,
        held: Held,
        *,
        agent_id: int | None,
        used_s: float | None = None,
    ) -> Copy | None:
        """Plan a copy of a lineage: enter its missing pieces, not findable yet, and reserve their bytes.

        None if they do not fit. ``used_s``: the lineage's last use. Rows decoded from a lossy codec are never encoded
        again: if warm no longer has their bytes, the copy ends before them.
        """
        index, layout = self._index, self.layout
        if not self.is_on or index is None or layout is None or not layout.is_storable or not len(ids):
            return None
        covered = index.plan(ids) if self.needs is None else []
        base, fresh = None, list[WarmPiece]()
        if n_tokens(covered) == len(ids):  # a longer tail of another lineage may cover this tail
            path = [self._held[piece.id] for piece, _ in covered]
        else:
            path, fresh, base = self._walk(index, ids, lineage)
        self.touch(path, used_s)
        if not path:
            return None
        copy = Copy(self, path, fresh, base, self._sides_for(path, fresh, base, lineage, held), agent_id)
        has_room = False
        try:
            has_room = self._fit(agent_id)
        finally:
            if not has_room:
                copy.abandon()
        return copy if has_room else None

    def _sides_for(
        self,
        path: Sequence[WarmPiece],
        fresh: Sequence[WarmPiece],
        base: Base | None,
        lineage: Provenance,
        held: Held,
    ) -> tuple[CopySide, ...]:
        """Plan window rows and states for the pieces of a path; rows that ``base`` has are reused."""
        sides: list[CopySide] = []
        if self._index is None or self.needs is None:
            return ()
        n_alike = self._n_alike(path[: len(path) - len(fresh)], lineage)
        found = missing_resume(self._index, self._sides, self.needs, path[-1].piece.id, path[-1].stop, held)
        for piece, n_rows, has_state in found:
            to = self._held[piece.id]
            start = first = to.stop - n_rows
            if base is not None and to is fresh[0] and base.piece.window_rows and first < base.taken_stop:
                first = max(first, base.piece.first_row)
                start = max(first, base.taken_stop)
            if self.is_lossy and lineage.n_decoded(start, to.stop):  # lossy rows are never encoded again
                first = start = to.stop
            if first < to.stop or has_state:
                promise = weakest(lineage.promise(to.stop, n_alike), to.piece.segment.exactness)
                former = self._sides.get(piece.id)
                if former is not None and is_weaker(promise, former.exactness):
                    continue  # another run's would make worse what there is
                sides.append(CopySide(to, first, start, to.stop, self.codec, has_state, promise))
        return tuple(reversed(sides))

    def _walk(
        self, index: Index, ids: Ids, lineage: Provenance
    ) -> tuple[list[WarmPiece], list[WarmPiece], Base | None]:
        """Return the pieces of a lineage, the new ones among them, and the base of the first new one."""
        path: list[WarmPiece] = []
        fresh: list[WarmPiece] = []
        base, parent, promise = None, index.root, lineage.exactness
        for start in range(0, len(ids), index.chunk_tokens):
            own = ids[start : start + index.chunk_tokens]
            held = self._held.get(piece_id(parent, own))
            if held is not None and not (held.piece.segment.is_ready or held.n_holds):
                self._forget([held.piece])  # an exception struck its copy while it began
                held = None
            if held is None:
                if not fresh:
                    base = self._base(index.plan(ids[: start + len(own)]), start, lineage)
                    promise = lineage.promise(start, self._n_alike(path, lineage))
                first = max(start, base.taken_stop if base is not None else 0)
                if self.is_lossy and lineage.n_decoded(first, start + len(own)):
                    break
                held = self._enter(index, parent, own, start, evolve(lineage, exactness=promise))
                fresh.append(held)
            path.append(held)
            parent = held.piece.id
        return path, fresh, base if fresh else None

    def _n_alike(self, path: Sequence[WarmPiece], lineage: Provenance) -> int:
        return lineage.n_alike(tuple((held.piece, held.piece.n_tokens) for held in path))

    def _base(self, plan: list[tuple[Piece, int]], start: int, lineage: Provenance) -> Base | None:
        if not plan or plan[-1][0].start != start:
            return None
        piece, take = plan[-1]
        stop = start + take
        return Base(self._held[piece.id], stop, stop if lineage.n_decoded(start, stop) else start)

    def _enter(self, index: Index, parent: bytes, own: Ids, start: int, lineage: Provenance) -> WarmPiece:
        assert self.layout is not None
        segment = Segment(
            identity=self._identity,
            parent=parent,
            start=start,
            n_tokens=len(own),
            chunk_tokens=index.chunk_tokens,
            exactness="quantized" if self.is_lossy else lineage.exactness,
            codec=self.codec if self.is_lossy else "exact",
            host=self._host,
            ids=own.copy(),
        )
        authors = lineage.authors[start : start + len(own)]
        [piece] = segment.divide(own, lambda first, stop: lineage.made_by(start + first, start + stop), authors)
        index.add(piece, own)
        held = WarmPiece(piece)
        held.n_bytes = PIECE_BYTES + len(own) * (4 + self._token_bytes) + ARRAY_BYTES * len(self.layout.tensors)
        self.n_bytes += held.n_bytes
        self._held[piece.id] = self._leaves[piece.id] = held
        self._leaves.pop(parent, None)
        return held

    def put_side(self, to: CopySide, rows: list[Bytes], state: Bytes | None, agent_id: int | None) -> bool:
        """Replace the window rows and state of a piece; False, and nothing changed, if they do not fit."""
        held = to.piece
        added = _side_bytes(rows, state) - _side_bytes(held.window_rows, held.state)
        self.n_bytes += added
        held.n_bytes += added
        if not self._fit(agent_id):
            self.n_bytes -= added
            held.n_bytes -= added
            return False
        held.window_rows, held.state, held.side_exactness = rows, state, to.exactness
        resume = resume_segment(held.piece, to.stop - to.first, to.has_state, exactness=to.exactness)
        resume.is_ready, self._sides[held.piece.id] = True, resume
        return True

    def complete(self, copy: Copy) -> None:
        """Make the pieces of a copy findable, and drop window rows and states that its lineage no longer needs."""
        if any(self._held.get(held.piece.id) is not held for held in copy.path):
            self.undo(copy)  # an ancestor was forgotten meanwhile
            return
        for held in copy.fresh:
            held.piece.segment.is_ready = True
        before = self._held.get(self._heads.get(copy.agent_id, b""))
        former = before.stop if before is not None and before in copy.standing else 0
        self._heads[copy.agent_id] = copy.path[-1].piece.id
        for held in copy.path:
            held.users.add(copy.agent_id)
        base = copy.base
        if base is not None and base.stop == base.piece.stop and base.piece.users <= {copy.agent_id}:
            self._drop([base.piece])
        if self.needs is not None:
            ends = {head for agent, head in self._heads.items() if agent != copy.agent_id}
            index = self._index
            assert index is not None
            lineage = [held.piece for held in reversed(copy.path)]
            is_point = {p.id for p in lineage if p.id in ends or len(index.children(p.id)) != 1}
            for side in stale(lineage, self._sides, self.needs, former, lambda p: p.id in is_point):
                self._drop_side(self._held[side.parent])

    def undo(self, copy: Copy) -> None:
        """Forget the pieces that a copy entered, and their descendants."""
        self._forget([held.piece for held in copy.fresh if self._held.get(held.piece.id) is held])

    def _forget(self, pieces: list[Piece]) -> None:
        assert self._index is not None
        for piece in reversed(self._index.descendants(pieces)):
            self._remove(self._held[piece.id])

    # evicting

    def release(self, agent_id: int) -> None:
        """Evict the pieces that no other agent's prefix includes."""
        mine = [held for held in self._held.values() if agent_id in held.users]
        for held in mine:
            held.users.discard(agent_id)
        self._heads.pop(agent_id, None)
        self._drop([held for held in mine if not held.users])

    def clear(self) -> None:
        """Evict everything but what copies under way need."""
        self._drop(self._held.values())

    def expire(self) -> float | None:
        """Evict pieces unused for ``ttl_s``; return the seconds until the next is due, None if none will be."""
        if self.ttl_s is None or not self._held:
            return None
        now = self._clock()
        free = [held for held in self._held.values() if not self._is_pinned(held)]
        self._drop([held for held in free if now - held.used_s >= self.ttl_s])
        return min((held.used_s + self.ttl_s - now for held in free if now - held.used_s < self.ttl_s), default=None)

    def _drop(self, pieces: Iterable[WarmPiece]) -> None:
        for held in sorted(pieces, key=lambda held: -held.piece.start):
            if self._may_go(held, is_pinned=True):
                self._remove(held)

    def _fit(self, agent_id: int | None) -> bool:
        """Evict the lowest worth until the budget holds; False if all that ``agent_id`` may evict is not enough."""
        if self.n_bytes <= self.budget_bytes:
            return True
        now, is_pinned = self._clock(), agent_id in self._pins

        def order(held: WarmPiece) -> tuple[bool, float, bytes]:
            return self._is_pinned(held), self._worth(held, now), held.piece.id

        def freed(held: WarmPiece) -> list[WarmPiece]:
            parent = self._held.get(held.piece.parent)
            return [parent] if parent is not None and self._may_go(parent, is_pinned=is_pinned) else []

        leaves = [held for held in self._leaves.values() if self._may_go(held, is_pinned=is_pinned)]
        for held in leaves_first(leaves, order, freed):
            if self.n_bytes <= self.budget_bytes:
                break
            self._remove(held)
            self.n_evicted += 1
        return self.n_bytes <= self.budget_bytes

    def _worth(self, held: WarmPiece, now: float) -> float:
        piece = held.piece
        kept: Tier = "cold" if self._is_stored(piece.id) else "none"
        assert self.layout is not None
        cost_s = self._costs.back_s(kept, piece.n_tokens, piece.n_tokens * self.layout.token_bytes)
        idle_s = now - held.used_s
        waits = (self._wait_of(agent, idle_s) for agent in held.users)
        return worth(cost_s, held.n_bytes, min(waits, default=idle_s))

    def _is_pinned(self, held: WarmPiece) -> bool:
        return not self._pins.isdisjoint(held.users)

    def _may_go(self, held: WarmPiece, *, is_pinned: bool) -> bool:
        """True if a piece has no child and no copy needs it; a pinned one only with ``is_pinned``."""
        is_free = held.piece.id in self._leaves and not held.n_holds
        return is_free and (is_pinned or not self._is_pinned(held))

    def _remove(self, held: WarmPiece) -> None:
        piece, index = held.piece, self._index
        assert index is not None
        index.remove(piece)
        del self._held[piece.id], self._leaves[piece.id]
        self._sides.pop(piece.id, None)
        self.n_bytes -= held.n_bytes
        parent = self._held.get(piece.parent)
        if parent is not None and not index.children(piece.parent):
            self._leaves[piece.parent] = parent

    def _drop_side(self, held: WarmPiece) -> None:
        n_bytes = _side_bytes(held.window_rows, held.state)
        held.window_rows, held.state = [], None
        held.n_bytes -= n_bytes
        self.n_bytes -= n_bytes
        del self._sides[held.piece.id]

    def check(self) -> list[str]:
        """Return the invariants that do not hold, in words. While no copy is under way; O(pieces)."""
        n_bytes = sum(held.n_bytes for held in self._held.values())
        followed = {held.piece.parent for held in self._held.values()}
        found = {
            f"{self.n_bytes} bytes are counted, {n_bytes} are held": self.n_bytes != n_bytes,
            f"{self.n_bytes} bytes are held, the budget is {self.budget_bytes}": self.n_bytes > self.budget_bytes,
            "the leaves are not the pieces without a child": self._leaves.keys() != self._held.keys() - followed,
            "window rows or a state without a piece": not self._sides.keys() <= self._held.keys(),
            "a piece is kept for a copy that has ended": any(held.n_holds for held in self._held.values()),
        }
        if self._index is not None:
            found["the index names other pieces"] = self._index.pieces.keys() != self._held.keys()
        return [text for text, is_wrong in found.items() if is_wrong]


def _side_bytes(rows: list[Bytes], state: Bytes | None) -> int:
    return sum(array.nbytes + ARRAY_BYTES for array in (*rows, *(() if state is None else (state,))))

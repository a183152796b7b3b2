"""The longest prefix of some ids that is on disk, and its restore."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

import numpy as np
from attrs import field, frozen

from agent_memory.config import auto_budget
from agent_memory.kvfile.segments import stored_ids
from agent_memory.kvfile.sources import MeteredSource, ResumeSpans, SegmentSource, Span, StoredSource, checking
from agent_memory.log.damage import READ_ERRORS, reason_of
from agent_memory.prefix.authors import Origins
from agent_memory.prefix.chunks import common_prefix, piece_id
from agent_memory.prefix.pieces import Ids, Piece, Segment
from agent_memory.prefix.provenance import made_of_all
from agent_memory.prefix.sharing import Stretch, stretches
from agent_memory.store.catalog import Catalog
from agent_memory.store.edit import void
from agent_memory.types import Exactness, Tier, weakest

Whose = Literal["other_model", "other_tenant"]
Taken = tuple[tuple[Piece, int], ...]  #: pieces, with tokens taken of each

_MOST_FILES = 64  #: files of other identities that one look-up reads, the newest first
#: Facts of a model that say how it runs, not what it is.
_RUNNING = frozenset({"grid"})


@frozen
class Match:
    """The longest prefix of some ids that is on disk and can be restored."""

    n_tokens: int
    pieces: Taken  #: from the first token on
    made: Origins = field(eq=False, repr=False)  #: provenance per token
    exactness: Exactness = "exact"
    stopped: str | None = None  #: why it ends there, if known: "damaged", "missing", "evicted" ...
    ids: Ids = field(eq=False, repr=False, factory=lambda: np.zeros(0, np.uint32))
    held_from: int = 0  #: the first token whose rows of sliding-window layers are stored

    @property
    def tier(self) -> Tier:
        """The slowest tier that it needs."""
        return "cold" if self.n_tokens else "none"

    @property
    def tier_tokens(self) -> Mapping[str, int]:
        """How many of its tokens come from which tier."""
        return {"cold": self.n_tokens} if self.n_tokens else {}


NOTHING = Match(0, (), np.zeros(0, np.uint32))


def find(catalog: Catalog, ids: Ids) -> Match:
    """Return the longest prefix of ``ids`` that is on disk. O(ids) hashing, in memory."""
    ids = np.ascontiguousarray(ids, dtype=np.uint32)
    model = catalog.model
    if model is None or not len(ids):
        return NOTHING
    index = model.index
    with catalog.lock:
        found = catalog.plan(ids)
        plan = found.pieces
        n_tokens = sum(take for _, take in plan)
        full = [p for p, take in plan if take == index.chunk_tokens]
        parent = full[-1].id if full else index.root
        stopped = None
        if n_tokens < len(ids):
            rest = ids[len(full) * index.chunk_tokens :][: index.chunk_tokens]
            following = piece_id(parent, rest) if len(rest) == index.chunk_tokens else None
            stopped = catalog.losses.reason(index, plan[-1][0].id if plan else parent, following)
            stopped = stopped or catalog.losses.reason(index, parent, None)
            stopped = "no snapshot" if found.is_cut else stopped
    segments = {id(p.segment): p.segment for p, _ in plan}.values()
    promises: list[Exactness] = [segment.exactness for segment in segments]
    if any(segment.host != model.host for segment in segments):
        promises.append("moved")
    return Match(n_tokens, tuple(plan), made_of_all(plan), weakest(*promises), stopped, ids[:n_tokens], found.rows_from)


def following(catalog: Catalog, match: Match) -> Ids | None:
    """Return the ids of a stored lineage behind the match's end; None where nothing is stored there."""
    with catalog.lock:
        if catalog.model is None or not match.pieces:
            return None
        index, (last, take) = catalog.model.index, match.pieces[-1]
        after = [last] if take < last.n_tokens else index.children(last.id)
        if not after:
            return None
        ids = index.ids(after[0])[take if after[0] is last else 0 :]
        return ids if len(ids) else None


def source(catalog: Catalog, match: Match, n_tokens: int, start: int) -> MeteredSource:
    """Open the files of tokens ``[start, n_tokens)`` of a match; a file begins at ``start``.

    Damage is noted by the source and never raised. Window rows and the state are those at ``n_tokens``.
    """
    model = catalog.model
    assert model is not None
    assert start <= n_tokens <= match.n_tokens
    with catalog.lock:
        found = _stretches(catalog, match, n_tokens, start)
        resume = _resume_spans(catalog, match)
    spans = [Span(one.segment, catalog.disk.path(one.segment), one.start, one.stop - one.start) for one in found or ()]
    on_damage, keys = partial(void, catalog), catalog.disk.keys
    files = SegmentSource(model.layout, spans, match.ids[:n_tokens], on_damage, keys=keys, is_whole=found is not None)
    if model.needs is None:
        return files
    assert n_tokens == match.n_tokens
    return StoredSource(model.layout, files, resume, on_damage, keys)


def _stretches(catalog: Catalog, match: Match, n_tokens: int, start: int) -> list[Stretch] | None:
    """Return where rows ``[start, n_tokens)`` of a match are, a file once; None if some are gone. Under the lock."""
    found: list[Stretch] = []
    at = 0
    for piece, whole in match.pieces:
        take = min(whole, n_tokens - at)
        if take > 0 and at >= start:
            try:
                parts = stretches(catalog.segments, piece.segment, at, at + take)
            except LookupError:
                return None
            for one in parts:
                if found and found[-1].segment is one.segment:
                    found[-1] = Stretch(one.segment, found[-1].start, one.stop)
                else:
                    found.append(one)
        at += take
    return found


def reading_ahead(
    catalog: Catalog, match: Match, start: int, done: Callable[[], object] | None = None
) -> Iterator[None]:
    """Read and check the files of a match's tokens from ``start`` on, a step at a time, then call ``done``. I/O thread.

    After damage too: what is left of the match is looked up again.
    """
    yield from _checking(catalog, match, start)
    if done is not None:
        done()


def _checking(catalog: Catalog, match: Match, start: int) -> Iterator[None]:
    with catalog.lock:
        rows = _stretches(catalog, match, match.n_tokens, start) or ()
        segments = {one.segment.number: one.segment for one in rows}
        resume = [span.segment for span in _resume_spans(catalog, match).spans]
    for segment in (*segments.values(), *resume):
        try:
            yield from checking(catalog.disk.path(segment), segment, catalog.disk.keys)
        except READ_ERRORS as error:
            void(catalog, segment, reason_of(error), str(error))
            return


def _resume_spans(catalog: Catalog, match: Match) -> ResumeSpans:
    """Return the resume segments that a restore of a match reads. Under the catalog's lock."""
    pieces, rows_from = match.pieces, match.held_from
    needs = None if catalog.model is None else catalog.model.needs
    if needs is None or not pieces:
        return ResumeSpans()
    stop = pieces[-1][0].start + pieces[-1][1]
    held_from = max(rows_from, needs.boundary_row(stop)) if needs.window else 0
    spans = []
    is_whole = True
    for piece, _ in pieces:
        end = piece.stop
        found = catalog.resume.get(piece.id)
        has_rows = not needs.window or end <= held_from
        has_state = not needs.state or piece is not pieces[-1][0]
        if has_rows and has_state:
            continue
        if found is not None and found.is_readable:
            spans.append(Span(found, catalog.disk.path(found), end - found.n_tokens, found.n_tokens))
            has_rows = has_rows or end - found.n_tokens <= max(piece.start, held_from)
            has_state = has_state or found.has_state
        is_whole = is_whole and has_rows and has_state
    return ResumeSpans(tuple(spans), held_from, is_whole)


@frozen
class Elsewhere:
    """The longest prefix of some ids that one file of another identity has."""

    n_tokens: int
    whose: Whose


def elsewhere(catalog: Catalog, ids: Ids) -> Elsewhere | None:
    """Return where else a prefix of ``ids`` is stored. Reads the ids of at most ``_MOST_FILES`` files."""
    with catalog.lock:
        identity = "" if catalog.model is None else catalog.model.identity
        others = [s for s in catalog.segments.values() if s.kind == "rows" and s.identity != identity]
        firsts = [s for s in others if s.start == 0 and s.is_readable and not s.is_hidden]
    if not firsts or not len(ids):
        return None
    best: tuple[int, Segment] | None = None
    for segment in sorted(firsts, key=lambda one: -one.used_s)[:_MOST_FILES]:
        stored = stored_ids(catalog.disk.path(segment), segment, catalog.disk.keys)
        shared = common_prefix(stored, ids) if len(stored) and stored[0] == ids[0] else 0
        if shared and (best is None or shared > best[0]):
            best = (shared, segment)
    if best is None:
        return None
    facts = catalog.disk.manifest.all_facts()
    mine, theirs = facts.get(identity, {}), facts.get(best[1].identity, {})
    is_same_model = bool(mine) and _model(mine) == _model(theirs)
    return Elsewhere(best[0], "other_tenant" if is_same_model else "other_model")


def _model(facts: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in facts.items() if name not in _RUNNING and auto_budget(name) is None}

"""What an agent and its versions hold of stored KV, in an order that depends on the agent alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attrs import define, evolve, field, frozen

from agent_memory.log.carried import Carried
from agent_memory.prefix.pieces import PIECE_BYTES, Segment
from agent_memory.prefix.sharing import Stretch, stretches
from agent_memory.store.manifest import Manifest

#: Facts of a model that are of one machine, or no part of its identity.
_LOCAL = ("model", "grid")
_LOCAL_PREFIX = "weights_"


@frozen
class Row:
    """``n_pieces`` pieces of a segment from piece ``first`` on, which the agent holds."""

    segment: Segment
    first: int
    n_pieces: int
    parts: tuple[Stretch, ...] = ()  #: where their rows are

    @property
    def start(self) -> int:
        """Position of the first token."""
        return self.segment.start + self.first * self.segment.chunk_tokens

    @property
    def stop(self) -> int:
        """Position after the last token."""
        return min(self.start + self.n_pieces * self.segment.chunk_tokens, self.segment.stop)

    @property
    def pieces(self) -> list[bytes]:
        """Ids of the pieces."""
        return self.segment.piece_ids()[self.first : self.first + self.n_pieces]

    @property
    def parent(self) -> bytes:
        """The piece that they follow."""
        return self.segment.piece_ids()[self.first - 1] if self.first else self.segment.parent

    @property
    def order(self) -> tuple[int, bytes, int, bytes]:
        """Sorts rows of one model, parents before children, by nothing but their tokens."""
        packed = self.segment.packed
        return self.start, packed[self.first * PIECE_BYTES :][33:PIECE_BYTES], self.stop, packed


@frozen(kw_only=True)
class Line:
    """The end of a lineage: a version's by its number, or the agent's own (0)."""

    version: int
    piece: bytes


@define(kw_only=True)
class Kv:
    """What an agent and its versions hold of one model's KV; parents before children."""

    facts: Mapping[str, str]
    chunk_tokens: int
    rows: list[Row] = field(factory=list)
    resume: list[Segment] = field(factory=list)
    lines: list[Line] = field(factory=list)


def held(manifest: Manifest, found: Carried) -> list[Kv]:
    """Return what an agent and its versions hold of each model's KV, in an order that depends on the agent alone."""
    holders = {kept.holder: kept.version.number for kept, _ in found.versions if kept.holder}
    holders[found.record.agent_id] = 0
    lines: dict[str, list[Line]] = {}
    for holder, identity, head in manifest.heads():
        if holder in holders:
            lines.setdefault(identity, []).append(Line(version=holders[holder], piece=head))
    kvs = [kv for identity, ends in lines.items() for kv in _of_model(manifest, identity, ends)]
    return sorted(kvs, key=lambda kv: (json.dumps(kv.facts, sort_keys=True), kv.chunk_tokens))


def _of_model(manifest: Manifest, identity: str, lines: Sequence[Line]) -> Iterator[Kv]:
    segments = manifest.segments(identity)
    rows = [segment for segment in segments if segment.kind == "rows"]
    homes = {piece: (row, place) for row in rows for place, piece in enumerate(row.piece_ids())}
    taken: dict[int, int] = {}
    kept: dict[int, list[Line]] = {}
    for line in lines:
        path: list[tuple[Segment, int]] = []
        at: bytes = line.piece
        while (home := homes.get(at)) is not None and len(path) <= len(rows):
            path.append(home)
            at = home[0].parent
        if not path or at.hex() != identity:
            continue  # its KV is gone
        for row, place in path:
            taken[row.number] = max(taken.get(row.number, 0), place + 1)
        kept.setdefault(path[0][0].chunk_tokens, []).append(line)
    pieces = {piece for row in rows for piece in row.piece_ids()[: taken.get(row.number, 0)]}
    for chunk_tokens, ends in kept.items():
        known = {row.number: row for row in rows}
        held = [row for row in rows if row.number in taken and row.chunk_tokens == chunk_tokens]
        mine = sorted(
            (one for row in held for one in _divided(row, taken[row.number], known)), key=lambda row: row.order
        )
        order = {piece: (i, j) for i, row in enumerate(mine) for j, piece in enumerate(row.pieces)}
        resume = [s for s in segments if s.kind == "resume" and s.parent in order and s.parent in pieces]
        yield Kv(
            facts=_shared(manifest.all_facts().get(identity, {})),
            chunk_tokens=chunk_tokens,
            rows=mine,
            resume=sorted(resume, key=lambda s: order[s.parent]),
            lines=sorted(ends, key=lambda line: (line.version, order[line.piece])),
        )


def _divided(segment: Segment, n_pieces: int, known: Mapping[int, Segment]) -> Iterator[Row]:
    """Yield whole chunks, and by itself a shorter piece behind them. Nothing if rows that it shares are nowhere."""
    size = segment.chunk_tokens
    n_chunks = min(n_pieces, segment.n_tokens // size)
    for row in (Row(segment, 0, n_chunks), Row(segment, n_chunks, n_pieces - n_chunks)):
        with contextlib.suppress(LookupError):
            if row.n_pieces:
                yield evolve(row, parts=stretches(known, segment, row.start, row.stop))


def _shared(facts: Mapping[str, str]) -> dict[str, str]:
    """Return what a model's facts say of its identity, and its name without the folder that it is in."""
    told = {k: v for k, v in facts.items() if k not in _LOCAL and not k.startswith(_LOCAL_PREFIX)}
    return dict(sorted(told.items())) | {"model": Path(facts.get("model", "")).name}

"""Rebuild the list of segments from the headers and ids of segment and side files, both verified."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from attrs import frozen

from agent_memory.kvcache.coding import named
from agent_memory.log.place import is_passing
from agent_memory.log.salvage import IsSound
from agent_memory.prefix.chunks import piece_id
from agent_memory.prefix.index import HEAD_IDS, Ids, Piece, Segment, sort_key
from agent_memory.prefix.provenance import MADE, Made
from agent_memory.prefix.resume import Side
from agent_memory.store.folder import list_files
from agent_memory.store.format import FORMAT, SIDE_FORMAT, file_sum, is_kv_name, split_sums
from agent_memory.store.manifest import Manifest
from agent_memory.store.rows import row_of
from agent_memory.store.segments import READ_ERRORS, read_header
from agent_memory.store.soundness import is_lineage, is_model
from agent_memory.types import EXACTNESS

#: Table of KV that no file vouches for -> which of its rows are trusted, given the agents that there are.
SALVAGED: Mapping[str, IsSound] = {
    "identities": lambda row, _: is_model(row["identity"], row["layout"], row["facts"], row["created_s"]),
    "lineages": lambda row, agents: row["agent"] in agents and is_lineage(*row.values()),
}

_MADE: Mapping[str, Made] = {name: number for number in get_args(Made) for name in [MADE[number]]}


@frozen
class Vouched:
    """The contents of verified KV files: segments in order, side files, and the number of files."""

    segments: list[Segment]
    sides: list[Side]
    n_files: int


def read_files(folder: Path) -> Vouched:
    """Every segment that its own header and ids vouch for and that hangs together with a root.

    Its time of use is the file's. What superseded it may be entered too, which costs space until it is evicted. Raises
    OSError where a file cannot be read now: nobody knows then what is in it.
    """
    segments: list[Segment] = []
    beside: list[tuple[bytes, Side]] = []
    names = sorted(filter(is_kv_name, list_files(folder)))
    for name in names:
        if is_kv_name(name, finished=True):
            try:
                _read(folder, name, segments, beside)
            except READ_ERRORS as error:
                if is_passing(error):
                    raise
    kept = _in_order(segments)
    holders = {piece.id: s.number for s in kept for piece in s.pieces}
    sides = {}
    for piece, side in beside:
        if piece in holders:
            side.segment = holders[piece]
            sides[piece] = side
    return Vouched(kept, [*sides.values()], len(names))


def rebuild(found: Vouched, manifest: Manifest) -> int:
    """Enter verified files into a new manifest; return how many."""
    manifest.commit(add=[row_of(s) for s in found.segments], add_sides=found.sides)
    return len(found.segments) + len(found.sides)


def _read(folder: Path, name: str, segments: list[Segment], beside: list[tuple[bytes, Side]]) -> None:
    fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        facts, table, data_start = read_header(fd, found.st_size)
        if facts["format"] == SIDE_FORMAT:
            n_rows = int(facts["stop"]) - int(facts["start"])
            piece = bytes.fromhex(facts["piece"])
            side = Side(piece, 0, name, n_rows, "state" in table, found.st_size, facts["header_xxh3"], is_ready=True)
            beside.append((piece, side))
        elif facts["format"] == FORMAT:
            start, stop = table["ids"]["data_offsets"]
            raw = os.pread(fd, stop - start, data_start + start)
            if len(raw) != stop - start or file_sum(raw) != split_sums(facts)[-1]:
                raise ValueError("the ids' checksum is wrong")
            segments.append(_segment(name, facts, np.frombuffer(raw, "<u4"), found))
    finally:
        os.close(fd)


def _segment(name: str, facts: Mapping[str, Any], ids: Ids, found: os.stat_result) -> Segment:
    segment = Segment(
        number=0,
        identity=facts["identity"],
        file=name,
        parent=bytes.fromhex(facts["parent"]),
        parent_number=None,
        start=int(facts["start"]),
        n_tokens=int(facts["n_tokens"]),
        chunk_tokens=int(facts["chunk_tokens"]),
        exactness=EXACTNESS[EXACTNESS.index(facts["exactness"])],
        codec=named(facts["codec"]),
        host=facts["host"],
        used_s=found.st_mtime,
        n_bytes=found.st_size,
        header_xxh3=facts["header_xxh3"],
        is_ready=True,
    )
    if len(ids) != segment.n_tokens:
        raise ValueError(f"{len(ids)} ids of {segment.n_tokens}")
    parent = segment.parent
    for i, made in enumerate(facts["made"].split(",")):
        own = ids[i * segment.chunk_tokens : (i + 1) * segment.chunk_tokens]
        piece = Piece(piece_id(parent, own), parent, segment, i, len(own), _MADE[made], sort_key(own[:HEAD_IDS]))
        segment.pieces.append(piece)
        parent = piece.id
    return segment


def _in_order(segments: list[Segment]) -> list[Segment]:
    """Return the segments that a root reaches, parents before children, numbered in that order."""
    waiting: dict[bytes, list[Segment]] = {}
    for segment in segments:
        waiting.setdefault(segment.parent, []).append(segment)
    holders: dict[bytes, int] = {}
    kept: list[Segment] = []
    queue = [(bytes.fromhex(identity), None) for identity in sorted({s.identity for s in segments})]
    reached: list[tuple[bytes, int | None]] = list(queue)
    for parent, number in reached:
        for segment in waiting.pop(parent, []):
            fresh = [p for p in segment.pieces if p.id not in holders]
            if len(fresh) < len(segment.pieces):
                continue  # another file has the same piece
            segment.number, segment.parent_number = len(kept) + 1, number
            kept.append(segment)
            for piece in segment.pieces:
                holders[piece.id] = segment.number
                reached.append((piece.id, segment.number))
    return kept

"""Export: an agent's log and the KV that it and its versions hold, into one file. Reads the store, changes nothing.

- Of a segment that goes on with tokens of others, only the agent's own pieces are written.
- Neither the salt nor anything derived from it is written: no identity, no id of a piece.
- Parts come in an order that depends on the agent alone: an agent that did not change gives the same bytes.
- Damaged KV is left out with all that depends on it. One tensor of one segment is in memory at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, field, frozen

from agent_memory.carry.agent_file import MAX_JSON_BYTES, AgentFileWriter
from agent_memory.config import Codec
from agent_memory.errors import AgentFileError, AgentMemoryError
from agent_memory.kvcache.coding import Coding, coding
from agent_memory.kvcache.layout import TensorSpec
from agent_memory.kvfile.segments import OpenSegment
from agent_memory.log.carried import Carried
from agent_memory.log.damage import READ_ERRORS, DamageError, reason_of
from agent_memory.log.versions import Kept
from agent_memory.prefix.pieces import Segment
from agent_memory.progress import Progress, mib, silent
from agent_memory.prompt.messages import to_json
from agent_memory.store.manifest import Manifest

log = logging.getLogger("agent_memory.store")

#: Facts of a model that are of one machine, or no part of its identity.
_LOCAL = ("model", "grid")
_LOCAL_PREFIX = "weights_"
_TRIES = 4  #: look-ups of segments that were joined or replaced while they were read

OnDamage = Callable[[Segment, str, str], None]


@frozen
class Recoding:
    """Encodes exact rows on their way out. KV that was lossy before is never encoded again."""

    codec: Codec
    encode: Callable[[np.ndarray[Any, Any], Coding, str], np.ndarray[Any, Any]]  #: stored rows, form, dtype

    def form(self, source: OpenSegment, name: str) -> Coding | None:
        """Return how a tensor is encoded; None: it stays as it is."""
        if name == "ids":
            return None
        heads, _, dim = source.table[name]["shape"]
        return coding(TensorSpec(name, heads, dim, source.table[name]["dtype"]), self.codec)


@frozen
class Row:
    """The first ``n_pieces`` pieces of a segment, which the agent holds."""

    segment: Segment
    n_pieces: int

    @property
    def n_tokens(self) -> int:
        """Tokens of these pieces."""
        return min(self.n_pieces * self.segment.chunk_tokens, self.segment.n_tokens)


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


def export_agent(
    path: Path,
    found: Carried,
    manifest: Manifest,
    folder: Path | None,
    on_damage: OnDamage | None = None,
    recoding: Recoding | None = None,
    report: Progress = silent,
) -> int:
    """Write an agent to a file; return how many segments had to be left out. ``folder`` None: the log alone.

    ``report``: told the MiB of KV that were read.

    Raises StoreError, OutOfSpaceError.
    """
    for number in range(_TRIES):
        kvs = [] if folder is None else held(manifest, found)
        with AgentFileWriter(path) as writer:
            _write_log(writer, found)
            writing = _Writing(writer, folder, is_last=number == _TRIES - 1, on_damage=on_damage, recoding=recoding)
            writing.counts(kvs, report)
            with contextlib.suppress(_ChangedError):
                for kv in kvs:  # all of them first: that is the order in which a file is read
                    writer.part("model", {"chunk_tokens": kv.chunk_tokens}, _json(kv.facts))
                for model, kv in enumerate(kvs):
                    writing.write_rows(model, kv)
                for model, kv in enumerate(kvs):
                    writing.write_resume(model, kv)
                for model, kv in enumerate(kvs):
                    writing.write_lines(model, kv)
                writer.finish()
                return writing.n_lost
    raise AssertionError


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
        mine = [Row(row, taken[row.number]) for row in rows if row.number in taken and row.chunk_tokens == chunk_tokens]
        mine.sort(key=lambda row: (row.segment.start, row.segment.packed[33:97], row.n_tokens, row.segment.packed))
        order = {piece: (i, j) for i, row in enumerate(mine) for j, piece in enumerate(row.segment.piece_ids())}
        resume = [s for s in segments if s.kind == "resume" and s.parent in order and s.parent in pieces]
        yield Kv(
            facts=_shared(manifest.all_facts().get(identity, {})),
            chunk_tokens=chunk_tokens,
            rows=mine,
            resume=sorted(resume, key=lambda s: order[s.parent]),
            lines=sorted(ends, key=lambda line: (line.version, order[line.piece])),
        )


def _shared(facts: Mapping[str, str]) -> dict[str, str]:
    """Return what a model's facts say of its identity, and its name without the folder that it is in."""
    told = {k: v for k, v in facts.items() if k not in _LOCAL and not k.startswith(_LOCAL_PREFIX)}
    return dict(sorted(told.items())) | {"model": Path(facts.get("model", "")).name}


def _write_log(writer: AgentFileWriter, found: Carried) -> None:
    record = found.record
    told = {
        "name": record.name,
        "system": record.system,
        "tools": record.tools,
        "facts": _unbound(record.facts),
        "created_s": record.created_s,
        "used_s": record.used_s,
    }
    writer.part("agent", {"branch": found.live}, _json(told))
    for branch in found.branches:
        writer.part("branch", {"base": branch.base, "start": branch.start})
        for turn in branch.turns:
            facts = {
                "keep": turn.keep,
                "n_messages_kept": turn.n_messages_kept,
                "tokenizer": turn.tokenizer,
                "finish": turn.finish,
                "created_s": turn.created_s,
                "n_kv": turn.n_kv,
                "n_reply": turn.n_reply,
                "n_ids": len(turn.ids),
            }
            writer.part("turn", facts, _checked(to_json(turn.messages).encode()) + turn.ids.astype("<u4").tobytes())
    for kept, place in found.versions:
        _write_version(writer, kept, place)


def _write_version(writer: AgentFileWriter, kept: Kept, place: int) -> None:
    version, state = kept.version, kept.state
    facts = {
        "number": version.number,
        "branch": place,
        "n_turns": version.n_turns,
        "created_s": version.created_s,
        "reason": version.reason,
    }
    told = {"label": version.label, "system": state.system, "facts": _unbound(state.facts.to_json())}
    writer.part("version", facts, _json(told))


def _unbound(facts: str | None) -> str | None:
    """Return facts without what is recalled: that is a workspace of this store."""
    row = json.loads(facts or "{}")
    row.pop("recall", None)
    return json.dumps(row, separators=(",", ":"), sort_keys=True) if row else None


def _json(value: Any) -> bytes:
    return _checked(json.dumps(value, separators=(",", ":")).encode())


def _checked(text: bytes) -> bytes:
    if len(text) > MAX_JSON_BYTES:
        raise AgentFileError(
            f"a turn, or the agent's settings, take {len(text):,} bytes; at most {MAX_JSON_BYTES:,} can be exported"
        )
    return text


class _ChangedError(Exception):
    """Internal: a segment was joined or replaced since it was looked up."""


class _Writing:
    """Writes the KV of one agent; counts segments that cannot be read."""

    def __init__(
        self,
        writer: AgentFileWriter,
        folder: Path | None,
        *,
        is_last: bool,
        on_damage: OnDamage | None,
        recoding: Recoding | None,
    ) -> None:
        self._writer, self._folder, self._is_last, self._on_damage = writer, folder, is_last, on_damage
        self._recoding = recoding
        self._places: dict[tuple[int, bytes], tuple[int, int]] = {}  # model and piece -> rows and piece in the file
        self._n_rows = 0
        self.n_lost = 0
        self._report: Progress = silent
        self._n_bytes = self._n_done = 0

    def counts(self, kvs: Sequence[Kv], report: Progress) -> None:
        """Report from now on how much of this KV is read."""
        segments = [segment for kv in kvs for segment in (*(row.segment for row in kv.rows), *kv.resume)]
        self._report, self._n_bytes = report, sum(segment.n_bytes for segment in segments)

    def write_rows(self, model: int, kv: Kv) -> None:
        """Write the segments of a model's rows."""
        for row in kv.rows:
            segment = row.segment
            parent = self._places.get((model, segment.parent))
            if parent is None and segment.start:
                self.n_lost += 1  # what it follows could not be read
                continue
            facts = {
                "model": model,
                "parent": parent,
                "start": segment.start,
                "n_tokens": row.n_tokens,
                "made": segment.made()[: row.n_pieces],
                "exactness": segment.exactness,
                "codec": segment.codec,
                "host": segment.host,
            }
            if self._copied("rows", segment, facts, row.n_tokens):
                for place, piece in enumerate(segment.piece_ids()[: row.n_pieces]):
                    self._places[model, piece] = (self._n_rows, place)
                self._n_rows += 1

    def write_resume(self, model: int, kv: Kv) -> None:
        """Write the resume segments of rows that were written."""
        for segment in kv.resume:
            if (place := self._places.get((model, segment.parent))) is not None:
                facts = {"piece": place, "n_rows": segment.n_tokens, "has_state": segment.has_state}
                self._copied("resume", segment, facts, segment.n_tokens)

    def write_lines(self, model: int, kv: Kv) -> None:
        """Write the ends of lineages that were written."""
        for line in kv.lines:
            if (place := self._places.get((model, line.piece))) is not None:
                self._writer.part("head", {"version": line.version, "piece": place})

    def _copied(self, kind: str, segment: Segment, facts: dict[str, Any], n_tokens: int) -> bool:
        """Write one segment's part; False if its file cannot be read."""
        assert self._folder is not None
        self._report(self._n_done >> 20, mib(self._n_bytes), "")
        self._n_done += segment.n_bytes
        is_begun = False
        try:
            with contextlib.closing(OpenSegment(self._folder / segment.file, segment)) as source:
                if kind == "resume":
                    facts |= {"codec": source.codec, "host": source.metadata["host"]}
                names = [name for name in source.table if not name.startswith("pad.")]
                forms = self._forms(source, names, segment)
                if any(form is not None for form in forms):
                    facts |= {"codec": self._recoding.codec if self._recoding else "", "exactness": "quantized"}
                n_bytes = sum(
                    _n_bytes(source, name, segment, n_tokens, form) for name, form in zip(names, forms, strict=True)
                )
                self._writer.begin(kind, facts, n_bytes)
                is_begun = True
                for number, (name, form) in enumerate(zip(names, forms, strict=True)):
                    raw = _taken(source, name, number, segment, n_tokens)
                    self._writer.write(raw if form is None else self._encoded(source, name, raw, n_tokens, form))
                self._writer.end()
                return True
        except AgentMemoryError:  # of the file that is written
            raise
        except READ_ERRORS as error:
            if reason_of(error) == "missing" and not self._is_last:
                raise _ChangedError from error
            if is_begun:
                self._writer.retract()
            self.n_lost += 1
            if self._on_damage is not None:
                self._on_damage(segment, reason_of(error), str(error))
            return False

    def _forms(self, source: OpenSegment, names: Sequence[str], segment: Segment) -> list[Coding | None]:
        """Return how each tensor of a segment is encoded on its way out; resume segments stay as they are."""
        if self._recoding is None or segment.kind == "resume" or segment.exactness == "quantized":
            return [None] * len(names)
        return [self._recoding.form(source, name) for name in names]

    def _encoded(self, source: OpenSegment, name: str, raw: memoryview, n_tokens: int, form: Coding) -> memoryview:
        assert self._recoding is not None
        entry = source.table[name]
        rows = np.frombuffer(raw, np.uint8).reshape(entry["shape"][0], n_tokens, -1)
        encoded = np.ascontiguousarray(self._recoding.encode(rows, form, entry["dtype"]))
        return memoryview(encoded).cast("B")  # type: ignore[arg-type]


def _n_bytes(source: OpenSegment, name: str, segment: Segment, n_tokens: int, form: Coding | None) -> int:
    if form is not None:
        return int(source.table[name]["shape"][0]) * n_tokens * form.row_bytes
    start, stop = source.table[name]["data_offsets"]
    if name == "state" or n_tokens == segment.n_tokens:
        return int(stop - start)
    if (stop - start) % segment.n_tokens:
        raise DamageError("damaged", f"{name} has not the same bytes for each token")
    return int(stop - start) // segment.n_tokens * n_tokens


def _taken(source: OpenSegment, name: str, number: int, segment: Segment, n_tokens: int) -> memoryview:
    """Return the first ``n_tokens`` of a tensor, or all of a state, checked."""
    raw = source.tensor(name, number)
    if name == "state" or n_tokens == segment.n_tokens:
        return raw
    heads = 1 if name == "ids" else source.table[name]["shape"][0]
    rows = np.frombuffer(raw, np.uint8).reshape(heads, segment.n_tokens, -1)[:, :n_tokens]
    return memoryview(np.ascontiguousarray(rows)).cast("B")  # type: ignore[arg-type]

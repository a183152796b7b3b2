"""Export: an agent's log and the KV that it and its versions hold, into one file. Reads the store, changes nothing.

- Of a segment that goes on with tokens of others, only the agent's own pieces are written. Rows that it shares are
  written with its own: the file has no references.
- Neither the salt nor anything derived from it is written: no identity, no id of a piece.
- Parts come in an order that depends on the agent alone: an agent that did not change gives the same bytes.
- Damaged KV is left out with all that depends on it. One tensor of one segment is in memory at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from agent_memory.carry.agent_file import MAX_JSON_BYTES, AgentFileWriter
from agent_memory.carry.holdings import Kv, held
from agent_memory.config import Codec
from agent_memory.errors import AgentFileError, AgentMemoryError, StoreError
from agent_memory.kvcache.coding import Coding, coding
from agent_memory.kvcache.layout import TensorSpec
from agent_memory.kvfile.segments import OpenSegment
from agent_memory.log.carried import Carried
from agent_memory.log.damage import READ_ERRORS, DamageError, reason_of
from agent_memory.log.turns import Turn
from agent_memory.log.versions import AgentRecord, Kept
from agent_memory.prefix.pieces import Segment
from agent_memory.prefix.sharing import Stretch
from agent_memory.progress import Progress, mib, silent
from agent_memory.prompt.messages import to_json
from agent_memory.sealing.keys import Keys
from agent_memory.store.manifest import Manifest

log = logging.getLogger("agent_memory.store")

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


def export_agent(
    path: Path,
    found: Carried,
    manifest: Manifest,
    folder: Path | None,
    on_damage: OnDamage | None = None,
    recoding: Recoding | None = None,
    report: Progress = silent,
    *,
    seal: Keys | None = None,
) -> int:
    """Write an agent to a file; return how many segments had to be left out. ``folder`` None: the log alone.

    ``report``: told the MiB of KV that were read. ``seal``: what the file is sealed under; None: it is plain, and a
    warning says so where the store is encrypted.

    Raises StoreError, also for a plain file in the folder of an encrypted store, OutOfSpaceError, MissingExtraError.
    """
    if seal is None and manifest.database.keys is not None:
        _refuse_inside(path, manifest)
        log.warning(
            "agent %r is exported in the clear: its store is encrypted, and %s is not. export(file, key=...) seals it",
            found.record.name, path,
        )  # fmt: skip
    for number in range(_TRIES):
        kvs = [] if folder is None else held(manifest, found)
        with AgentFileWriter(path, keys=seal) as writer:
            _write_log(writer, found)
            writing = _Writing(
                writer,
                folder,
                is_last=number == _TRIES - 1,
                on_damage=on_damage,
                recoding=recoding,
                keys=manifest.database.keys,
            )
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


def _refuse_inside(path: Path, manifest: Manifest) -> None:
    """Raise StoreError for a file that would lie in the clear in the folder of an encrypted store."""
    root = manifest.database.folder
    if root is not None and path.resolve().is_relative_to(root.resolve()):
        raise StoreError(
            f"{path} is in the folder of an encrypted store, and an exported agent is not encrypted: everybody who may "
            "read the file reads the conversation. Give a path outside of the store's folder, or seal it with key="
        )


def told_of(record: AgentRecord) -> dict[str, Any]:
    """Return what is told of an agent itself; `Intake.agent` checks it where it arrives."""
    return {
        "name": record.name,
        "system": record.system,
        "tools": record.tools,
        "facts": unbound(record.facts),
        "created_s": record.created_s,
        "used_s": record.used_s,
    }


def facts_of(turn: Turn) -> dict[str, Any]:
    """Return what is told of a turn beside its messages and ids; `Intake.turn` checks it where it arrives."""
    return {
        "keep": turn.keep,
        "n_messages_kept": turn.n_messages_kept,
        "tokenizer": turn.tokenizer,
        "finish": turn.finish,
        "created_s": turn.created_s,
        "n_kv": turn.n_kv,
        "n_reply": turn.n_reply,
    }


def _write_log(writer: AgentFileWriter, found: Carried) -> None:
    writer.part("agent", {"branch": found.live}, _json(told_of(found.record)))
    for branch in found.branches:
        writer.part("branch", {"base": branch.base, "start": branch.start})
        for turn in branch.turns:
            facts = {**facts_of(turn), "n_ids": len(turn.ids)}
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
    told = {"label": version.label, "system": state.system, "facts": unbound(state.facts.to_json())}
    writer.part("version", facts, _json(told))


def unbound(facts: str | None) -> str | None:
    """Return facts without what is recalled, a workspace of this store, and without its right to publish the log."""
    row = json.loads(facts or "{}")
    row.pop("recall", None)
    row.pop("holder", None)
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
        keys: Keys | None,
    ) -> None:
        self._writer, self._folder, self._is_last, self._on_damage = writer, folder, is_last, on_damage
        self._recoding, self._keys = recoding, keys
        self._places: dict[tuple[int, bytes], tuple[int, int]] = {}  # model and piece -> rows and piece in the file
        self._n_rows = 0
        self._reading: Segment | None = None
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
            parent = self._places.get((model, row.parent))
            if parent is None and row.start:
                self.n_lost += 1  # what it follows could not be read
                continue
            facts = {
                "model": model,
                "parent": parent,
                "start": row.start,
                "n_tokens": row.stop - row.start,
                "made": segment.made()[row.first : row.first + row.n_pieces],
                "exactness": segment.exactness,
                "codec": segment.codec,
                "host": segment.host,
            }
            if self._copied("rows", segment, facts, row.parts):
                for place, piece in enumerate(row.pieces):
                    self._places[model, piece] = (self._n_rows, place)
                self._n_rows += 1

    def write_resume(self, model: int, kv: Kv) -> None:
        """Write the resume segments of rows that were written."""
        for segment in kv.resume:
            if (place := self._places.get((model, segment.parent))) is not None:
                facts = {"piece": place, "n_rows": segment.n_tokens, "has_state": segment.has_state}
                self._copied("resume", segment, facts, (Stretch(segment, segment.start, segment.stop),))

    def write_lines(self, model: int, kv: Kv) -> None:
        """Write the ends of lineages that were written."""
        for line in kv.lines:
            if (place := self._places.get((model, line.piece))) is not None:
                self._writer.part("head", {"version": line.version, "piece": place})

    def _copied(self, kind: str, segment: Segment, facts: dict[str, Any], parts: Sequence[Stretch]) -> bool:
        """Write one segment's part; False if a file that has rows of it cannot be read."""
        self._report(self._n_done >> 20, mib(self._n_bytes), "")
        self._n_done += segment.n_bytes
        is_begun = False
        try:
            with contextlib.ExitStack() as opened:
                sources = [(opened.enter_context(contextlib.closing(self._open(one))), one) for one in parts]
                source, n_tokens = sources[-1][0], parts[-1].stop - parts[0].start
                if any(one.codec != source.codec for one, _ in sources):
                    self.n_lost += 1  # a part of the file has one codec
                    return False
                if kind == "resume":
                    facts |= {"codec": source.codec, "host": source.metadata["host"]}
                    facts |= {} if source.exactness == "exact" else {"exactness": source.exactness}
                names = [name for name in source.table if not name.startswith("pad.")]
                forms = self._forms(source, names, segment)
                if any(form is not None for form in forms):
                    facts |= {"codec": self._recoding.codec if self._recoding else "", "exactness": "quantized"}
                n_bytes = sum(
                    _n_bytes(source, name, segment, n_tokens, form) for name, form in zip(names, forms, strict=True)
                )
                self._writer.begin(kind, facts, n_bytes)
                is_begun = True
                for name, form in zip(names, forms, strict=True):
                    raw = self._joined(sources, name)
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
                self._on_damage(self._reading or segment, reason_of(error), str(error))
            return False

    def _open(self, part: Stretch) -> OpenSegment:
        assert self._folder is not None
        self._reading = part.segment
        return OpenSegment(self._folder / part.segment.file, part.segment, self._keys)

    def _joined(self, sources: Sequence[tuple[OpenSegment, Stretch]], name: str) -> memoryview:
        """Return one tensor, read from the files that have its rows; ids and a state from the last alone."""
        taken: list[np.ndarray[Any, Any]] = []
        start = sources[0][1].start
        for source, part in sources if name not in ("ids", "state") else sources[-1:]:
            self._reading = part.segment
            taken.append(_taken(source, name, part, start))
        return memoryview(np.ascontiguousarray(np.concatenate(taken, axis=1))).cast("B")  # type: ignore[arg-type]

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
    n_rows = segment.n_tokens if name == "ids" else segment.n_own
    if name == "state" or n_tokens == n_rows:
        return int(stop - start)
    if (stop - start) % n_rows:
        raise DamageError("damaged", f"{name} has not the same bytes for each token")
    return int(stop - start) // n_rows * n_tokens


def _taken(source: OpenSegment, name: str, of: Stretch, start: int) -> np.ndarray[Any, Any]:
    """Return a stretch of a tensor, or all ids from ``start`` on, or all of a state, checked: (heads, n, row_bytes)."""
    raw, segment = np.frombuffer(source.tensor(name), np.uint8), of.segment
    if name == "state" or not raw.size:
        return raw.reshape(1, -1, 1)
    if name == "ids":
        return raw.reshape(1, segment.n_tokens, -1)[:, start - segment.start : of.stop - segment.start]
    rows = raw.reshape(source.table[name]["shape"][0], segment.n_own, -1)
    return rows[:, of.first_row : of.first_row + of.stop - of.start]

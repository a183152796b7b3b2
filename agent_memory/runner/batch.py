"""The one adapter of mlx-lm's batching: nothing else in this library uses ``GenerationBatch``.

mlx-lm itself copies a row's KV several times on its way from prompt to batch, and returns its first token one step
late. Here a row is prefilled alone and joins a batch with its last prompt id still to be fed: rows that join together
share even their first step. Where few ids are left, one pass feeds them and samples, and the row joins with its first
token. Buffers are handed over, not copied: a single row decodes on its own caches, a second row
turns them into batch caches with spare capacity, where others join and leave without moving them (figures:
benchmarks/handover.py). Private names of mlx-lm in use: ``GenerationBatch._step``, ``._next_tokens``,
``._next_logprobs``, ``.prompt_cache``, ``.tokens``, ``.uids``; tests/runner/test_batch.py is their contract.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch, StopSequences
from mlx_lm.models.cache import KVCache, make_prompt_cache

from agent_memory.config import Codec
from agent_memory.kvcache.layout import Layout
from agent_memory.mlxcache import filling, joining, kinds, together
from agent_memory.mlxcache.kinds import MLXKV
from agent_memory.mlxcache.ragged import RaggedKVCache
from agent_memory.protocols import KV, Constraint, Divergence, LogitsProcessor, Source
from agent_memory.runner import measuring
from agent_memory.runner.batchrow import BatchRow
from agent_memory.runner.sampling import Drawn, Processors, greedy, make_sampler, n_right_of
from agent_memory.types import Sampling

_NO_LIMIT = 2**31 - 1
#: mlx caches freed buffers; as in mlx-lm, that cache is emptied every 512 steps.
_CLEAR_STEPS = 512


class _Joining(GenerationBatch):  # type: ignore[misc]  # mlx-lm is untyped
    """Rows about to join a lane (a batch that decodes), or to be one; as they are made, they take no step."""

    _next_logprobs: list[mx.array]

    def _step(self) -> tuple[list[int], list[mx.array]]:
        if self._next_logprobs:
            made: tuple[list[int], list[mx.array]] = super()._step()
            return made
        self._next_logprobs = [mx.zeros(1) for _ in self.uids]
        return [], []


class MLXBatch:
    """Rows of one MLX model that decode together, in groups. Built and used on the engine thread alone.

    ``chunk_tokens``: the distance of recurrent layers' snapshots, and how far back a window can be truncated.
    ``beside``: a second stream, on which a CPU copies half of the KV of rows that join. ``helper``: a running thread
    that shares the reading of a restore. ``stream``: instead of mlx-lm's own.
    """

    def __init__(
        self,
        model: Any,
        layout: Layout,
        chunk_tokens: int = 256,
        *,
        clears: bool = False,
        beside: Any = None,
        helper: Executor | None = None,
        stream: Any = None,
    ) -> None:
        self._model, self._layout, self._chunk_tokens, self._clears = model, layout, chunk_tokens, clears
        self._helper = helper
        # Only for its stream and, on Metal, the wired limit while it lives; rows never pass through its queue.
        self._generator = BatchGenerator(model, stream=stream)
        self._beside = beside if beside is not None else self._generator.stream
        self._waiting: dict[int, BatchRow] = {}
        self._rows: dict[int, BatchRow] = {}
        #: by group: one lane, or one lane for each row where mlx-lm cannot batch the model's caches
        self._lanes: dict[int, list[GenerationBatch]] = {}
        self._shared = weakref.WeakSet[together.Buffers]()  # of rows that were restored together
        self._references = measuring.References()
        self._steps = 0

    def empty(self) -> MLXKV:
        """Fresh caches of this model."""
        return MLXKV(self._caches(), self._layout)

    def restore(self, source: Source) -> MLXKV:
        """Caches filled from ``source``; O(its bytes)."""
        return MLXKV(filling.fill(self._layout, source, self._caches(), self._helper), self._layout, source.n_tokens)

    def restore_together(self, sources: Sequence[Source]) -> list[MLXKV]:
        """``restore`` of several rows that are about to join one batch, which then copies none of them."""
        if not self._layout.is_full or len(sources) < 2:
            return [self.restore(source) for source in sources]
        empties = [self._caches() for _ in sources]
        rows = filling.fill_together(self._layout, sources, empties, self._helper)
        self._shared.update(together.shared(rows[0]))
        return [MLXKV(row, self._layout, source.n_tokens) for row, source in zip(rows, sources, strict=True)]

    def separate(self, kv: KV) -> None:
        """Give a row that was restored together with others, and is not to join them, buffers of its own."""
        with mx.stream(self._generator.stream):
            together.separate(kinds.leaves(_own(kv).caches))

    def restoring(self, source: Source) -> Iterator[MLXKV | None]:
        """``restore``, a tensor at a time."""
        found = filling.filling(self._layout, source, self._caches())
        return (None if one is None else MLXKV(one, self._layout, source.n_tokens) for one in found)

    def _caches(self) -> list[Any]:
        return kinds.fresh(make_prompt_cache(self._model), self._chunk_tokens)

    def prefill(self, kv: KV, ids: Sequence[int]) -> None:
        """Feed ``ids`` to one row; logits are never computed (mlx is lazy)."""
        self._feed(_own(kv), ids)

    def _feed(self, mine: MLXKV, ids: Sequence[int], row: BatchRow | None = None, prompt: Sequence[int] = ()) -> Any:
        """Feed ``ids`` to one row; return what ``row`` samples after its ``prompt``, which they end, evaluated."""
        found: Any = None  # no closure: the frame of one would keep the row where a processor raises
        is_computed = False
        with mx.stream(self._generator.stream):
            try:
                logits = self._model(mx.array([list(ids)]), cache=mine.caches)
                is_computed = True
                if row is not None:
                    found = row.first(prompt, logits[:, -1])
                mx.eval([c.state for c in mine.caches], [] if found is None else found)
            except BaseException:  # also Ctrl-C, between two layers: the row is what it was
                # mlx is lazy: before ``eval`` no row has been touched; in it, a device may have left any.
                mine.unwind(is_sound=not is_computed)
                raise
            mine.n_tokens += len(ids)
            for window in kinds.of_kind(self._layout, mine.caches, "window"):
                window.tidy()
            self._mark(mine.marks, mine.caches, mine.n_tokens)
        if self._clears:
            mx.clear_cache()
        return found

    def insert(
        self,
        row: int,
        kv: KV,
        ids: Sequence[int],
        *,
        group: int,
        sampling: Sampling,
        logits_processors: Sequence[LogitsProcessor] = (),
        constraint: Constraint | None = None,
    ) -> int | None:
        """Queue the row for the group's next step; if more than its last id is left, feed all and sample first."""
        mine, processors = _own(kv), Processors(sampling, logits_processors, constraint)
        known, sampler = list(ids[:-1]) if processors.reads_ids else [], make_sampler(sampling)
        made = BatchRow(row, group, mine.caches, mine.n_tokens, known, ids[-1], sampler, processors, mine.marks)
        if len(left := ids[mine.n_tokens :]) > 1:
            sampled = self._feed(mine, left, made, ids)
            made.pending, made.is_begun, made.n_kv = int(sampled.item()), True, mine.n_tokens
            made.ids = list(ids) if processors.reads_ids else []
        self._waiting[row] = self._rows[row] = made
        return made.pending if made.is_begun else None

    def step(self, group: int) -> list[tuple[int, int]]:
        """Join the waiting rows, then one decode step of every row."""
        lanes = self._lanes.setdefault(group, [])
        with mx.stream(self._generator.stream):
            old = list(lanes)
            out = self._join(lanes, [row for row in self._waiting.values() if row.group == group])
            for lane in old:
                out.extend(self._advance(lane))
        self._steps += 1
        if self._steps % _CLEAR_STEPS == 0:
            mx.clear_cache()
        return out

    def can_verify(self, group: int) -> bool:
        """True for one lane of full attention whose rows only a constraint, or nothing, processes."""
        lanes = self._lanes.get(group, ())
        if len(lanes) != 1 or any(row.group == group for row in self._waiting.values()):
            return False
        rows = [self._rows[uid] for uid in lanes[0].uids]
        caches = kinds.leaves(lanes[0].prompt_cache)
        return all(row.processors.can_look_ahead for row in rows) and all(
            isinstance(c, (KVCache, RaggedKVCache)) for c in caches
        )

    def ahead(self, group: int) -> dict[int, tuple[int, bool]]:
        """Wait for the step under way, and return the ids that it has sampled."""
        [lane] = self._lanes[group]
        tokens: Any = lane._next_tokens.tolist()
        return {uid: (token, self._rows[uid].n_skip > 0) for uid, token in zip(lane.uids, tokens, strict=True)}

    def verify(self, group: int, drafts: Mapping[int, Sequence[int]]) -> list[tuple[int, int]]:
        """Feed all rows their next ids and drafts; each goes on by as many as are right in it."""
        [lane] = self._lanes[group]
        rows = [self._rows[uid] for uid in lane.uids]
        pending: Any = lane._next_tokens.tolist()
        width = 1 + max(len(draft) for draft in drafts.values())
        fed = [[token, *drafts[row.number]] for row, token in zip(rows, pending, strict=True)]
        with mx.stream(self._generator.stream):
            self._make_room(lane, width)
            padded = mx.array([ids + ids[-1:] * (width - len(ids)) for ids in fed], mx.uint32)
            logits = self._model(padded, cache=lane.prompt_cache)
            sampled = [row.sampled(ids, logits[place]) for place, (row, ids) in enumerate(zip(rows, fed, strict=True))]
            mx.eval(sampled)
            found: Any = [own.tolist() for own in sampled]
            rights = [n_right_of(ids[1:], own) for ids, own in zip(fed, found, strict=True)]
            joining.cut(lane.prompt_cache, width, rights)
            lane._next_tokens = mx.array([own[n] for own, n in zip(found, rights, strict=True)], mx.uint32)
        lane._next_logprobs = [mx.zeros(1) for _ in rows]
        self._steps += 1
        out: list[tuple[int, int]] = []
        for row, ids, tokens, n_right in zip(rows, fed, lane.tokens, rights, strict=True):
            row.processors.confirm(ids[1 : 1 + n_right])
            if isinstance(row.sampler, Drawn):
                row.sampler.keep(1 + n_right)
            tokens.extend(ids[: 1 + n_right])
            out += [(row.number, token) for token in ids[row.n_skip : 1 + n_right]]
            row.n_skip = 0
        return out

    def error(self, row: int) -> BaseException | None:
        """Return what a user's callable or the constraint of this row raised."""
        return self._rows[row].processors.error if row in self._rows else None

    def copy(self, row: int, n_tokens: int) -> MLXKV | None:
        """Copy the first ``n_tokens`` of a row; None where this kind of cache cannot be truncated."""
        with mx.stream(self._generator.stream):
            mine = self._rows[row]
            if row in self._waiting:
                return MLXKV(mine.caches, self._layout, mine.n_kv, mine.marks).copy(n_tokens)
            lane, index = self._find(mine)
            views = [joining.view(c, index, self._chunk_tokens) for c in lane.prompt_cache]
            return MLXKV(views, self._layout, _n_tokens(mine, lane, index), mine.marks).copy(n_tokens)

    def remove(self, rows: Sequence[int]) -> list[KV]:
        """Take rows out. The only row of a lane is returned uncopied; any other is copied out of the batch once."""
        out: dict[int, KV] = {}
        leaving: dict[int, tuple[GenerationBatch, list[int]]] = {}
        for number in rows:
            mine = self._rows[number]
            if self._waiting.pop(number, None):
                out[number] = MLXKV(mine.caches, self._layout, mine.n_kv, mine.marks)
            else:
                lane, _ = self._find(mine)
                leaving.setdefault(id(lane), (lane, []))[1].append(number)
        with mx.stream(self._generator.stream):
            for lane, numbers in leaving.values():
                sizes = {n: _n_tokens(self._rows[n], lane, lane.uids.index(n)) for n in numbers}
                for number, caches in zip(numbers, self._cut(lane, numbers), strict=True):
                    out[number] = MLXKV(caches, self._layout, sizes[number], self._rows[number].marks)
        for number in rows:
            del self._rows[number]
        return [out[number] for number in rows]

    def drop(self, group: int) -> None:
        """Drop a group, whatever state it is in."""
        self._lanes.pop(group, None)
        for number in [n for n, row in self._rows.items() if row.group == group]:
            self._rows.pop(number)
            self._waiting.pop(number, None)

    def measure(self, ids: Sequence[int], n_context: int, codec: Codec) -> Divergence:
        """Prefill ``n_context`` ids, encode and decode a copy of their KV, and feed the rest to both.

        The exact KV and its predictions are kept for another codec on the same ids, until other ids or ``close``.
        """
        coder, known = measuring.Coder(codec), self._references.of(ids, n_context, self.empty, self.prefill)
        with mx.stream(self._generator.stream):
            return measuring.diverge(self._model, known, measuring.recoded(known.kv, coder), coder)

    @property
    def spare_nbytes(self) -> int:
        """Bytes of ``nbytes`` that ``tidy`` would free."""
        spare = sum(joining.spare_nbytes(lane.prompt_cache) for lanes in self._lanes.values() for lane in lanes)
        return spare + self._left_nbytes

    @property
    def _left_nbytes(self) -> int:
        """Bytes of rows that were restored together with others and are gone, where those are still there."""
        return sum(buffers.left_nbytes for buffers in self._shared)

    def tidy(self) -> None:
        """Copy the rows of each lane that has spare bytes, layer by layer; so those restored with others that left."""
        with mx.stream(self._generator.stream):
            for buffers in [one for one in self._shared if one.left_nbytes]:
                together.separate(list(buffers.rows))
            for lane in [one for lanes in self._lanes.values() for one in lanes]:
                if joining.spare_nbytes(lane.prompt_cache):
                    self._move(lane)

    @property
    def nbytes(self) -> int:
        """Bytes of all lanes, of the rows that wait to join one, of the snapshots of all rows, and what is nobody's."""
        caches = [c for lanes in self._lanes.values() for lane in lanes for c in lane.prompt_cache]
        caches += [c for row in self._waiting.values() for c in row.caches]
        marks = sum(kinds.marks_nbytes(row.marks) for row in self._rows.values())
        return sum(int(c.nbytes) for c in caches) + marks + self._left_nbytes

    def close(self) -> None:
        """Drop all rows; gives the wired limit back on Metal."""
        self._waiting.clear()
        self._rows.clear()
        self._lanes.clear()
        self._references.drop()
        self._generator.close()

    def _join(self, lanes: list[GenerationBatch], rows: list[BatchRow]) -> list[tuple[int, int]]:
        """Move rows into lanes; return the tokens of those whose lane was empty, as soon as they are computed."""
        out: list[tuple[int, int]] = []
        lane = lanes[0] if lanes else None
        while rows:
            can_batch = joining.can_batch(rows[0].caches)
            count = len(rows) if can_batch else 1
            coming, rows = joining.in_place(rows[:count]), rows[count:]
            for row in coming:
                del self._waiting[row.number]
            if can_batch and lane is not None:
                self._enter(lane, coming)
            elif any(row.is_begun for row in coming):
                lanes.append(self._lane(_Joining, coming))
                out.extend(self._advance(lanes[-1]))
            else:
                lanes.append(self._lane(GenerationBatch, coming))
                self._mark_lane(lanes[-1])
                tokens: Any = lanes[-1]._next_tokens.tolist()
                out.extend((row.number, token) for row, token in zip(coming, tokens, strict=True))
        return out

    def _lane(self, kind: type[GenerationBatch], rows: list[BatchRow]) -> GenerationBatch:
        parts = [row.caches for row in rows]
        join = joining.Join(self._beside)
        caches = parts[0] if len(rows) == 1 else [join.layer(layer) for layer in zip(*parts, strict=True)]
        lane = kind(
            self._model,
            [row.number for row in rows],
            mx.array([row.pending for row in rows], mx.uint32),
            caches,
            [list(row.ids) for row in rows],
            [row.sampler for row in rows],
            greedy,
            [row.processors.chain for row in rows],
            [StopSequences()] * len(rows),
            [_NO_LIMIT] * len(rows),
        )
        for row in rows:
            row.caches = []  # the lane owns them now
        return lane

    def _enter(self, lane: GenerationBatch, rows: list[BatchRow]) -> None:
        """Join rows to a decoding lane, layer by layer, so that at most one layer is in memory twice."""
        mx.eval(lane._next_tokens)  # the step under way reads buffers that are written in place
        layers = [list(layer) for layer in zip(lane.prompt_cache, *(row.caches for row in rows), strict=True)]
        lane.prompt_cache = []
        for row in rows:
            row.caches = []
        joined, join = [], joining.Join(self._beside)
        for layer in layers:
            joined.append(join.layer(layer))
            layer.clear()
        lane.extend(self._lane(_Joining, rows))
        lane.prompt_cache = joined

    def _cut(self, lane: GenerationBatch, numbers: list[int]) -> list[list[Any]]:
        """Copy the caches of rows that leave a lane, layer by layer."""
        places = [lane.uids.index(number) for number in numbers]
        stay = joining.order(len(lane.uids), places)
        layers, lane.prompt_cache = lane.prompt_cache, []
        is_alone = len(lane.uids) == 1 and not joining.has_spans(layers)
        out = [layers] if is_alone else joining.part(layers, places, stay, self._chunk_tokens)
        lane.filter(stay)
        if stay:
            lane.prompt_cache = layers
            if joining.is_wasteful(layers):
                self._move(lane)
        else:
            for lanes in self._lanes.values():
                lanes[:] = [one for one in lanes if one is not lane]
        return out

    def _advance(self, lane: GenerationBatch) -> list[tuple[int, int]]:
        """Step a lane until a row has a new token: one step, or two where the caller has every token of the first."""
        out: list[tuple[int, int]] = []
        while lane.uids and not out:
            self._make_room(lane, 1)
            responses = lane.next()
            self._mark_lane(lane)
            for response in responses:
                row = self._rows[response.uid]
                if row.n_skip:
                    row.n_skip -= 1
                else:
                    out.append((response.uid, response.token))
        return out

    def _make_room(self, lane: GenerationBatch, n_ids: int) -> None:
        if joining.lacks_room(lane.prompt_cache, n_ids):
            self._move(lane, n_ids)

    def _move(self, lane: GenerationBatch, n_ids: int = 1) -> None:
        """Copy a lane's rows to buffers without spare rows and gaps."""
        mx.eval(lane._next_tokens)
        caches, lane.prompt_cache = lane.prompt_cache, []
        lane.prompt_cache = joining.Join(self._beside).move(caches, n_ids, self._chunk_tokens)

    def _mark_lane(self, lane: GenerationBatch) -> None:
        if not self._layout.snapshots:
            return
        for index, uid in enumerate(lane.uids):
            row = self._rows[uid]
            place = index if len(lane.uids) > 1 else None
            self._mark(row.marks, lane.prompt_cache, _n_tokens(row, lane, index), place)

    def _mark(self, marks: dict[int, list[Any]], caches: list[Any], n_tokens: int, row: int | None = None) -> None:
        kinds.mark(marks, self._layout, caches, n_tokens, self._chunk_tokens, row)

    def _find(self, row: BatchRow) -> tuple[GenerationBatch, int]:
        lane = next(lane for lane in self._lanes[row.group] if row.number in lane.uids)
        return lane, lane.uids.index(row.number)


def _n_tokens(row: BatchRow, lane: GenerationBatch, index: int) -> int:
    return int(row.n_kv + len(lane.tokens[index]) - len(row.ids))


def _own(kv: KV) -> MLXKV:
    assert isinstance(kv, MLXKV), f"a KV of another runner: {type(kv).__name__}"
    return kv

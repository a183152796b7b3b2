"""How many agents of a length fit: bytes by tier, predicted from the model's layout. Runs nothing on the model."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen

from agent_memory.config import Codec, Config, memory_budgets
from agent_memory.kvcache.coding import fitted, token_bytes
from agent_memory.kvcache.layout import Layout, is_kept
from agent_memory.kvfile.format import extents, header, metadata
from agent_memory.prefix.index import Index
from agent_memory.prefix.pieces import Segment, resume_segment
from agent_memory.prefix.provenance import SEGMENT_CHUNKS
from agent_memory.prefix.resume import Held, Needs, missing_resume
from agent_memory.protocols import ModelRunner
from agent_memory.tiers.warm import ARRAY_BYTES, PIECE_BYTES
from agent_memory.usage import AsDict

_STEP = 256  #: live arrays grow in steps of this many tokens
_BLOCK_BYTES = 4096  #: what a file system allocates at once
_PREFILL = 1  #: provenance of the tokens of a sample
_ROOT = "0" * 64  #: an identity is 64 hex digits


@frozen(kw_only=True)
class Fit(AsDict):
    """The bytes that ``n_agents`` of ``n_tokens`` each take, and how many such agents the budgets hold.

    - Agents that share a beginning take less on disk, and in warm.
    - ``hot``: live arrays with their spare capacity. ``warm``: pieces in ``Config.warm_codec``.
    - ``cold``: KV files in the exact codec, in blocks of the file system, as one save writes them; logs come on top.
    - A model with sliding windows holds up to a chunk of window rows more where the newest reply crossed a chunk's end.
    """

    n_agents: int
    n_tokens: int
    agent_bytes: Mapping[str, int]  #: of one agent, by tier
    total_bytes: Mapping[str, int]  #: of all, by tier
    budget_bytes: Mapping[str, int | None]  #: by tier; None: no such tier
    n_fit: Mapping[str, int | None]  #: agents that a tier's budget holds

    @property
    def fits(self) -> bool:
        """True if all of the agents fit one tier that there is."""
        return any(n is not None and n >= self.n_agents for n in self.n_fit.values())

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(tier, bytes of one agent, bytes of all, agents that fit) of every tier that there is."""
        return [
            (tier, f"{n_bytes:,}", f"{self.total_bytes[tier]:,}", f"{self.n_fit[tier]:,}")
            for tier, n_bytes in self.agent_bytes.items()
            if self.n_fit[tier] is not None
        ]

    def __str__(self) -> str:
        lines = [f"{tier}: {one} bytes an agent, {every} for all, {n} fit" for tier, one, every, n in self.rows()]
        return "\n".join([f"{self.n_agents:,} agents of {self.n_tokens:,} tokens", *lines])

    def _repr_html_(self) -> str:
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows())
        head = "<tr><th>tier</th><th>bytes an agent</th><th>bytes of all</th><th>agents that fit</th></tr>"
        return f"<table>{head}{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


#: tokens of an agent that ``fit`` is asked for at most: it lays out their files one by one
MOST_TOKENS = 10_000_000


def live_bytes(layout: Layout, n_tokens: int, chunk_tokens: int, step: int) -> int:
    """Return the bytes that an idle agent of ``n_tokens`` takes in the hot tier, spare capacity included.

    ``step``: tokens of a prefill step, here and below.
    """
    rows = (n_tokens // _STEP + 1) * _STEP * layout.token_bytes if n_tokens else 0
    window_rows = min(n_tokens + chunk_tokens, layout.window + chunk_tokens) if layout.windows else 0
    places = _snapshots(n_tokens, chunk_tokens) if layout.snapshots and n_tokens else frozenset()
    states = sum(_state_bytes(layout, place, n_tokens, step) for place in places)
    if (growing := layout.growing) is not None and n_tokens:  # the state at the end is live, with its spare capacity
        n_last = min(n_tokens - 1, growing.most_rows) + 1
        is_cut = n_tokens > growing.most_rows + step  # each pass cuts the rows to ``most_rows``, and adds a step's room
        live = growing.most_rows + _STEP if is_cut else (n_tokens // _STEP + 1) * _STEP
        states += (live - n_last) * growing.row_bytes
    return rows + window_rows * layout.window_token_bytes + states


def _state_bytes(layout: Layout, place: int, n_tokens: int, step: int) -> int:
    """Return the bytes of the state at ``place`` of an agent of ``n_tokens``, whose newest tokens were decoded."""
    return layout.state_bytes_at(place, 1 if place == n_tokens else step)


def file_bytes(
    layout: Layout, n_tokens: int, chunk_tokens: int, host: str, step: int, block_bytes: int = _BLOCK_BYTES
) -> int:
    """Return the allocated bytes of the KV files of one agent of ``n_tokens``, exact, written in one save."""
    if not layout.is_storable or not n_tokens:
        return 0
    files = _files(layout, n_tokens, chunk_tokens, host)
    stops = _stops(files)
    sizes = [_file_bytes(layout, one, _state_bytes(layout, stops.get(one.parent, 0), n_tokens, step)) for one in files]
    return sum(-(-size // block_bytes) * block_bytes for size in sizes)


def _files(layout: Layout, n_tokens: int, chunk_tokens: int, host: str) -> list[Segment]:
    """The segments that a save of one agent writes."""
    ids = np.arange(n_tokens, dtype=np.uint32)
    index = Index(b"\0" * 32, chunk_tokens, lambda piece: ids[piece.start : piece.stop])
    rows = _rows(index, ids, chunk_tokens, host)
    return rows if layout.is_full else [*rows, *_resume(index, rows, layout, n_tokens, chunk_tokens)]


def _rows(index: Index, ids: np.ndarray[Any, Any], chunk_tokens: int, host: str) -> list[Segment]:
    """The segments of rows that a save writes, entered into an index."""
    full, step = len(ids) // chunk_tokens * chunk_tokens, SEGMENT_CHUNKS * chunk_tokens
    starts = [*range(0, full, step), *([full] if full < len(ids) else [])]
    found: list[Segment] = []
    for number, start in enumerate(starts):
        own = ids[start : min(start + step, full)] if start < full else ids[start:]
        parent = found[-1].pieces[-1].id if found else index.root
        segment = Segment(
            identity=_ROOT, file="", parent=parent, parent_number=number or None, start=start, n_tokens=len(own),
            chunk_tokens=chunk_tokens, exactness="exact", codec="exact", host=host, used_s=0.0, ids=own,
        )  # fmt: skip
        for piece in segment.divide(own, lambda *_: _PREFILL):
            index.add(piece, own[piece.offset : piece.offset + piece.n_tokens])
        found.append(segment)
    return found


def _resume(index: Index, rows: Sequence[Segment], layout: Layout, n_tokens: int, chunk_tokens: int) -> list[Segment]:
    """The segments of window rows and states that the same save writes."""
    needs = Needs.of(layout, chunk_tokens)
    held = Held(needs.boundary_row(n_tokens), _snapshots(n_tokens, chunk_tokens))
    head = rows[-1].pieces[-1].id
    missed = missing_resume(index, {}, needs, head, n_tokens, held)
    return [resume_segment(piece, n_rows, has_state) for piece, n_rows, has_state in missed]


def _snapshots(n_tokens: int, chunk_tokens: int) -> frozenset[int]:
    """Where a live KV has a state: at its end, and at the chunk boundaries that are kept."""
    newest = n_tokens // chunk_tokens
    kept = (n * chunk_tokens for n in range(1, newest + 1) if is_kept(n, newest))
    return frozenset((*kept, n_tokens))


def _stops(files: Sequence[Segment]) -> dict[bytes, int]:
    """Return the position after each piece, by its id."""
    return {piece.id: piece.start + piece.n_tokens for one in files for piece in one.pieces}


def _file_bytes(layout: Layout, segment: Segment, state_bytes: int) -> int:
    places = extents(layout, segment, state_bytes if segment.has_state else None)
    end = places[-1].start + places[-1].nbytes if places else 0
    return len(header(places, metadata(segment))) + end


def warm_bytes(layout: Layout, n_tokens: int, chunk_tokens: int, codec: Codec, step: int) -> int:
    """Return the bytes that one agent of ``n_tokens`` takes in the warm tier."""
    if not layout.is_storable or not n_tokens:
        return 0
    n_pieces, row_bytes = -(-n_tokens // chunk_tokens), 4 + token_bytes(layout, codec)
    n_bytes = n_pieces * (PIECE_BYTES + ARRAY_BYTES * len(layout.tensors)) + n_tokens * row_bytes
    files = _files(layout, n_tokens, chunk_tokens, "")
    stops = _stops(files)
    for one in files:
        if one.kind == "resume":
            n_bytes += one.n_tokens * layout.window_token_bytes + ARRAY_BYTES * len(layout.windows) * bool(one.n_tokens)
            state = _state_bytes(layout, stops.get(one.parent, 0), n_tokens, step)
            n_bytes += (state + ARRAY_BYTES) * one.has_state
    return n_bytes


def fit(runner: ModelRunner, config: Config, disk_bytes: int | None, n_agents: int, n_tokens: int) -> Fit:
    """Return the figures of ``n_agents`` of ``n_tokens``. ``disk_bytes``: the disk's budget; None: no disk tier."""
    layout, chunk_tokens, step = runner.layout, config.chunk_tokens, config.prefill_tokens or runner.prefill_tokens
    hot_bytes, budget = memory_budgets(config)
    budgets = {"hot": hot_bytes, "warm": budget or None, "cold": disk_bytes}
    agent = {
        "hot": live_bytes(layout, n_tokens, chunk_tokens, step),
        "warm": warm_bytes(layout, n_tokens, chunk_tokens, fitted(layout, config.warm_codec), step),
        "cold": file_bytes(layout, n_tokens, chunk_tokens, runner.host, step),
    }
    return Fit(
        n_agents=n_agents,
        n_tokens=n_tokens,
        agent_bytes=agent,
        total_bytes={tier: n_agents * n_bytes for tier, n_bytes in agent.items()},
        budget_bytes=budgets,
        n_fit={tier: None if most is None else most // max(1, agent[tier]) for tier, most in budgets.items()},
    )

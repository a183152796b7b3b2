"""What an agent's file has: every part read and checked, before the store is touched.

- The log is checked by ``log.carried``; of the KV that the open model can use sizes, places and ids are checked.
- A piece follows one that came before it, so chains of pieces end. Ids of pieces are computed here, from the tokens.
- Bytes of KV cannot be proved without computing them again: a file is as trustworthy as who made it (docs/agents.md).
- Kept in memory: a few numbers for each part, and the token ids of KV.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np
from attrs import define, field, frozen

from agent_memory.carry.agent_file import MAX_JSON_BYTES, AgentFileReader, Body, Part
from agent_memory.config import Codec
from agent_memory.errors import AgentFileError
from agent_memory.kvcache.coding import coded, named, token_bytes
from agent_memory.kvcache.layout import Layout
from agent_memory.kvfile.state_shapes import MAX_TEXT_BYTES, check_state
from agent_memory.log.carried import MAX_VERSIONS, Intake, Terms
from agent_memory.log.facts import Facts
from agent_memory.log.soundness import BAD_JSON, is_count, is_line
from agent_memory.log.turns import Turn
from agent_memory.log.versions import Version
from agent_memory.prefix.chunks import piece_id, root_id
from agent_memory.prefix.pieces import Ids
from agent_memory.prefix.provenance import SEGMENT_CHUNKS, Made
from agent_memory.progress import Progress, mib, silent
from agent_memory.types import EXACTNESS, Exactness, weakest

_ORDER = {"agent": 0, "branch": 1, "turn": 1, "version": 2, "model": 3, "rows": 4, "resume": 5, "head": 6}
_MAX_PARTS = 1 << 16  #: of each kind but turns
_MADE = get_args(Made)


@frozen(kw_only=True)
class Model:
    """The open model, whose KV is taken in. ``digests``: of its identity, without the salt."""

    digests: Mapping[str, str]
    identity: str
    layout: Layout
    chunk_tokens: int
    n_vocab: int | None


@frozen(kw_only=True)
class Rows:
    """Rows of one segment in a file."""

    part: Part = field(repr=False)
    parent: tuple[int, int] | None  #: rows and piece in the file
    start: int
    ids: Ids = field(eq=False, repr=False)
    made: tuple[int, ...]
    exactness: Exactness
    codec: Codec
    host: str
    pieces: tuple[bytes, ...] = field(repr=False)  #: ids under the open model's identity
    parent_piece: bytes = field(repr=False)


@frozen(kw_only=True)
class Resume:
    """A resume segment in a file."""

    part: Part = field(repr=False)
    piece: bytes = field(repr=False)
    n_rows: int
    state_bytes: int | None
    codec: Codec
    exactness: Exactness


@define
class Found:
    """What is in a file. Rows of other models are None."""

    identity: str = ""  #: of the model under which ids of pieces were computed
    agent: Mapping[str, Any] = field(factory=dict)
    live: int = 0  #: the place of the branch that the next turn is added to
    branches: list[tuple[int | None, int]] = field(factory=list)  #: base and start
    turns: list[tuple[int, int, Part]] = field(factory=list, repr=False)  #: place of the branch, number, part
    versions: list[tuple[Version, int, str | None, Facts]] = field(factory=list)
    rows: list[Rows | None] = field(factory=list)
    resume: list[Resume] = field(factory=list)
    heads: list[tuple[int, bytes]] = field(factory=list)  #: number of the version, 0: the agent; piece
    n_tokens: int = 0  #: tokens of KV that the open model can use
    n_foreign: int = 0  #: tokens of KV of other models
    n_remade: int = 0  #: turns whose ids are made anew
    has_secrets: bool = False


def read_file(reader: AgentFileReader, terms: Terms, model: Model | None, report: Progress = silent) -> Found:
    """Read and check a whole file. ``model`` None: no KV is taken in. Raises AgentFileError.

    ``report``: told the MiB that were checked.
    """
    reading = _Reading(reader, terms, model)
    try:
        for body in reader.bodies():
            report(body.part.body_at >> 20, mib(reader.n_bytes), "checking")
            reading.take(body)
        return reading.end()
    except (*BAD_JSON, UnicodeError) as error:
        if isinstance(error, AgentFileError):
            raise
        raise AgentFileError(f"{reader.path} cannot be used: {error}") from error


def turns_of(reader: AgentFileReader, found: Found, terms: Terms) -> Iterator[tuple[int, int, Turn]]:
    """Yield the turns of a file that was read, again: the place of the branch, the number, the turn."""
    intake = Intake(terms)
    intake.agent(found.agent)
    left = iter(found.turns)
    place, number, part = next(left, (-1, 0, None))
    for here, (base, start) in enumerate(found.branches):
        intake.branch(base, start)
        while part is not None and place == here:
            body = reader.again(part)
            turn = _turn(body, intake)
            body.close()
            yield place, number, turn
            place, number, part = next(left, (-1, 0, None))


def _turn(body: Body, intake: Intake) -> Turn:
    n_ids = body.part.facts.get("n_ids")
    if type(n_ids) is not int or not 0 <= 4 * n_ids <= body.part.n_bytes:
        raise ValueError("a turn has more ids than bytes")
    n_bytes = body.part.n_bytes - 4 * n_ids
    if n_bytes > MAX_JSON_BYTES:
        raise ValueError(f"a turn's messages take {n_bytes:,} bytes; at most {MAX_JSON_BYTES:,} are read")
    messages = body.read(n_bytes).decode("ascii")
    return intake.turn(body.part.facts, messages, np.frombuffer(body.read(4 * n_ids), "<u4"))


class _Reading:
    """Takes the parts of a file, in order. Raises ValueError for what makes no sense."""

    def __init__(self, reader: AgentFileReader, terms: Terms, model: Model | None) -> None:
        self._model_open, self._intake = model, Intake(terms)
        self._found, self._kind, self._n_parts = (
            Found(model.identity if model is not None else ""),
            "",
            dict.fromkeys(_ORDER, 0),
        )
        self._models: list[bool] = []  # True: the open model
        self._pieces: dict[bytes, int] = {}  # pieces of the open model -> tokens
        self._resumed: set[bytes] = set()

    def take(self, body: Body) -> None:
        """Take one part."""
        kind = body.part.kind
        if kind not in _ORDER or _ORDER[kind] < _ORDER.get(self._kind, 0) or (kind == "agent") is not (not self._kind):
            raise ValueError(f"a part of the kind {kind[:20]!r} is not expected there")
        self._n_parts[kind] += 1
        if kind != "turn" and self._n_parts[kind] > _MAX_PARTS:
            raise ValueError(f"it has more than {_MAX_PARTS:,} parts of the kind {kind!r}")
        self._kind = kind
        getattr(self, f"_{kind}")(body, body.part.facts)

    def end(self) -> Found:
        """Return what was found."""
        found, intake = self._found, self._intake
        if not found.branches or not 0 <= found.live < len(found.branches):
            raise ValueError("the agent's own branch is not there")
        used = {found.live, *(base for base, _ in found.branches), *(place for _, place, _, _ in found.versions)}
        if not used.issuperset(range(len(found.branches))):
            raise ValueError("a branch is of neither the agent nor a version")
        found.n_remade, found.has_secrets = intake.n_remade, intake.has_secrets
        return found

    def _agent(self, body: Body, facts: Mapping[str, Any]) -> None:
        if type(facts.get("branch")) is not int:
            raise ValueError("the agent's own branch is not told")
        self._found.live = facts["branch"]
        self._found.agent = self._intake.agent(body.json())

    def _branch(self, body: Body, facts: Mapping[str, Any]) -> None:
        base, start = facts.get("base"), facts.get("start")
        self._intake.branch(base, start)
        self._found.branches.append((base, start))  # type: ignore[arg-type]  # checked right there

    def _turn(self, body: Body, facts: Mapping[str, Any]) -> None:
        _turn(body, self._intake)
        place = len(self._found.branches) - 1
        self._found.turns.append((place, self._intake.n_turns(place) - 1, body.part))

    def _version(self, body: Body, facts: Mapping[str, Any]) -> None:
        version = self._intake.version(facts, body.json())
        if len(self._found.versions) >= MAX_VERSIONS:
            raise ValueError("it has too many versions")
        if self._found.versions and version[0].number <= self._found.versions[-1][0].number:
            raise ValueError("its versions are out of order")
        self._found.versions.append(version)

    def _model(self, body: Body, facts: Mapping[str, Any]) -> None:
        told = body.json()
        if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
            raise ValueError("what it says of a model cannot be read")
        mine = self._model_is(told, facts.get("chunk_tokens"))
        if mine and any(self._models):
            raise ValueError("it has one model twice")
        self._models.append(mine)

    def _model_is(self, told: Mapping[str, str], chunk_tokens: Any) -> bool:
        model = self._model_open
        if model is None or chunk_tokens != model.chunk_tokens:
            return False
        return all(told.get(name, "") == value for name, value in model.digests.items())

    def _rows(self, body: Body, facts: Mapping[str, Any]) -> None:
        number, start, n_tokens = facts.get("model"), facts.get("start"), facts.get("n_tokens")
        if type(number) is not int or not 0 <= number < len(self._models):
            raise ValueError("rows are of a model that is not there")
        if type(start) is not int or type(n_tokens) is not int or not (is_count(start) and 0 < n_tokens < 1 << 31):
            raise ValueError("rows have no place")
        if not self._models[number]:
            self._found.rows.append(None)
            self._found.n_foreign += n_tokens
            return
        rows = self._read_rows(body, facts, start, n_tokens)
        for place, piece in enumerate(rows.pieces):
            size = self._open.chunk_tokens
            self._pieces[piece] = min(size, n_tokens - place * size)
        self._found.rows.append(rows)
        self._found.n_tokens += n_tokens

    @property
    def _open(self) -> Model:
        assert self._model_open is not None
        return self._model_open

    def _read_rows(self, body: Body, facts: Mapping[str, Any], start: int, n_tokens: int) -> Rows:
        model, size = self._open, self._open.chunk_tokens
        parent, parent_piece = self._parent(facts.get("parent"), start)
        is_whole = start % size + n_tokens < size if n_tokens < size else not (start % size or n_tokens % size)
        if not is_whole:
            raise ValueError("rows are not of whole chunks")
        n_pieces, codec, exactness, host = -(-n_tokens // size), *_provenance(facts)
        made = facts.get("made")
        is_made = isinstance(made, list) and len(made) == n_pieces and all(one in _MADE for one in made)
        if not is_made or n_pieces > SEGMENT_CHUNKS or not isinstance(made, list):
            raise ValueError("rows do not say how they were made")
        if codec != "exact" and exactness != "quantized":
            raise ValueError("rows of a lossy codec pose as exact")
        n_bytes = token_bytes(model.layout, codec) * n_tokens
        if body.part.n_bytes != n_bytes + 4 * n_tokens:
            raise ValueError(f"{n_tokens:,} tokens take {n_bytes + 4 * n_tokens:,} bytes, not {body.part.n_bytes:,}")
        for _ in body.blocks(n_bytes):
            pass
        ids = np.frombuffer(body.read(4 * n_tokens), "<u4")
        if model.n_vocab is not None and int(ids.max()) >= model.n_vocab:
            raise ValueError("rows have ids that the model does not know")
        pieces: list[bytes] = []
        for at in range(0, n_tokens, size):
            pieces.append(piece_id(pieces[-1] if pieces else parent_piece, ids[at : at + size]))
        if not self._pieces.keys().isdisjoint(pieces):
            raise ValueError("it has the same tokens twice")
        return Rows(
            part=body.part,
            parent=parent,
            start=start,
            ids=ids,
            made=tuple(made),
            exactness=exactness,
            codec=codec,
            host=host,
            pieces=tuple(pieces),
            parent_piece=parent_piece,
        )

    def _parent(self, told: Any, start: int) -> tuple[tuple[int, int] | None, bytes]:
        """Return the place and the id of the piece that rows follow."""
        if told is None:
            if start:
                raise ValueError("rows follow nothing, and are not the first")
            return None, root_id(self._open.identity)
        rows, place = self._piece(told)
        if min(rows.start + (place + 1) * self._open.chunk_tokens, rows.start + len(rows.ids)) != start:
            raise ValueError("rows do not begin where what they follow ends")
        return (told[0], place), rows.pieces[place]

    def _piece(self, told: Any) -> tuple[Rows, int]:
        """Return the rows and the place of a piece that came before."""
        if not (isinstance(told, list) and len(told) == 2 and all(type(n) is int for n in told)):
            raise ValueError("a piece is not named by its rows and its place")
        number, place = told
        rows = self._found.rows[number] if 0 <= number < len(self._found.rows) else None
        if rows is None or not 0 <= place < len(rows.pieces):
            raise ValueError("a piece is named that is not there")
        return rows, place

    def _is_foreign(self, told: Any) -> bool:
        """True if a piece is another model's."""
        is_named = isinstance(told, list) and len(told) == 2 and type(told[0]) is int
        return is_named and 0 <= told[0] < len(self._found.rows) and self._found.rows[told[0]] is None

    def _resume(self, body: Body, facts: Mapping[str, Any]) -> None:
        if self._is_foreign(facts.get("piece")):
            return
        rows, place = self._piece(facts.get("piece"))
        layout = self._open.layout
        n_rows, has_state, piece = facts.get("n_rows"), facts.get("has_state"), rows.pieces[place]
        codec = named(str(facts.get("codec")))
        if type(n_rows) is not int or not 0 <= n_rows <= self._pieces[piece] or not isinstance(has_state, bool):
            raise ValueError("a resume part makes no sense")
        if (n_rows and not layout.windows) or (has_state and not layout.snapshots) or not (n_rows or has_state):
            raise ValueError("a resume part is none of this model's")
        if piece in self._resumed:
            raise ValueError("a piece has two resume parts")
        if codec != "exact" and rows.exactness != "quantized":
            raise ValueError("a resume part of a lossy codec poses as exact")
        n_bytes = n_rows * sum(coded(spec, codec).token_bytes for spec in layout.windows)
        state_bytes = body.part.n_bytes - n_bytes
        if state_bytes < 0 or (state_bytes > 0) is not has_state:
            raise ValueError("a resume part has another size than it tells")
        if has_state:
            _check_state(body, n_bytes, state_bytes, layout.snapshots)
        self._resumed.add(piece)
        exactness = facts.get("exactness", "exact")
        if exactness not in EXACTNESS:
            raise ValueError("a resume part does not say what may be said of it")
        self._found.resume.append(
            Resume(
                part=body.part,
                piece=piece,
                n_rows=n_rows,
                state_bytes=state_bytes if has_state else None,
                codec=codec,
                exactness=weakest(rows.exactness, exactness),
            )
        )

    def _head(self, body: Body, facts: Mapping[str, Any]) -> None:
        version = facts.get("version")
        if type(version) is not int or version not in {0, *(one[0].number for one in self._found.versions)}:
            raise ValueError("a lineage is of a version that is not there")
        if not self._is_foreign(facts.get("piece")):
            rows, place = self._piece(facts.get("piece"))
            self._found.heads.append((version, rows.pieces[place]))


def _check_state(body: Body, at: int, n_bytes: int, snapshots: tuple[str, ...]) -> None:
    """Check the arrays of a state that begins ``at`` bytes into a body."""
    for _ in body.blocks(at):
        pass
    n_text = int.from_bytes(body.read(min(8, n_bytes)), "little")
    if n_text > min(MAX_TEXT_BYTES, n_bytes - 8):
        raise ValueError("a state is shorter than it tells")
    check_state(body.read(n_text), n_bytes - 8 - n_text, snapshots)


def _provenance(facts: Mapping[str, Any]) -> tuple[Codec, Exactness, str]:
    exactness, host = facts.get("exactness"), facts.get("host")
    if exactness not in EXACTNESS or not is_line(host):
        raise ValueError("rows do not say where they come from")
    return named(str(facts.get("codec"))), exactness, host

"""The one seam between the engine and a model: ``ModelRunner``, its ``Batch``, its ``KV`` and its ``Tokenizer``.

``MLXRunner`` and ``EchoRunner`` implement it; the engine, the store and the prompt room use nothing else of models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import frozen

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np

    from agent_memory.config import Codec
    from agent_memory.kvcache.coding import Encoded
    from agent_memory.kvcache.layout import Layout
    from agent_memory.types import Sampling

#: A user's logits processor: ``(ids so far, logits (vocab,) float32) -> logits``. Called on a side thread.
LogitsProcessor = Callable[[Sequence[int], "np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]


@frozen(kw_only=True)
class Divergence:
    """One text's share of a ``CodecReport``: sums over the tokens that were compared."""

    n_tokens: int
    kl: float  #: nats
    worst_kl: float
    agreed: int
    loss: float  #: nats, of the text's own tokens, on exact KV
    coded_loss: float
    n_values: int  #: in the KV
    exact_bytes: int
    coded_bytes: int
    encode_s: float
    decode_s: float


class Detokenizer(Protocol):
    """Turns one stream of ids into text. Not thread-safe; one per stream."""

    def add(self, token: int) -> str:
        """The text that became final with this id: whole characters only, possibly empty."""

    def end(self) -> str:
        """Return the text kept back so far; an unfinished character becomes U+FFFD."""


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. Thread-safe."""

    @property
    def digest(self) -> str:
        """sha256 hex of vocabulary, merges and special tokens: part of the identity of a KV."""

    @property
    def bos_id(self) -> int | None:
        """The id put before a raw prompt, if this tokenizer puts one."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end a reply."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that never merge with the text around them: ids may be exchanged between two of them."""

    @property
    def has_template(self) -> bool:
        """True if there is a chat template."""

    @property
    def knows_tools(self) -> bool:
        """True if the chat template writes the tools it is given."""

    @property
    def tool_format(self) -> str | None:
        """The format of this model's calls, one of ``toolcall.FORMATS``; None: some JSON form."""

    @property
    def reasoning(self) -> tuple[str, str] | None:
        """The tags around this model's reasoning, if it has any."""

    @property
    def vocabulary(self) -> str | Sequence[bytes]:
        """The vocabulary for constrained decoding: JSON of the tokenizers library, or the bytes of every id.

        Raises UnsupportedParameterError where there is neither.
        """

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """Ids of ``text``; special tokens written in it become their ids; none is added but BOS when asked.

        With ``bos`` and a text that already starts with the BOS token, no second one is put.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens left out."""

    def key(self, ids: Sequence[int]) -> str:
        """Return a key of the text of ``ids``: equal keys mean equal text, byte for byte."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
    ) -> str:
        """The chat template's text for ``messages`` (role, content, tool_calls ... as the template expects).

        ``now``: the local time that a template is told which asks for it; None: the clock's.

        Raises UnsupportedParameterError where the template itself refuses the messages.
        """

    def detokenizer(self, *, marks: bool = False) -> Detokenizer:
        """A fresh streaming detokenizer. ``marks``: special tokens are text too, but for those that begin or end."""


class KV(Protocol):
    """The live attention state of one row. Engine thread only."""

    @property
    def n_tokens(self) -> int:
        """How many tokens it covers."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated, spare capacity included."""

    @property
    def held_from(self) -> int:
        """The first token whose rows every sliding-window layer holds; 0 without such layers."""

    @property
    def snapshots(self) -> Collection[int]:
        """Numbers of tokens, its own included, whose state of layers that cannot be truncated is in memory."""

    @property
    def is_finite(self) -> bool:
        """True if no number that it holds is NaN or infinite. O(its bytes): asked only where a request failed."""

    def reach(self, n_tokens: int) -> int:
        """Return the longest prefix of at most ``n_tokens`` to which this KV can be truncated; 0 if none."""

    def trim(self, n_tokens: int) -> bool:
        """Truncate to the first ``n_tokens``, in place and uncopied; False (unchanged) where ``reach`` is less."""

    def copy(self, n_tokens: int) -> KV | None:
        """Copy the first ``n_tokens`` to a KV of their own with spare capacity; None where ``reach`` is less."""

    def read(self, tensor: int, start: int, stop: int, codec: Codec = "exact") -> np.ndarray[Any, Any]:
        """Return a host copy of tokens ``[start, stop)`` of one layout tensor: (heads, stop - start, row_bytes) uint8.

        Tensors of sliding-window layers are numbered after all others, and hold rows from ``held_from`` on.
        With a lossy ``codec`` the rows are encoded, where ``kvcache.coding`` says that this tensor's can be.
        """

    def read_state(self, n_tokens: int) -> np.ndarray[Any, Any]:
        """Return the state at ``n_tokens``, one of ``snapshots``, as bytes: (n,) uint8."""


class Source(Protocol):
    """Stored bytes on their way into a KV: given by the store, called by the runner on whatever thread loads."""

    @property
    def n_tokens(self) -> int:
        """How many tokens it holds."""

    @property
    def held_from(self) -> int:
        """The first token whose rows it holds for sliding-window layers."""

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        """Fill layout tensor ``tensor``: ``out`` is writable bytes of shape (heads, capacity, row_bytes), flat.

        Writes the first ``n_tokens`` of each head; of a sliding-window layer those from ``held_from`` on, at the front.
        Spans that are held encoded are left as they are: ``encoded`` gives those.
        Two threads may fill two tensors at once. Never raises: damage is noted, and asked for by ``check``.
        """

    def encoded(self, tensor: int) -> Sequence[Encoded]:
        """The spans of layout tensor ``tensor`` that are held encoded, to be decoded into the KV; () where none is.

        Each is read when asked for, and verified as ``read_into`` does.
        """

    def read_state(self) -> np.ndarray[Any, Any] | None:
        """The bytes that ``KV.read_state`` gave at ``n_tokens``, verified; None where damaged. Never raises."""

    def check(self) -> bool:
        """True if everything read was verified. Asked after ``Batch.restore``, before the KV is used."""

    def close(self) -> None:
        """Close its files; idempotent."""


class Constraint(Protocol):
    """Which tokens a row may generate next. Engine thread only; an error it raises ends its own row alone."""

    def accept(self, token: int) -> None:
        """Record that the row generated ``token``: called once for each, in order, before the next ``mask``."""

    def mask(self) -> np.ndarray[Any, Any] | None:
        """Return one bit for each id, lowest first, as u32 words: 1 if the id may come next. None: every id may.

        The words are valid until the next call.
        """

    def ahead(self, token: int, n_ids: int) -> Sequence[int]:
        """Return ids that are likely the only ones allowed after ``token``, at most ``n_ids``; () where none is known.

        ``token`` was generated and is not accepted yet. Changes nothing.
        """

    def masks(self, ids: Sequence[int]) -> Sequence[np.ndarray[Any, Any]]:
        """Return what ``mask`` would return if each of ``ids`` were accepted in turn. Changes nothing.

        The list ends before the first id that is not allowed, and where the constraint cannot look ahead.
        """


class Batch(Protocol):
    """Rows of one model that decode together. Engine thread only.

    It may have ``restoring(source)`` too, an iterator that does what ``restore`` does in small steps: it yields None
    after each, and last the KV. Without it nothing is restored while rows run. And ``restore_together(sources)``, which
    returns a KV for each source: of rows that are about to join one batch, and so need not be copied there. A row that
    then does not is given to ``separate(kv)``, which moves it to memory of its own; what it leaves there is spare.
    """

    def empty(self) -> KV:
        """Return a KV of no tokens."""

    def restore(self, source: Source) -> KV:
        """Return a KV filled from ``source``, with spare capacity; all bytes have been read when this returns."""

    def prefill(self, kv: KV, ids: Sequence[int]) -> None:
        """Feed ``ids`` to one row that is not decoding; returns when they are computed.

        Raises what the model raised. Then ``kv`` covers what it covered before or, where nobody can vouch for that,
        nothing: ``n_tokens`` is 0.
        """

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
        """Let a row join ``group``, with the ids that ``kv`` lacks; return its first token if that is known now.

        Of the last id alone, None: the group's next step feeds it. More are fed here, in one pass that gives the first
        token, which the next step feeds. Every id's logits may be computed then, so it is for few ids. The row owns
        ``kv`` from then on; rows of one group are padded to its longest and share every forward pass. ``constraint``
        has the last word on this row's logits, after ``logits_processors``. Raises what the model raised; ``kv`` is
        then as after ``prefill``, and the row has not joined.
        """

    def step(self, group: int) -> list[tuple[int, int]]:
        """One decode step of a group: (row, token) each, in order.

        A row that joins rows that decode gives its next token one step later. Every token given out is covered by its
        row's KV, but for a first token that ``insert`` gave or that rows got in an empty group. Raises what the model
        raised.
        """

    def can_verify(self, group: int) -> bool:
        """True if ``verify`` may take this group's next step: its KV can be truncated, its rows sampled at each place.

        False while a row waits to join, and for rows with logits processors or a repetition penalty.
        """

    def ahead(self, group: int) -> dict[int, tuple[int, bool]]:
        """Return by row the id that the next step will feed, and whether it was given out; waits until it is known."""

    def verify(self, group: int, drafts: Mapping[int, Sequence[int]]) -> list[tuple[int, int]]:
        """One step of a group that feeds each row its next id and, behind it, its draft: what may follow that id.

        At every place a row samples as single steps would, with its own draws; a draft's ids are right up to the first
        that differs. Every row goes on by its next id and as many of its draft as are right, the rest is truncated. A
        draft may be empty, but not all. Returns what as many calls of ``step`` would, up to rounding; possibly nothing.
        Only where ``can_verify``; raises what the model raised.
        """

    def error(self, row: int) -> BaseException | None:
        """What a user's callable or the constraint of this row raised, if one did."""

    def copy(self, row: int, n_tokens: int) -> KV | None:
        """The first ``n_tokens`` of a decoding row as an independent KV; None where the kind cannot be cut."""

    def remove(self, rows: Sequence[int]) -> list[KV]:
        """Take rows out; their KV in the same order, not copied where a row was alone."""

    def drop(self, group: int) -> None:
        """Drop a group whose step raised, with its rows."""

    def measure(self, ids: Sequence[int], n_context: int, codec: Codec) -> Divergence:
        """Compare what the model says after each of ``ids[n_context:]``, the last left out, on exact KV of the ids
        before and on KV that ``codec`` encoded: up to 3 * their bytes of memory. A batch may keep the exact KV for
        the next codec on the same ids.
        """

    @property
    def nbytes(self) -> int:
        """Bytes allocated for the inserted rows, padding and spare capacity included."""

    @property
    def spare_nbytes(self) -> int:
        """Bytes of ``nbytes`` that are kept for rows that may come where others have left."""

    def tidy(self) -> None:
        """Free the spare bytes; O(bytes of the groups that have some)."""

    def close(self) -> None:
        """Free everything; idempotent."""


@runtime_checkable
class ModelRunner(Protocol):
    """A model: what it is, how it keeps its KV, and batches of it."""

    @property
    def name(self) -> str:
        """A short name for people."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Valid after ``open``."""

    @property
    def layout(self) -> Layout:
        """Valid after ``open``."""

    @property
    def context_tokens(self) -> int | None:
        """The model's context length; None if unknown."""

    @property
    def prefill_tokens(self) -> int:
        """The prefill grid that suits this device (tokens)."""

    @property
    def weights_bytes(self) -> int:
        """Bytes that every forward pass reads beside the KV. Valid after ``open``."""

    @property
    def host(self) -> str:
        """Build, device and threads: where it differs, the same bits may be computed on with other rounding."""

    @property
    def identity(self) -> Mapping[str, str]:
        """weights, adapter, config, tokenizer, layout, dtype: digests that a KV belongs to. Valid after ``open``."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of this model and its backend for ``Memory.doctor()``."""

    @property
    def choices(self) -> Mapping[str, str]:
        """Decisions made while opening; the store keeps them, so that they are made once. Valid after ``open``."""

    def open(self, recorded: Mapping[str, str]) -> None:
        """Load; engine thread; may take minutes the first time.

        ``recorded``: the ``choices`` of an earlier time, or {}. Raises ModelError or BackendMissingError.
        """

    def open_batch(self, chunk_tokens: int = 256) -> Batch:
        """An empty batch; engine thread. ``chunk_tokens``: where states of layers that cannot be cut are kept."""

    def close(self) -> None:
        """Drop the model; idempotent."""

"""``StaticModel``: an embedder that is a table, one vector a token, out of a local folder; in numpy, a text in 0.1 ms.

The folder is what model2vec saves (potion-base and its kind): ``model.safetensors`` with the table as ``embeddings``,
perhaps ``weights`` (a number a token) and ``mapping`` (token -> row), and ``tokenizer.json``. A table by another name,
such as wordllama's ``embedding.weight``, is read too. Nothing is fetched.

Source: the files' layout as in MinishLab/model2vec (model2vec/persistence).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from attrs import define, field
from numpy.typing import NDArray

from agent_memory.config import as_path
from agent_memory.errors import ConfigError

_TABLES = ("embeddings", "embedding.weight")
_MOST_TOKENS = 512  #: of one text
Floats = NDArray[np.float32]


@define(eq=False)
class StaticModel:
    """An ``Embedder`` out of a folder: the weighted mean of a text's tokens, of length 1. Thread-safe.

    ``by_rank``: tokens count by the logarithm of their rank in the vocabulary, as it is in those that stand in order
    of frequency: for tables whose common words were not made short already. Raises ConfigError where the folder is not
    one of such a table.
    """

    folder: str | os.PathLike[str]
    by_rank: bool = field(default=False, kw_only=True)
    dim: int = field(init=False)
    fingerprint: str = field(init=False)
    _table: NDArray[Any] = field(init=False, repr=False)
    _rows: NDArray[np.int64] = field(init=False, repr=False)  #: token -> row of the table
    _weights: Floats = field(init=False, repr=False)  #: of each token
    _tokenizer: Any = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        folder = as_path(self.folder, "folder")
        from safetensors import SafetensorError
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        try:
            raw = (folder / "model.safetensors").read_bytes()
            tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
            tensors = load(raw)
            self._tokenizer = Tokenizer.from_str(tokenizer)
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"{folder} is no folder of a table of vectors: {error}") from error
        except Exception as error:  # tokenizers raises plain Exception for a file that it cannot read
            raise ConfigError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
        self._table, self._rows, self._weights = _parts_of(tensors, self._tokenizer.get_vocab_size(), str(folder))
        if self.by_rank:
            self._weights = self._weights * np.log1p(np.arange(len(self._weights), dtype=np.float32))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MOST_TOKENS)
        self.dim = int(self._table.shape[1])
        digest = xxhash.xxh3_128_hexdigest(raw + tokenizer.encode())
        self.fingerprint = f"static-{self.dim}-{'rank-' if self.by_rank else ''}{digest}"

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return one vector a text: (len(texts), dim) float32 of length 1; zero for a text without a known token."""
        out = np.zeros((len(texts), self.dim), np.float32)
        for place, encoded in enumerate(self._tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            if encoded.ids:
                vectors = self._table[self._rows[encoded.ids]].astype(np.float32)
                out[place] = self._weights[encoded.ids] @ vectors
        lengths: Floats = np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
        unit: Floats = out / lengths
        return unit


def _parts_of(
    tensors: Mapping[str, NDArray[Any]], n_tokens: int, folder: str
) -> tuple[NDArray[Any], NDArray[np.int64], Floats]:
    """The table, each token's row in it, and each token's weight. Raises ConfigError."""
    table = next((tensors[name] for name in _TABLES if name in tensors), None)
    if table is None or table.ndim != 2:
        raise ConfigError(f"{folder}/model.safetensors has no table among {sorted(tensors)}: one of {_TABLES} is read")
    rows = np.asarray(tensors.get("mapping", np.arange(len(table))), np.int64)
    weights = np.asarray(tensors.get("weights", np.ones(len(rows))), np.float32)
    if min(len(rows), len(weights)) < n_tokens or not 0 <= rows.min() <= rows.max() < len(table):
        raise ConfigError(
            f"{folder}: {len(table):,} rows, {len(rows):,} places and {len(weights):,} weights do not fit the "
            f"tokenizer's {n_tokens:,} tokens"
        )
    if not np.isfinite(weights).all() or not np.isfinite(table).all():
        raise ConfigError(f"{folder}: the table has numbers that are not finite")
    return table, rows, weights

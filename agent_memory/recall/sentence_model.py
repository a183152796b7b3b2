"""``SentenceModel``: a sentence model of BERT's architecture out of a local folder, such as all-MiniLM-L6-v2, in numpy.

The folder is what sentence-transformers saves: ``config.json``, ``model.safetensors``, ``tokenizer.json``. Nothing is
fetched, and MLX is not needed. Vectors are the mean over a text's tokens, of length 1.

Source: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; the layers as in huggingface/transformers
(models/bert/modeling_bert.py).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from attrs import define, field
from numpy.typing import NDArray

from agent_memory.config import as_path
from agent_memory.errors import ConfigError, repr_of

_MOST_TOKENS = 256  #: of one text; what comes behind is left out, as the model was trained
_BATCH = 16
Floats = NDArray[np.float32]


@define(eq=False)
class SentenceModel:
    """An ``Embedder`` out of a folder. Loads at once; about 0.1 s of one core a passage of 60 words.

    Raises ConfigError where the folder is not one of such a model.
    """

    folder: str | os.PathLike[str]
    dim: int = field(init=False)
    fingerprint: str = field(init=False)
    _weights: dict[str, Floats] = field(init=False, repr=False)
    _tokenizer: Any = field(init=False, repr=False)
    _config: dict[str, Any] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        folder = as_path(self.folder, "folder")
        try:
            self._config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            raw = (folder / "model.safetensors").read_bytes()
            tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder} is no folder of a sentence model: {error}") from error
        if self._config.get("model_type") != "bert" or self._config.get("hidden_act") != "gelu":
            raise ConfigError(
                f"{folder} holds a model of type {repr_of(self._config.get('model_type'))}; only 'bert' is read"
            )
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        self._weights = {
            name: np.asarray(value, np.float32) for name, value in load(raw).items() if value.dtype != np.int64
        }
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MOST_TOKENS)
        self.dim = int(self._config["hidden_size"])
        self.fingerprint = f"bert-{self.dim}-{xxhash.xxh3_128_hexdigest(raw + tokenizer.encode())}"

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return one vector a text: (len(texts), dim) float32 of length 1. Texts of like length share a batch."""
        encoded = [self._tokenizer.encode(text).ids for text in texts]
        out = np.zeros((len(texts), self.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            out[part] = self._batch([encoded[i] for i in part])
        return out

    def _batch(self, rows: Sequence[Sequence[int]]) -> Floats:
        longest = max(map(len, rows))
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), np.float32)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1.0
        w = self._weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:longest]
        x = self._normed(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(int(self._config["num_hidden_layers"])):
            x = self._layer(x, mask, f"encoder.layer.{layer}")
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        vectors: Floats = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
        return vectors

    def _layer(self, x: Floats, mask: Floats, name: str) -> Floats:
        heads = int(self._config["num_attention_heads"])
        shape = (*x.shape[:2], heads, self.dim // heads)
        q, k, v = (
            self._linear(x, f"{name}.attention.self.{part}").reshape(shape).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(shape[-1]) + (mask[:, None, None] - 1) * 1e9
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = self._linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), f"{name}.attention.output.dense")
        x = self._normed(x + mixed, f"{name}.attention.output.LayerNorm")
        wide = _gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._normed(x + self._linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, x: Floats, name: str) -> Floats:
        out: Floats = x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return out

    def _normed(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred * centred).mean(-1, keepdims=True) + float(self._config["layer_norm_eps"]))
        out: Floats = centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return out


def _gelu(x: Floats) -> Floats:
    """x * Phi(x), with an error function good to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    z = np.abs(x) * np.float32(1 / math.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429)))))
    erf = np.sign(x) * (1 - poly * np.exp(-z * z))
    out: Floats = (0.5 * x * (1 + erf)).astype(np.float32)
    return out

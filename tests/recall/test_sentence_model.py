"""A sentence model out of a folder: a tiny one with random weights, written by the test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from agent_memory import ConfigError, ContextMemory, Embedder
from agent_memory.recall.sentence_model import SentenceModel, _gelu
from tests.parts.stores import Stores

WORDS = "[UNK] the ferry is red blue late and old harbour".split()
CONFIG = {"model_type": "bert", "hidden_act": "gelu", "hidden_size": 32, "num_hidden_layers": 2,
          "num_attention_heads": 4,
          "layer_norm_eps": 1e-12}  # fmt: skip


def write(folder: Path, seed: int = 0, **config: object) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir()

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    weights = {
        "embeddings.word_embeddings.weight": random(len(WORDS), 32),
        "embeddings.position_embeddings.weight": random(300, 32),
        "embeddings.token_type_embeddings.weight": random(2, 32),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(2):
        name = f"encoder.layer.{layer}"
        for part, n_out, n_in in (
            ("attention.self.query", 32, 32), ("attention.self.key", 32, 32), ("attention.self.value", 32, 32),
            ("attention.output.dense", 32, 32), ("intermediate.dense", 64, 32), ("output.dense", 32, 64),
        ):  # fmt: skip
            weights |= {f"{name}.{part}.weight": random(n_out, n_in), f"{name}.{part}.bias": random(n_out)}
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for norm in norms:
        weights |= {f"{norm}.weight": random(32) + 1, f"{norm}.bias": random(32)}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_text_has_the_same_vector_alone_and_among_longer_ones(tmp_path: Path) -> None:
    model = SentenceModel(write(tmp_path / "model"))
    texts = ["the ferry", "the ferry is red and old", "late", "the harbour " * 200, "ferry the"]
    together = model.embed(texts)
    assert isinstance(model, Embedder)
    assert together.shape == (5, 32)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for text, vector in zip(texts, together, strict=True):
        assert np.allclose(model.embed([text])[0], vector, atol=1e-5)
    assert not np.allclose(together[0], together[4], atol=1e-3)  # the order of words counts


def test_the_fingerprint_is_of_weights_and_tokenizer(tmp_path: Path) -> None:
    one, same, other = (SentenceModel(write(tmp_path / str(n), seed)) for n, seed in enumerate((1, 1, 2)))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_it_serves_a_memory(tmp_path: Path, store: Stores) -> None:
    with ContextMemory(store(), embedder=SentenceModel(write(tmp_path / "model"))) as memory:
        memory.remember("the ferry is red and old", kind="note")
        memory.maintain(5_000)
        assert memory.recall("ferry red")[0].item.text == "the ferry is red and old"
        assert memory.stats().n_vectors == 1


def test_another_model_and_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only 'bert'"):
        SentenceModel(write(tmp_path / "other", model_type="gpt2"))
    with pytest.raises(ConfigError, match="no folder of a sentence model"):
        SentenceModel(tmp_path / "nothing")


def test_the_activation_is_the_exact_gelu() -> None:
    from math import erf, sqrt

    x = np.linspace(-6, 6, 101).astype(np.float32)
    exact = np.array([0.5 * v * (1 + erf(v / sqrt(2))) for v in x.tolist()])
    assert np.abs(_gelu(x) - exact).max() < 2e-6

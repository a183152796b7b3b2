"""A table of vectors out of a folder: tiny ones, written by the test in the layouts that are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from agent_memory import ConfigError, ContextMemory, Embedder, StaticModel
from tests.parts.stores import Stores

WORDS = "[UNK] the ferry boat is red blue late".split()
ROWS = np.array([[0, 0], [1, 1], [3, 0], [3, 0.3], [1, 1], [0, 2], [0, -2], [-1, 1]], np.float32)


def write(folder: Path, **tensors: np.ndarray[Any, Any]) -> Path:
    folder.mkdir()
    save_file(tensors or {"embeddings": ROWS}, folder / "model.safetensors")
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def unit(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return vector / np.linalg.norm(vector)


def test_a_text_is_the_mean_of_its_tokens_of_length_1(tmp_path: Path) -> None:
    model = StaticModel(write(tmp_path / "a"))
    assert isinstance(model, Embedder)
    assert model.dim == 2
    both, none = model.embed(["ferry red", ""])
    assert both == pytest.approx(unit(ROWS[2] + ROWS[5]), abs=1e-6)
    assert none.tolist() == [0.0, 0.0]
    assert model.embed(["ferry red"])[0] == pytest.approx(both), "the same in any batch"


def test_weights_and_places_of_tokens_are_read(tmp_path: Path) -> None:
    """As model2vec saves a table of few rows for many tokens, in int8."""
    table = np.array([[1, 0], [0, 1]], np.int8)
    mapping = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int64)
    weights = np.array([1, 0.5, 2, 1, 1, 4, 1, 1], np.float32)
    model = StaticModel(write(tmp_path / "a", embeddings=table, mapping=mapping, weights=weights))
    assert model.embed(["ferry red"])[0] == pytest.approx(unit(np.array([2.0, 4.0])), abs=1e-6)


def test_rare_tokens_count_more_by_rank(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", **{"embedding.weight": ROWS.astype(np.float16)})
    plain, ranked = StaticModel(folder), StaticModel(folder, by_rank=True)
    expected = np.log1p(1) * ROWS[1] + np.log1p(5) * ROWS[5]
    assert ranked.embed(["the red"])[0] == pytest.approx(unit(expected), abs=1e-3)
    assert plain.fingerprint != ranked.fingerprint, "their vectors are never compared"


def test_another_table_is_another_fingerprint(tmp_path: Path) -> None:
    one, same = StaticModel(write(tmp_path / "a")), StaticModel(write(tmp_path / "b"))
    other = StaticModel(write(tmp_path / "c", embeddings=ROWS + 1))
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != other.fingerprint


def test_meaning_finds_what_no_word_does(tmp_path: Path, store: Stores) -> None:
    with ContextMemory(store(), embedder=StaticModel(write(tmp_path / "a"))) as memory:
        memory.remember("boat late", kind="note")
        memory.remember("blue blue", kind="note")
        assert memory.recall("ferry") == []
        memory.maintain(10_000)
        assert memory.recall("ferry")[0].item.text == "boat late"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"other": ROWS}, "no table among"),
        ({"embeddings": ROWS[0]}, "no table among"),
        ({"embeddings": ROWS[:3]}, "do not fit"),
        ({"embeddings": ROWS, "mapping": np.full(8, 9)}, "do not fit"),
        ({"embeddings": ROWS, "weights": np.ones(3, np.float32)}, "do not fit"),
        ({"embeddings": ROWS * np.nan}, "not finite"),
    ],
)
def test_what_is_no_table_of_vectors_is_refused(tensors: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        StaticModel(write(tmp_path / "a", **tensors))


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder of a table"):
        StaticModel(tmp_path / "nothing")
    folder = write(tmp_path / "a")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        StaticModel(folder)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(ConfigError, match="no folder of a table"):
        StaticModel(folder)

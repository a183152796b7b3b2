from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_memory.errors import DamagedModelError, ModelNotFoundError, UnsupportedModelError
from agent_memory.models.gguf import check_gguf, convert
from agent_memory.models.gguf_header import read_header
from tests.parts.gguf_writer import HEADS, KV_HEADS, LAYERS, TYPES, WIDTH, byte_alphabet, decode, tiny_llama


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_the_head_is_read_as_it_was_written(tiny: Path) -> None:
    header = check_gguf(tiny)
    assert header.metadata["llama.block_count"] == LAYERS
    assert header.metadata["tokenizer.ggml.tokens"][:256] == byte_alphabet()
    assert header.tensors["blk.1.attn_k.weight"].shape == (WIDTH // HEADS * KV_HEADS, WIDTH)


def test_every_truncation_is_found_before_anything_is_loaded(tiny: Path) -> None:
    whole = tiny.read_bytes()
    header = check_gguf(tiny)
    end = header.data_start + max(t.offset + t.nbytes for t in header.tensors.values())
    cuts = {*range(400), *range(400, header.data_start, 97), *(end * i // 64 for i in range(64)), end - 1}
    for cut in sorted(cuts):
        tiny.write_bytes(whole[:cut])
        with pytest.raises(DamagedModelError, match=r"truncated or no GGUF.*\d"):
            check_gguf(tiny)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 7000), byte=st.integers(0, 255))
def test_a_changed_byte_of_the_head_raises_a_model_error_or_is_harmless(tiny: Path, at: int, byte: int) -> None:
    raw = bytearray(tiny.read_bytes())
    end = read_header(tiny).data_start
    raw[at % end] = byte
    changed = tiny.with_name("changed.gguf")
    changed.write_bytes(raw)
    try:
        header = check_gguf(changed)
    except (DamagedModelError, UnsupportedModelError):
        return
    assert all(header.data_start + t.offset + t.nbytes <= len(raw) for t in header.tensors.values())


@pytest.mark.parametrize(
    ("at", "raw", "error", "says"),
    [
        (0, b"GGML", DamagedModelError, "GGML"),
        (4, struct.pack("<I", 1), UnsupportedModelError, "version 1"),
        (4, struct.pack(">I", 3), UnsupportedModelError, "big-endian"),
        (8, struct.pack("<Q", 1 << 60), DamagedModelError, "tensors"),
        (16, struct.pack("<Q", 1 << 60), DamagedModelError, "metadata"),
    ],
)
def test_a_wrong_head_is_named(tiny: Path, at: int, raw: bytes, error: type[Exception], says: str) -> None:
    whole = bytearray(tiny.read_bytes())
    whole[at : at + len(raw)] = raw
    tiny.write_bytes(whole)
    with pytest.raises(error, match=says):
        check_gguf(tiny)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"general.architecture": "qwen2"}, "'qwen2'.*'llama' is supported"),
        ({"llama.rope.dimension_count": 8}, "8 of 16"),
        ({"llama.rope.scaling.type": "yarn"}, "rotary"),
    ],
)
def test_what_is_not_supported_is_said(tmp_path: Path, changes: dict, says: str) -> None:
    tiny_llama(tmp_path / "a.gguf", **changes)
    with pytest.raises(UnsupportedModelError, match=says):
        check_gguf(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer.ggml.pre": "unheard-of"}, "unheard-of.*smollm"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
    ],
)
def test_an_unknown_tokenizer_is_refused(tmp_path: Path, changes: dict, says: str) -> None:
    tiny_llama(tmp_path / "a.gguf", **changes)
    with pytest.raises(UnsupportedModelError, match=says):
        convert(tmp_path / "a.gguf", tmp_path, dtype=None)


def test_a_quantization_that_mlx_cannot_hold_is_refused_with_what_is_supported(tiny: Path) -> None:
    raw = tiny.read_bytes()
    name = b"blk.0.ffn_down.weight"
    at = raw.index(name) + len(name) + 4 + 16
    assert struct.unpack_from("<I", raw, at)[0] == TYPES["F32"]
    tiny.write_bytes(raw[:at] + struct.pack("<I", 10_000) + raw[at + 4 :])
    with pytest.raises(UnsupportedModelError, match="10000"):
        check_gguf(tiny)
    wide = raw[: at - 16] + struct.pack("<Q", 256) + raw[at - 8 : at] + struct.pack("<I", TYPES["Q4_K"]) + raw[at + 4 :]
    tiny.write_bytes(wide)
    with pytest.raises(UnsupportedModelError, match=r"1 tensors of Q4_K.*Q4_0, Q4_1, Q8_0"):
        check_gguf(tiny)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"none\.gguf"):
        check_gguf(tmp_path / "none.gguf")


def _loaded(path: Path):
    from agent_memory.models.resolve import import_mlx_lm

    return import_mlx_lm().load(str(path))


def _permuted_back(values: np.ndarray, heads: int) -> np.ndarray:
    """Row 2j of a head is its row j, row 2j+1 its row j + half: llama.cpp's order undone by hand."""
    half = len(values) // heads // 2
    order = [h * 2 * half + 2 * (j % half) + j // half for h in range(heads) for j in range(2 * half)]
    return values[order]


def _by_hand(tensors, ids):
    """Logits of mlx-lm's llama with weights put in from the written bytes, in float32."""
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    args = ModelArgs(
        model_type="llama", hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=96,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rms_norm_eps=1e-5, vocab_size=261, rope_theta=5000.0,
        tie_word_embeddings="output.weight" not in tensors,
    )  # fmt: skip
    model = Model(args)
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    parts |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"}
    parts |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    weights = []
    for name, (kind, shape, raw) in tensors.items():
        values, stem = decode(raw, kind, shape), name.removesuffix(".weight")
        if stem.endswith(("attn_q", "attn_k")):
            values = _permuted_back(values, HEADS if stem.endswith("q") else KV_HEADS)
        module = top.get(stem) or f"model.layers.{stem.split('.')[1]}.{parts[stem.split('.')[2]]}"
        weights.append((f"{module}.weight", mx.array(values)))
    model.load_weights(weights)
    return np.array(model(mx.array([ids])))


@pytest.mark.mlx
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
def test_a_converted_model_computes_what_its_bytes_say(tmp_path: Path, kind: str, tied: bool) -> None:
    import mlx.core as mx

    tensors = tiny_llama(tmp_path / "a.gguf", kind, tied=tied)
    (tmp_path / "out").mkdir()
    convert(tmp_path / "a.gguf", tmp_path / "out", dtype="float32")
    ids = [1, 50, 200, 259, 7, 33]
    expected = _by_hand(tensors, ids)
    model, _ = _loaded(tmp_path / "out")
    assert np.array_equal(np.array(model(mx.array([ids]))), expected)


@pytest.mark.mlx
@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q4_1", "Q8_0"])
def test_as_stored_keeps_the_stored_values(tmp_path: Path, kind: str) -> None:
    import mlx.core as mx

    tensors = tiny_llama(tmp_path / "a.gguf", kind)
    (tmp_path / "out").mkdir()
    convert(tmp_path / "a.gguf", tmp_path / "out", dtype=None)
    model, _ = _loaded(tmp_path / "out")
    down = model.model.layers[1].mlp.down_proj
    name = "blk.1.ffn_down.weight"
    expected = decode(tensors[name][2], kind, tensors[name][1])
    if kind == "F16":
        found = np.array(down.weight.astype(mx.float32))
    else:
        scales, biases = down.scales.astype(mx.float32), down.biases.astype(mx.float32)
        found = np.array(mx.dequantize(down.weight, scales, biases, group_size=32, bits=8 if kind == "Q8_0" else 4))
    assert np.array_equal(found, expected)
    logits = np.array(model(mx.array([[1, 2, 3]])).astype(mx.float32))
    assert np.abs(logits - _by_hand(tensors, [1, 2, 3])).max() < 0.05 * np.abs(logits).max()


@pytest.mark.mlx
def test_the_tokenizer_keeps_added_tokens_whole_and_hides_control_tokens_alone(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "a.gguf")
    convert(tmp_path / "a.gguf", tmp_path, dtype=None)
    _, tokenizer = _loaded(tmp_path)
    ids = tokenizer.encode("<s>the<tool>th</s>", add_special_tokens=False)
    assert ids == [256, 260, 258, 259, 257]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the<tool>th"
    assert tokenizer.eos_token_ids == {257}
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


def _sentencepiece(tmp_path: Path) -> tuple[Path, list[str], list[float]]:
    pieces = ["▁", *"abcdeh", "ab", "bc", "abc", "▁a", "▁ab", "cd", "de", "he", "▁he", "ee", "eee"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    types = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    rng = np.random.default_rng(5)
    scores = [0.0] * 259 + [float(s) for s in rng.permutation(len(pieces)) * -1.0]
    changes = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    from agent_memory.models.gguf_tokenizer import write_tokenizer

    tiny_llama(tmp_path / "s.gguf", **changes)
    write_tokenizer(read_header(tmp_path / "s.gguf").metadata, tmp_path)
    return tmp_path / "tokenizer.json", tokens, scores


def _greedy_merges(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """SentencePiece BPE as its paper has it: join the best-scored adjacent pair, leftmost first, until none is left."""
    parts = list(text)
    while True:
        pairs = [(scores[tokens.index(a + b)], -i) for i, (a, b) in enumerate(pairwise(parts))
                 if a + b in tokens[259:]]  # fmt: skip
        if not pairs:
            break
        i = -max(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    ids: list[int] = []
    for part in parts:
        ids += [tokens.index(part)] if part in tokens[259:] else [3 + b for b in part.encode()]
    return ids


@pytest.mark.mlx
def test_a_sentencepiece_vocabulary_merges_by_score(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    file, tokens, scores = _sentencepiece(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(file))

    @settings(max_examples=300, deadline=None)
    @given(st.text(alphabet="abcdeh é🙂\n", min_size=1, max_size=24))
    def law(text: str) -> None:
        ids = tokenizer.encode(text).ids
        assert ids == [1, *_greedy_merges("▁" + text.replace(" ", "▁"), tokens, scores)]
        assert tokenizer.decode(ids) == text

    law()


@pytest.mark.model
@pytest.mark.mlx
def test_the_starter_answers_through_its_template_and_round_trips_text() -> None:
    from agent_memory.models.resolve import resolve
    from agent_memory.runner.blas import speed_up

    speed_up("auto")  # the reference BLAS needs ten times as long
    found = resolve(None, weights_dtype="float32", progress=False, trust_remote_code=False, is_cpu=True)
    model, tokenizer = _loaded(found.path)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    assert tokenizer.decode(ids).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    from mlx_lm import generate

    assert generate(model, tokenizer, ids, max_tokens=8).startswith("The capital of France is Paris.")
    assert tokenizer.eos_token_ids == {2}
    alphabet = byte_alphabet()
    vocab = tokenizer.vocab  # made anew at each access
    lacking = {b for b in range(256) if alphabet[b] not in vocab}  # its vocabulary has not every byte

    def known(text: str) -> bool:
        return lacking.isdisjoint(text.encode())

    assert known("é日本語🙂")
    assert tokenizer.encode("1234", add_special_tokens=False) == [tokenizer.encode(d)[0] for d in "1234"]

    @settings(max_examples=200, deadline=None)
    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60).filter(known))
    def law(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text)) == text

    law()
    for text in ("def f(a):\n        return  a+1\n\t# é", "日本語 🙂‍↔️ 1234567", "   ", "x  y   z", "don't I'LL"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    config = json.loads((found.path / "config.json").read_text())
    assert config["torch_dtype"] == "float32"

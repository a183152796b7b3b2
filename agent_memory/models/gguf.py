"""A GGUF file of the llama architecture -> an mlx-lm directory with the same weights.

Blocks of Q4_0, Q4_1 and Q8_0 are kept exactly as MLX's affine quantization (groups of 32), or dequantized exactly to
float32. Quantizations that MLX cannot hold exactly are refused rather than rounded.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_memory.errors import DamagedModelError, UnsupportedModelError
from agent_memory.models.gguf_header import Header, TensorInfo, read_header
from agent_memory.models.gguf_tokenizer import end_ids, write_tokenizer
from agent_memory.progress import Progress, silent

if TYPE_CHECKING:
    import mlx.core as mx

log = logging.getLogger("agent_memory.models")

GROUP_SIZE = 32  #: values a GGUF block
BITS: Mapping[str, int] = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
SUPPORTED_TYPES = ("F32", "F16", *BITS)
DTYPES = ("float32", "bfloat16", "float16")
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"


def check_gguf(path: Path) -> Header:
    """The head of a file that ``convert`` will take; reads no tensor and needs no mlx.

    Raises ModelNotFoundError, UnsupportedModelError saying what was found and what is supported, or DamagedModelError.
    """
    header = read_header(path)
    architecture = header.metadata.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedModelError(
            f"{path} holds the architecture {architecture!r}; of GGUF files 'llama' is supported. "
            f"Use the model's mlx-lm directory or hub id instead."
        )
    odd = Counter(t.type for t in header.tensors.values() if t.type not in SUPPORTED_TYPES)
    if odd:
        found = ", ".join(f"{n} tensors of {kind}" for kind, n in sorted(odd.items()))
        raise UnsupportedModelError(
            f"{path} holds {found}, which MLX cannot keep exactly; supported are {', '.join(SUPPORTED_TYPES)}. "
            f"Fetch the file in one of these, or use the model's mlx-lm directory or hub id."
        )
    _check_shapes(path, header, _config(path, header))
    return header


def convert(path: Path, out: Path, *, dtype: str | None, progress: Progress = silent) -> None:
    """Write ``out`` (an existing folder): config, weights, tokenizer and generation config, as mlx-lm loads them.

    ``dtype`` None keeps the stored form; else all weights are dequantized to it. Memory: the whole model once.
    The bits written depend on the file and ``dtype`` alone: a block's product of scale and integer is exact in float32.
    Raises what ``check_gguf`` raises, before mlx sees the file.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UnsupportedModelError(
            f"weights dtype {dtype!r}; supported are {', '.join(DTYPES)}, and None (as stored)."
        )
    header = check_gguf(path)
    config = _config(path, header)
    write_tokenizer(header.metadata, out)
    import mlx.core as mx

    with mx.stream(mx.cpu):
        weights = _weights(path, header, config, dtype, progress)
        mx.save_safetensors(str(out / "model.safetensors"), weights, metadata={"format": "mlx"})
    config |= _precision(header, dtype)
    _write_json(out / "config.json", config)
    ends: dict[str, Any] = {name: config[name] for name in ("bos_token_id", "eos_token_id") if name in config}
    _write_json(out / "generation_config.json", ends)
    log.info("converted file=%s tensors=%d dtype=%s", path.name, len(header.tensors), dtype or "as stored")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _config(path: Path, header: Header) -> dict[str, Any]:
    """mlx-lm's config of the llama model, without its precision."""
    data = header.metadata
    if "token_embd.weight" not in header.tensors:
        raise DamagedModelError(f"{path} lacks the tensor token_embd.weight. Fetch it again.")

    def need(name: str) -> Any:
        value = data.get(f"llama.{name}")
        if not isinstance(value, int | float) or value <= 0:
            raise DamagedModelError(f"{path} gives llama.{name} as {value!r}; expected a positive number.")
        return value

    heads, width = need("attention.head_count"), need("embedding_length")
    head_dim = data.get("llama.attention.key_length", width // heads)
    rotated = data.get("llama.rope.dimension_count", head_dim)
    if rotated != head_dim or data.get("llama.attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError(
            f"{path} rotates {rotated} of {head_dim} dimensions a head; only models that rotate all are supported."
        )
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "num_hidden_layers": need("block_count"),
        "intermediate_size": need("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": data.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": _shortest(need("attention.layer_norm_rms_epsilon")),
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": need("context_length"),
        "rope_theta": _shortest(data.get("llama.rope.freq_base", 10_000.0)),
        "rope_traditional": False,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "eos_token_id": end_ids(data),
    }
    if "tokenizer.ggml.bos_token_id" in data:
        config["bos_token_id"] = data["tokenizer.ggml.bos_token_id"]
    if _is_scaled(data) or _ROPE_FACTORS in header.tensors:
        raise UnsupportedModelError(
            f"{path} scales its rotary positions; such GGUF files are not supported. "
            f"Use the model's mlx-lm directory or hub id instead."
        )
    return config


def _is_scaled(data: Mapping[str, Any]) -> bool:
    kind = data.get("llama.rope.scaling.type", "none")
    return kind != "none" and not (kind == "linear" and data.get("llama.rope.scaling.factor", 1.0) in (0.0, 1.0))


def _shortest(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def _shapes(header: Header, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that this configuration needs, with their shapes."""
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    rows, kv_rows = (config[n] * config["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
    block = {
        "attn_norm": (width,), "attn_q": (rows, width), "attn_k": (kv_rows, width), "attn_v": (kv_rows, width),
        "attn_output": (width, rows), "ffn_norm": (width,), "ffn_gate": (inner, width), "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, width), "output_norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = (vocab, width)
    # a damaged block count must not be looped over: there are nine tensors a block
    for i in range(min(config["num_hidden_layers"], len(header.tensors))):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def _check_shapes(path: Path, header: Header, config: Mapping[str, Any]) -> None:
    shapes = _shapes(header, config)
    for name, shape in shapes.items():
        found = header.tensors.get(name)
        if found is None or found.shape != shape:
            what = "is missing" if found is None else f"has the shape {found.shape}"
            raise DamagedModelError(f"{path}: tensor {name} {what}; expected {shape}. Fetch it again.")
    if extra := sorted(set(header.tensors) - set(shapes)):
        raise UnsupportedModelError(
            f"{path} holds {len(extra)} tensors that a plain llama model does not have, such as {extra[0]}. "
            f"Use the model's mlx-lm directory or hub id instead."
        )


def _module(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj``."""
    stem = name.removesuffix(".weight")
    if stem in _TOP:
        return _TOP[stem]
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{_BLOCK[part]}"


def _precision(header: Header, dtype: str | None) -> dict[str, Any]:
    """The part of the config that says how weights are stored."""
    if dtype is not None:
        return {"torch_dtype": dtype}
    bits = {_module(t.name): BITS[t.type] for t in header.tensors.values() if t.type in BITS}
    if not bits:
        plain = Counter(t.type for t in header.tensors.values() if len(t.shape) > 1).most_common(1)[0][0]
        return {"torch_dtype": "float16" if plain == "F16" else "float32"}
    usual = Counter(bits.values()).most_common(1)[0][0]
    quantization: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": usual, "mode": "affine"}
    others = {m: {"group_size": GROUP_SIZE, "bits": n, "mode": "affine"} for m, n in sorted(bits.items()) if n != usual}
    return {"torch_dtype": "float16", "quantization": quantization | others}


def _weights(
    path: Path, header: Header, config: Mapping[str, Any], dtype: str | None, progress: Progress
) -> dict[str, mx.array]:
    import mlx.core as mx

    loaded = mx.load(str(path), format="gguf")
    assert isinstance(loaded, dict)
    weights: dict[str, mx.array] = {}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for done, info in enumerate(header.tensors.values()):
        progress(done, len(header.tensors), "converting")
        stem = info.name.removesuffix(".weight")
        parts = {end: loaded.pop(f"{stem}.{end}") for end in _ends(info)}
        if (part := stem.rpartition(".")[2]) in heads:
            parts = {end: _unpermuted(rows, heads[part]) for end, rows in parts.items()}
        if dtype is not None:
            parts = {"weight": _dense(parts, info, dtype)}
        mx.eval(list(parts.values()))
        weights |= {f"{_module(info.name)}.{end}": value for end, value in parts.items()}
    progress(len(header.tensors), len(header.tensors), "converting")
    return weights


def _ends(info: TensorInfo) -> tuple[str, ...]:
    return ("weight", "scales", "biases") if info.type in BITS else ("weight",)


def _unpermuted(rows: mx.array, n_heads: int) -> mx.array:
    """Undo llama.cpp's interleaving of each head's two halves; only rows move, so packed weights do as well."""
    grouped = rows.reshape(n_heads, rows.shape[0] // n_heads // 2, 2, -1)
    return grouped.swapaxes(1, 2).reshape(rows.shape)


def _dense(parts: Mapping[str, mx.array], info: TensorInfo, dtype: str) -> mx.array:
    import mlx.core as mx

    target = getattr(mx, dtype)
    if "scales" not in parts:
        return parts["weight"].astype(target)
    # in the scales' own float16 the result would be rounded
    scales, biases = (parts[end].astype(mx.float32) for end in ("scales", "biases"))
    bits = BITS[info.type]
    return mx.dequantize(parts["weight"], scales, biases, group_size=GROUP_SIZE, bits=bits).astype(target)

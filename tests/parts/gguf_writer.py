"""A small GGUF writer, and a tiny random llama in it, for the tests."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12}
WIDTH, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    code, kind = ("f", 6) if value and isinstance(value[0], float) else ("i", 5)
    return struct.pack(f"<IIQ{len(value)}{code}", 9, kind, len(value), *value)


def encode(values: np.ndarray, kind: str) -> bytes:
    """The bytes of one tensor in a GGUF type."""
    if kind in ("F32", "F16"):
        return values.astype(np.float32 if kind == "F32" else np.float16).tobytes()
    blocks = values.reshape(-1, 32).astype(np.float32)
    if kind == "Q8_0":
        d = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
        q = np.round(blocks / d.astype(np.float32)).astype(np.int8)
        return b"".join(d[i].tobytes() + q[i].tobytes() for i in range(len(q)))
    low = blocks.min(1, keepdims=True)
    d = ((blocks.max(1, keepdims=True) - low) / 15).astype(np.float16)
    if kind == "Q4_0":
        d, low = (np.abs(blocks).max(1, keepdims=True) / 7.5).astype(np.float16), None
    m = None if low is None else low.astype(np.float16)
    zero = -8 * d.astype(np.float32) if m is None else m.astype(np.float32)
    q = np.clip(np.round((blocks - zero) / d.astype(np.float32)), 0, 15).astype(np.uint8)
    packed = q[:, :16] | (q[:, 16:] << 4)
    return b"".join(
        d[i].tobytes() + (b"" if m is None else m[i].tobytes()) + packed[i].tobytes() for i in range(len(q))
    )


def decode(raw: bytes, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """What those bytes mean, in float32: written from ggml's description of the blocks, without MLX."""
    if kind in ("F32", "F16"):
        return np.frombuffer(raw, np.float32 if kind == "F32" else np.float16).astype(np.float32).reshape(shape)
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    rows = np.frombuffer(raw, np.uint8).reshape(-1, size)
    d = rows[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == "Q8_0":
        return (d * rows[:, 2:].copy().view(np.int8).astype(np.float32)).reshape(shape)
    head = 4 if kind == "Q4_1" else 2
    nibbles = np.concatenate([rows[:, head:] & 15, rows[:, head:] >> 4], 1).astype(np.float32)
    if kind == "Q4_1":
        return (d * nibbles + rows[:, 2:4].copy().view(np.float16).astype(np.float32)).reshape(shape)
    return (d * (nibbles - 8)).reshape(shape)


def write_gguf(
    path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...], bytes]], version: int = 3
) -> Path:
    """``tensors``: name -> (type, row-major shape, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for name, value in metadata.items():
        head += _text(name) + _value(value)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        data += bytes(-len(data) % 32)
        head += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head += struct.pack("<IQ", TYPES[kind], len(data))
        data += raw
    path.write_bytes(head + bytes(-len(head) % 32) + data + bytes(-len(data) % 32))
    return path


def byte_alphabet() -> list[str]:
    """GPT-2's 256 printable stand-ins for bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(other)) for b in range(256)]


def tiny_llama(path: Path, kind: str = "F32", *, seed: int = 0, tied: bool = True, **changes: Any):
    """Write a random llama; returns the tensors as written (type, shape, bytes)."""
    tokens = [*byte_alphabet(), "<s>", "</s>", "<tool>", "th", "the"]
    types = [1] * 256 + [3, 3, 4, 1, 1]
    metadata: dict[str, Any] = {
        "general.architecture": "llama", "llama.embedding_length": WIDTH, "llama.block_count": LAYERS,
        "llama.feed_forward_length": INNER, "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS, "llama.context_length": 512, "llama.rope.freq_base": 5000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["t h", "th e"], "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257, "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }  # fmt: skip
    metadata |= changes
    rng = np.random.default_rng(seed)
    kv = WIDTH // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    if not tied:
        shapes["output"] = (len(tokens), WIDTH)
    for i in range(LAYERS):
        block = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH),
                 "attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH),
                 "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}  # fmt: skip
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape) * (0.3 if len(shape) > 1 else 0.1) + (len(shape) == 1)
        own = kind if len(shape) > 1 else "F32"
        tensors[f"{name}.weight"] = (own, shape, encode(values, own))
    write_gguf(path, metadata, tensors)
    return tensors

"""Tiny random models of several architectures, real in everything but size."""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "llama": dict(
        model_type="llama", hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=300, tie_word_embeddings=True,
    ),
    "qwen3": dict(
        model_type="qwen3", hidden_size=64, num_hidden_layers=2, intermediate_size=128, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=300, head_dim=16, max_position_embeddings=4096,
        rope_theta=1e4, tie_word_embeddings=True,
    ),
    "gemma3_text": dict(
        model_type="gemma3_text", hidden_size=64, num_hidden_layers=3, intermediate_size=128, num_attention_heads=4,
        head_dim=16, num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=300, sliding_window=32,
        sliding_window_pattern=3,
    ),
}  # fmt: skip


def model(name: str, seed: int = 0) -> Any:
    """A float32 model of one architecture with random weights; the same for the same seed."""
    import importlib

    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten

    shape = SHAPES[name]
    module = importlib.import_module(f"mlx_lm.models.{shape['model_type']}")
    built = module.Model(module.ModelArgs.from_dict(shape))
    key = mx.random.key(seed)
    weights = []
    for path, array in tree_flatten(built.parameters()):
        key, draw = mx.random.split(key)
        noise = mx.random.normal(array.shape, key=draw) * 0.3
        weights.append((path, noise + 1.0 if array.ndim == 1 else noise))
    built.update(tree_unflatten(weights))
    mx.eval(built.parameters())
    return built

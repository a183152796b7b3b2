"""Tiny random models of several architectures, real in everything but size."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = dict(
    hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128, rms_norm_eps=1e-5,
    vocab_size=300,
)  # fmt: skip

#: What each stands for: plain attention; windows; MLA latents; recurrent layers (in one list, and in a ``CacheList``);
#: llama4's chunks.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": _COMMON | dict(model_type="llama", num_hidden_layers=2, tie_word_embeddings=True),
    "llama_windows": _COMMON | dict(
        model_type="llama", num_hidden_layers=3, tie_word_embeddings=True, sliding_window=32,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "qwen3": _COMMON | dict(
        model_type="qwen3", num_hidden_layers=2, head_dim=16, max_position_embeddings=4096, rope_theta=1e4,
        tie_word_embeddings=True,
    ),
    "gemma3_text": _COMMON | dict(
        model_type="gemma3_text", num_hidden_layers=3, head_dim=16, sliding_window=32, sliding_window_pattern=3,
    ),
    "deepseek_v3": _COMMON | dict(
        model_type="deepseek_v3", num_hidden_layers=2, moe_intermediate_size=32, num_key_value_heads=4,
        kv_lora_rank=24, q_lora_rank=16, qk_rope_head_dim=8, v_head_dim=12, qk_nope_head_dim=16,
        n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1,
        max_position_embeddings=4096,
    ),
    "qwen3_next": _COMMON | dict(
        model_type="qwen3_next", num_hidden_layers=4, head_dim=16, linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=32, linear_value_head_dim=16, linear_conv_kernel_dim=4, num_experts=4,
        num_experts_per_tok=2, decoder_sparse_step=1, shared_expert_intermediate_size=32, mlp_only_layers=[],
        moe_intermediate_size=32, rope_theta=1e4, partial_rotary_factor=0.5, max_position_embeddings=4096,
    ),
    "falcon_h1": _COMMON | dict(
        model_type="falcon_h1", num_hidden_layers=2, head_dim=16, mamba_d_conv=4, mamba_d_head=16, mamba_d_ssm=64,
        mamba_d_state=16, mamba_expand=1, mamba_n_groups=1, mamba_n_heads=4, rope_theta=1e4,
        max_position_embeddings=4096, ssm_multipliers=[1.0] * 5, lm_head_multiplier=1.0,
        key_multiplier=1.0, embedding_multiplier=1.0,
    ),
    "llama4": dict(
        model_type="llama4",
        text_config=_COMMON | dict(
            model_type="llama4_text", num_hidden_layers=4, attention_bias=False, attention_chunk_size=32, head_dim=16,
            interleave_moe_layer_step=2, intermediate_size_mlp=128, max_position_embeddings=4096,
            num_experts_per_tok=1, num_local_experts=4, rope_scaling=None, rope_theta=1e4, use_qk_norm=True,
        ),
    ),
}  # fmt: skip

#: One of each class of cache, for the default run; the others combine the same classes, for slow tests.
ONE_OF_EACH = ("llama", "gemma3_text", "qwen3_next", "falcon_h1", "llama4")

#: More ways to combine them, for slow tests: recurrent layers beside windows, and alone; a ``CacheList`` of
#: attention; layers that read another layer's window.
MORE: dict[str, dict[str, Any]] = {
    "recurrent_gemma": _COMMON | dict(
        model_type="recurrent_gemma", num_hidden_layers=3, num_key_value_heads=1, attention_bias=False, conv1d_width=4,
        logits_soft_cap=30.0, rope_theta=1e4, attention_window_size=32,
        block_types=["recurrent", "recurrent", "attention"],
    ),
    "mamba": dict(
        model_type="mamba", vocab_size=300, hidden_size=64, intermediate_size=96, state_size=8, num_hidden_layers=2,
        conv_kernel=4, use_bias=False, use_conv_bias=True, time_step_rank=4,
    ),
    "deepseek_v32": SHAPES["deepseek_v3"] | dict(
        model_type="deepseek_v32", index_head_dim=16, index_n_heads=4, index_topk=24,
    ),
    "gemma3n": dict(
        model_type="gemma3n",
        text_config=_COMMON | dict(
            model_type="gemma3n_text", num_hidden_layers=6, intermediate_size=[128] * 6, head_dim=16,
            num_kv_shared_layers=3, vocab_size_per_layer_input=300, sliding_window=32, max_position_embeddings=4096,
            rope_local_base_freq=1e4, rope_theta=1e6, final_logit_softcapping=30.0,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
            activation_sparsity_pattern=[0.0] * 6, hidden_size_per_layer_input=8, altup_num_inputs=2,
            altup_coef_clip=120.0, altup_correct_scale=True, altup_active_idx=0, laurel_rank=4,
        ),
    ),
}  # fmt: skip


def model(name: str, seed: int = 0, **other: Any) -> Any:
    """A float32 model of one architecture with random weights; the same for the same seed. ``other``: of its shape."""
    import importlib

    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten

    shape = (SHAPES | MORE)[name] | other
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

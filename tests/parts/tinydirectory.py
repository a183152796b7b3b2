"""An mlx-lm directory with random weights and a tokenizer, and LoRA adapters for it, all made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.parts import tiny
from tests.parts.tinytokenizer import tokenizer


def directory(folder: Path, *, hf: Any = None, seed: int = 0, **config: Any) -> Path:
    """A tiny llama in ``folder``, which is made. ``hf``: its tokenizer. ``config``: keys that config.json has too."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir(parents=True, exist_ok=True)
    (hf or tokenizer()).save_pretrained(folder)
    shape = tiny.SHAPES["llama"] | {"max_position_embeddings": 2048} | config
    (folder / "config.json").write_text(json.dumps(shape))
    weights = dict(tree_flatten(tiny.model("llama", seed).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def adapter(folder: Path, seed: int) -> Path:
    """A LoRA adapter of the tiny llama with random weights."""
    import mlx.core as mx

    folder.mkdir(parents=True)
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    about = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 10.0, "dropout": 0.0}}
    about["lora_parameters"]["keys"] = keys  # type: ignore[index]
    (folder / "adapter_config.json").write_text(json.dumps(about))
    arrays = {}
    for layer in range(2):
        for key, width in zip(keys, (64, 32), strict=True):
            draws = mx.random.split(mx.random.key(seed * 100 + layer * 10 + width), 2)
            name = f"model.layers.{layer}.{key}"
            arrays[f"{name}.lora_a"] = mx.random.normal((64, 4), key=draws[0]) * 0.2
            arrays[f"{name}.lora_b"] = mx.random.normal((4, width), key=draws[1]) * 0.2
    mx.save_safetensors(str(folder / "adapters.safetensors"), arrays)
    return folder

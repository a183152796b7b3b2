"""Models that are spread over several processes: told apart and refused, until the engine runs them.

A part of such a model computes nothing alone: in each layer every process waits for all others. The engine decides by
times, cancellations and what is stored, so the processes would soon feed different tokens, and wait for each other
for good. docs/beyond-sharding.md has the experiment, and what is missing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from agent_memory.errors import UnsupportedModelError

#: What mlx.launch gives each process: its number; how many there are; files that list them, one entry each.
_RANK, _SIZE, _LISTS = "MLX_RANK", "MLX_WORLD_SIZE", ("MLX_HOSTFILE", "MLX_IBV_DEVICES")
_INSTEAD = (
    "A process of a group does not yet serve agents: which tokens are computed next is decided in each process by "
    "itself, and the others would wait for it for good. Run the whole model in one process, on one machine; a smaller "
    "or a quantized one, if it does not fit"
)


def ensure_whole(model: Any, name: str) -> None:
    """Raise UnsupportedModelError for a model of which this process has a part: sharded tensors, or a pipeline."""
    for path, module in model.named_modules():
        for value in vars(module).values():
            if (size := _group_size(value)) > 1:
                raise UnsupportedModelError(
                    f"{name}: {path or 'the model'} is sharded over a group of {size} processes, and this one has a "
                    f"part of it. {_INSTEAD}"
                )
        size = getattr(module, "pipeline_size", 1)
        if isinstance(size, int) and size > 1:
            raise UnsupportedModelError(f"{name}: its layers are a pipeline of {size} processes. {_INSTEAD}")


def ensure_alone(name: str) -> None:
    """Raise UnsupportedModelError in a process that mlx.launch has started with others. Reads its environment alone."""
    size = _launched()
    if size > 1:
        raise UnsupportedModelError(
            f"{name}: mlx.launch has started this process as number {os.environ.get(_RANK)} of {size}. {_INSTEAD}: "
            "start it without mlx.launch, or with -n 1"
        )


def _group_size(value: object) -> int:
    import mlx.core as mx

    return value.size() if isinstance(value, mx.distributed.Group) else 1


def _launched() -> int:
    """Return how many processes mlx.launch has started together; 1: it started none, or this one alone."""
    if _RANK not in os.environ:
        return 1
    sizes = [os.environ.get(_SIZE, "1")]
    for variable in _LISTS:
        try:
            sizes.append(str(len(json.loads(Path(os.environ[variable]).read_text(encoding="utf-8")))))
        except (KeyError, OSError, ValueError, TypeError):
            continue
    return max(int(size) if size.isdecimal() else 1 for size in sizes)

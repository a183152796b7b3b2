"""From what ``Memory`` is given to the runner and the store that it opens, and how long it may take to close."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, cast

from agent_memory.config import Config, as_path
from agent_memory.errors import ConfigError, UnsupportedParameterError
from agent_memory.protocols import ModelRunner
from agent_memory.store.store import Store


def runner_for(model: Any, config: Config, adapter: Any) -> ModelRunner:
    """The runner that ``Memory(model)`` means. Raises ConfigError or ModelError; loads nothing."""
    if hasattr(type(model), "open_batch"):  # a ModelRunner, without asking for properties that need it opened
        if adapter is not None:
            raise ConfigError(
                "adapter= goes with a model that this library loads; load it into the model you pass instead"
            )
        return cast(ModelRunner, model)
    if model is not None and not isinstance(model, (str, PathLike)):
        raise ConfigError(f"model must be a name, a path, a runner or None, got {type(model).__name__}")
    from agent_memory.runner.mlx import MLXRunner

    return MLXRunner.named(model, config=config, adapter=adapter)


def store_for(path: str | PathLike[str] | None, config: Config, warm_bytes: int) -> Store:
    """The store that ``Memory(path=)`` means, opened. Raises ConfigError and what ``Store`` does."""
    return Store(
        store_path(path),
        disk_bytes=config.disk_bytes,
        chunk_tokens=config.chunk_tokens,
        bytes_per_day=config.disk_bytes_per_day,
        codec=config.cold_codec,
        warm_bytes=warm_bytes,
        warm_codec=config.warm_codec,
        warm_ttl_s=config.warm_ttl_s,
    )


def store_path(path: str | PathLike[str] | None) -> Path | None:
    """The folder that ``Memory(path=)`` means; None for no disk tier. Raises ConfigError."""
    if path is None:
        import platformdirs

        return Path(platformdirs.user_data_dir("agent_memory")) / "store"
    found = as_path(path, "path")
    return None if str(found) == ":memory:" else found


def check_drain(drain_s: Any) -> None:
    """Raises UnsupportedParameterError for what is no time to wait."""
    if not isinstance(drain_s, (int, float)) or isinstance(drain_s, bool) or not drain_s >= 0:
        raise UnsupportedParameterError(f"drain_s must be a number of seconds, 0 or more, got {drain_s!r}")

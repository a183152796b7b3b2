"""What callers may pass: checks made at the door, before any work."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, cast

from agent_memory.config import Config, as_path
from agent_memory.errors import ConfigError, UnsupportedParameterError
from agent_memory.protocols import ModelRunner
from agent_memory.store.store import Store
from agent_memory.types import Sampling


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


def check_settings(sampling: Any, max_tokens: Any, priority: Any, timeout_s: Any) -> None:
    """Raises UnsupportedParameterError for what no request can have."""
    if not isinstance(sampling, Sampling):
        raise UnsupportedParameterError(f"sampling must be a Sampling, got {type(sampling).__name__}")
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise UnsupportedParameterError(f"max_tokens must be an int of at least 1, got {max_tokens!r}")
    if not isinstance(priority, int):
        raise UnsupportedParameterError(f"priority must be an int, got {priority!r}")
    if timeout_s is not None and (not isinstance(timeout_s, (int, float)) or not timeout_s > 0):
        raise UnsupportedParameterError(f"timeout_s must be a positive number of seconds or None, got {timeout_s!r}")

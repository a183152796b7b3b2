"""Config: every setting with its unit. Nothing is read from the environment unless ``Config.from_env`` is called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import attrs
from attrs import field, frozen
from attrs.validators import ge, gt, in_, instance_of, optional

from agent_memory.errors import ConfigError

Codec = Literal["exact"]
_positive = [instance_of(int), gt(0)]
_bytes = optional([instance_of(int), ge(0)])


@frozen(kw_only=True)
class Config:
    """Settings of one Memory; all have defaults that suit one user's machine.

    Raises ConfigError naming the field, the limit and the value.
    """

    hot_bytes: int | None = field(
        default=None, validator=_bytes
    )  #: live KV in memory; None: a quarter of the machine's
    warm_bytes: int = field(
        default=0, validator=[instance_of(int), ge(0)]
    )  #: encoded KV in memory; 0 until a lossy codec is chosen
    disk_bytes: int | None = field(
        default=None, validator=_bytes
    )  #: stored KV; None: min(32 GiB, a quarter of what is free)
    warm_codec: Codec = field(default="exact", validator=in_(("exact",)))
    cold_codec: Codec = field(default="exact", validator=in_(("exact",)))
    chunk_tokens: int = field(default=256, validator=_positive)
    prefill_tokens: int | None = field(
        default=None, validator=optional(_positive)
    )  #: a multiple of chunk_tokens; None: 256 on CPU, 2,048 on GPUs
    weights_dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None, validator=optional(in_(("float32", "bfloat16", "float16")))
    )  #: None: on CPU float32 where it fits a quarter of memory, else as stored
    salt: str = field(
        default="", validator=instance_of(str)
    )  #: a tenant's secret: caches of different salts never meet
    target_gap_s: float = field(
        default=0.25, validator=gt(0), converter=float
    )  #: wished time between tokens while others prefill
    max_batch: int = field(default=8, validator=_positive)  #: rows that decode together
    callable_timeout_s: float = field(default=5.0, validator=gt(0), converter=float)  #: for users' logits processors
    blas: Literal["auto"] | None = field(
        default="auto", validator=optional(in_(("auto",)))
    )  #: None: leave the BLAS of mlx on Linux CPU as it is
    progress: bool | None = field(
        default=None, validator=optional(instance_of(bool))
    )  #: None: bars when a person watches
    trust_remote_code: bool = field(default=False, validator=instance_of(bool))

    def __attrs_post_init__(self) -> None:
        if self.prefill_tokens is not None and self.prefill_tokens % self.chunk_tokens:
            raise ConfigError(
                f"prefill_tokens must be a multiple of chunk_tokens ({self.chunk_tokens}): {self.prefill_tokens}"
            )
        if self.warm_bytes and self.warm_codec == "exact":
            raise ConfigError(
                f"warm_bytes must be 0 while warm_codec is 'exact' (warm would only copy hot): {self.warm_bytes}"
            )

    @classmethod
    def make(cls, **settings: Any) -> Config:
        """``Config(**settings)`` with every mistake raised as a ConfigError."""
        known = {a.name for a in attrs.fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise ConfigError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        try:
            return cls(**settings)
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error.args[0] if error.args else error)) from error

    @classmethod
    def from_env(cls, prefix: str = "AGENT_MEMORY_", environ: Mapping[str, str] | None = None) -> Config:
        """Settings from variables such as ``AGENT_MEMORY_HOT_BYTES``; unknown or malformed ones raise ConfigError."""
        environ = os.environ if environ is None else environ
        fields = attrs.fields_dict(cls)
        settings: dict[str, Any] = {}
        for key, text in environ.items():
            if key.startswith(prefix):
                name = key[len(prefix) :].lower()
                if name not in fields:
                    raise ConfigError(f"{key} names no setting; known: {', '.join(sorted(fields))}")
                settings[name] = _parse(key, text, fields[name].default)
        return cls.make(**settings)


_INTS = {"hot_bytes", "warm_bytes", "disk_bytes", "chunk_tokens", "prefill_tokens", "max_batch"}


def _parse(key: str, text: str, default: Any) -> Any:
    name = key.split("_", 2)[-1].lower()
    if text.lower() in ("none", ""):
        return None
    try:
        if isinstance(default, bool) or name == "progress":
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        if name in _INTS:
            return int(text)
        return float(text) if isinstance(default, float) else text
    except (KeyError, ValueError):
        raise ConfigError(f"{key}: cannot read {text!r}") from None

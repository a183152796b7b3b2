"""Config: every setting with its unit. Nothing is read from the environment unless ``Config.from_env`` is called."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeGuard

import attrs
from attrs import field, frozen

from agent_memory.errors import ConfigError, repr_of

#: How KV is encoded: one of ``CODECS``, or a mixed codec, whose name says the bits of each tensor (``choose_codec``).
Codec = Literal["exact", "q8", "q5", "q4"] | str
CODECS: tuple[Codec, ...] = ("exact", "q8", "q5", "q4")  #: finest to coarsest
#: "mix." and two digits for each layer, the bits of its keys and of its values: 2 to 9, "a" for 10, "c" for 12, and "0"
#: for tensors that stay exact, and for layers without rows.
_MIXED = re.compile(r"mix\.(?:[02-9ac]{2}){1,1000}")
_AUTO = "auto:"
_Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def _refuse(name: str, limit: str, value: object) -> ConfigError:
    shown = type(value).__name__ if name in ("salt", "key", "remote_key") else repr_of(value)  # secrets
    return ConfigError(f"{name} must be {limit}: {shown}")


def _whole(least: int, *, or_none: bool = False) -> _Validator:
    limit = f"an int of {least} or more" + (", or None" if or_none else "")

    def check(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None and or_none:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise _refuse(attribute.name, limit, value)

    return check


def _one_of(*choices: str | None) -> _Validator:
    limit = " or ".join(map(repr, choices))

    def check(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not (value is None or isinstance(value, str)) or value not in choices:
            raise _refuse(attribute.name, limit, value)

    return check


def is_codec(name: object) -> TypeGuard[Codec]:
    """True if ``name`` names a codec that a file can have: one of ``CODECS``, or a mixed one."""
    return isinstance(name, str) and (name in CODECS or _MIXED.fullmatch(name) is not None)


def auto_codec(kl: float) -> str:
    """Return the setting that stands for the codec which ``choose_codec`` found for a budget: "auto:0.002"."""
    return f"{_AUTO}{kl:g}"


def auto_budget(name: str) -> float | None:
    """Return the budget of a setting such as "auto:0.002", in nats a token; None for a codec's name, and for others."""
    try:
        kl = float(name[len(_AUTO) :]) if name.startswith(_AUTO) else 0.0
    except ValueError:
        return None
    return kl if 0 < kl < math.inf else None


def chosen_codec(setting: str, choices: Mapping[str, str]) -> Codec:
    """Return the codec that a setting means; "auto:0.002" is "exact" until ``choices`` has it."""
    found = setting if auto_budget(setting) is None else choices.get(setting, "exact")
    return found if is_codec(found) else "exact"


def _codec(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    is_auto = attribute.name == "cold_codec" and isinstance(value, str) and auto_budget(value) is not None
    if not (is_auto or is_codec(value)):
        auto = ", 'auto:KL' with a budget above 0 (as 'auto:0.002')" if attribute.name == "cold_codec" else ""
        raise _refuse(attribute.name, f"{' or '.join(map(repr, CODECS))}{auto} or a name of choose_codec", value)


def _as_auto(value: Any) -> Any:
    """One spelling of a budget is one setting: "auto:2e-3" is "auto:0.002"."""
    kl = auto_budget(value) if isinstance(value, str) else None
    return value if kl is None else auto_codec(kl)


def _kind(*kinds: type) -> _Validator:
    limit = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)

    def check(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kinds):
            raise _refuse(attribute.name, limit, value)

    return check


def _seconds(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, float) or not 0 < value < math.inf:
        raise _refuse(attribute.name, "a finite number above 0", value)


def _seconds_or_none(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and (not isinstance(value, float) or not 0 < value < math.inf):
        raise _refuse(attribute.name, "a finite number above 0, or None", value)


def _redactor(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and value != "rules" and not callable(getattr(value, "redact", None)):
        raise _refuse("redact", "'rules', an object with a method redact(text), or None", value)


def _embedder(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and value != "resident" and not callable(getattr(value, "embed", None)):
        raise _refuse("embedder", "'resident', an object with dim, fingerprint and embed(texts), or None", value)


def _secret(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not isinstance(value, bytes) and not callable(value):
        raise _refuse(attribute.name, "bytes, a function that returns them, or None", value)


def _remote(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and (not isinstance(value, str) or "://" not in value):
        raise _refuse("remote", "a URL (s3://bucket/prefix, gs://, az:// or file:///folder), or None", value)


def _callable_or_none(config: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not callable(value):
        raise _refuse(attribute.name, "a function that takes a Reply, or None", value)


def _as_recorder(value: Any) -> Path | None:
    return None if value is None else as_path(value, "recorder")


def _as_float(value: Any) -> Any:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and abs(value) < 2**1023 else value  # beyond that, for the validator to refuse


def as_path(value: object, name: str) -> Path:
    """Return the absolute path that a caller means now, ``~`` expanded; a later ``chdir`` does not move it.

    ``name`` is the argument's, for the error. A path with ``..`` in it is resolved through the file system, so that it
    needs none of the folders it only passes through. Raises ConfigError for what no file system takes, for the ``~`` of
    a user without a home, and for a relative path in a working directory that is gone.
    """
    text = _path_text(value, name)
    if text.startswith("~"):
        text = os.path.expanduser(text)
        if text.startswith("~"):
            raise ConfigError(f"{name}: no home folder is known for {repr_of(text)}. Give an absolute path.")
    path = Path(text)
    if not path.is_absolute():
        try:
            path = Path.cwd() / path
        except OSError as error:
            raise ConfigError(
                f"{name} is relative ({repr_of(text)}) and the working directory cannot be had: {error.strerror}. "
                "Give an absolute path."
            ) from error
    if ".." not in path.parts:
        return path
    # The last name stays: it may be a link whose own name tells what it is, as a .gguf file in the hub's cache.
    return Path(os.path.realpath(path)) if path.name == ".." else Path(os.path.realpath(path.parent)) / path.name


def _path_text(value: object, name: str) -> str:
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    try:
        if isinstance(text, str) and text and b"\0" not in os.fsencode(text):
            return text
    except UnicodeEncodeError:
        pass
    raise ConfigError(
        f"{name} must be a str or a PathLike of one, not empty, that a file system takes: {repr_of(value)}"
    )


def is_text(value: object) -> TypeGuard[str]:
    """True if ``value`` is a str that can be written as UTF-8 (no lone surrogates)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@frozen(kw_only=True)
class Config:
    """Settings of one Memory; all have defaults that suit one user's machine.

    Raises ConfigError naming the field, the limit and the value.
    """

    #: live KV in memory; None: a quarter of the machine's
    hot_bytes: int | None = field(default=None, validator=_whole(0, or_none=True))
    #: encoded KV in memory; None: half of the hot tier's with a lossy warm_codec, else none
    warm_bytes: int | None = field(default=None, validator=_whole(0, or_none=True))
    #: budget of all files in the store's folder, as allocated; None: min(32 GiB, a quarter of the free space)
    disk_bytes: int | None = field(default=None, validator=_whole(0, or_none=True))
    #: of KV written on one UTC day, to spare an SSD; logs are always written; None: any
    disk_bytes_per_day: int | None = field(default=None, validator=_whole(0, or_none=True))
    #: seconds after which unused KV leaves the hot tier; None: when its bytes are needed
    hot_ttl_s: float | None = field(default=None, validator=_seconds_or_none, converter=_as_float)
    #: seconds after which unused KV leaves the warm tier; None: when its bytes are needed
    warm_ttl_s: float | None = field(default=None, validator=_seconds_or_none, converter=_as_float)
    #: how KV is encoded in memory
    warm_codec: Codec = field(default="exact", validator=_codec)
    #: how KV is encoded on disk; "auto:0.002": as ``Memory.choose_codec(0.002)`` found best, exactly until then
    cold_codec: Codec = field(default="exact", validator=_codec, converter=_as_auto)
    #: tokens of the pieces that KV is stored and shared in
    chunk_tokens: int = field(default=256, validator=_whole(1))
    #: tokens computed in one prefill step: a multiple of chunk_tokens; None: 256 on CPU, 2,048 on GPUs
    prefill_tokens: int | None = field(default=None, validator=_whole(1, or_none=True))
    #: None: on CPU float32 where it fits a quarter of memory, else as stored
    weights_dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None, validator=_one_of("float32", "bfloat16", "float16", None)
    )
    #: a tenant's secret: caches of different salts never meet
    salt: str = field(default="", validator=_kind(str), repr=False)
    #: what the store's folder is encrypted under: 16 bytes or more, or a function that fetches them, called once at
    #: opening; None: not encrypted
    key: bytes | Callable[[], bytes] | None = field(default=None, validator=_secret, repr=False)
    #: target mean time between tokens for running replies while a prompt is being prefilled
    target_gap_s: float = field(default=0.25, validator=_seconds, converter=_as_float)
    #: rows that decode together
    max_batch: int = field(default=8, validator=_whole(1))
    #: requests that may wait to be started; one more raises QueueFullError; None: any number
    max_waiting: int | None = field(default=None, validator=_whole(1, or_none=True))
    #: how long a user's logits processor, or the class of a ``schema=``, may take
    callable_timeout_s: float = field(default=5.0, validator=_seconds, converter=_as_float)
    #: True: an agent keeps the date of its first turn where the chat template writes today's date
    pin_dates: bool = field(default=True, validator=_kind(bool))
    #: how the model writes calls, one of ``toolcall.FORMATS``; None: as its chat template and vocabulary tell
    tool_format: str | None = field(default=None, validator=_kind(str, type(None)))
    #: versions of an agent that are kept beside its checkpoints, the oldest go first; None: all, until ``prune``
    keep_versions: int | None = field(default=32, validator=_whole(0, or_none=True))
    #: what a turn does whose conversation is longer than the model's context: raise PromptTooLongError, or go on from
    #: the newest turns that fit (``Agent.compact``)
    on_full: Literal["error", "compact"] = field(default="error", validator=_one_of("error", "compact"))
    #: "auto": where a reply copies what was said before, or its grammar leaves no choice, verify several tokens in one
    #: step; the same tokens up to rounding. "off": one step a token
    lookup: Literal["auto", "off"] = field(default="auto", validator=_one_of("auto", "off"))
    #: "auto": expect agents' turns from those before, from measured pauses of tools and from ``expect``; keep KV by
    #: that, and restore it ahead of need. "off": keep it by its last use, and restore it when it is asked for
    foresight: Literal["auto", "off"] = field(default="auto", validator=_one_of("auto", "off"))
    #: None: leave the BLAS of mlx on Linux CPU as it is
    blas: Literal["auto"] | None = field(default="auto", validator=_one_of("auto", None))
    #: bars for long work: always, never, or None: where a person watches, a terminal or a notebook
    progress: bool | None = field(default=None, validator=_kind(bool, type(None)))
    #: what takes secrets out of every prompt before the model and the log see it: "rules", or an object with a method
    #: ``redact(text)`` (``Redactor``); long-term memory redacts by rules where this is None
    redact: Any = field(default=None, validator=_redactor, repr=False)
    #: how long idle work of long-term memory may take at a time while no request runs: a request that comes meanwhile
    #: waits so long; None: only ``maintain()`` does any
    upkeep_ms: float | None = field(default=50.0, validator=_seconds_or_none, converter=_as_float)
    #: True: the model reads what is remembered for decisions, tasks and facts that rules miss, while nothing else runs
    extract: bool = field(default=False, validator=_kind(bool))
    #: search by meaning beside words: an ``Embedder``, or "resident", the early layers of the model itself
    embedder: Any = field(default=None, validator=_embedder, repr=False)
    #: a file for one line of JSON a step of each request, without any text; None: none is kept
    recorder: Path | None = field(default=None, converter=_as_recorder)
    #: called with each ``Reply`` on a thread of its own; what it raises is logged and counted
    on_reply: Callable[[Any], object] | None = field(default=None, validator=_callable_or_none, repr=False)
    #: a bucket or a shared folder that hosts of one tenant share KV through: s3://bucket/prefix, gs://, az:// or
    #: file:///folder; None: none
    remote: str | None = field(default=None, validator=_remote)
    #: the secret of all who share it: bytes (16 or more), or a function that fetches them; b"": none, on purpose
    remote_key: bytes | Callable[[], bytes] | None = field(default=None, validator=_secret, repr=False)
    #: False: KV is fetched from the remote, and none is published
    remote_write: bool = field(default=True, validator=_kind(bool))
    #: True: a model's own Python code may run
    trust_remote_code: bool = field(default=False, validator=_kind(bool))

    def __attrs_post_init__(self) -> None:
        if self.prefill_tokens is not None and self.prefill_tokens % self.chunk_tokens:
            raise ConfigError(
                f"prefill_tokens must be a multiple of chunk_tokens ({self.chunk_tokens}): {self.prefill_tokens}"
            )
        if self.remote is not None and self.remote_key is None:
            raise ConfigError(
                "remote needs a remote_key: secrets.token_bytes(32), the same on every host that shares it. "
                'remote_key=b"" says on purpose that there is none: whoever reads the bucket reads the KV then'
            )

    @classmethod
    def make(cls, **settings: Any) -> Config:
        """``Config(**settings)``; an unknown name raises ConfigError too, and not TypeError."""
        known = {a.name for a in attrs.fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise ConfigError(f"unknown setting {repr_of(unknown[0])}; known: {', '.join(sorted(known))}")
        return cls(**settings)

    @classmethod
    def from_env(cls, prefix: str = "AGENT_MEMORY_", environ: Mapping[str, str] | None = None) -> Config:
        """Settings from variables such as ``AGENT_MEMORY_HOT_BYTES``; unknown or malformed ones raise ConfigError."""
        environ = os.environ if environ is None else environ
        known = {a.name for a in attrs.fields(cls)}
        settings: dict[str, Any] = {}
        for key, text in environ.items():
            if key.startswith(prefix):
                name = key[len(prefix) :].lower()
                if name not in known:
                    raise ConfigError(f"{key} names no setting; known: {', '.join(sorted(known))}")
                settings[name] = _parse(key, name, text)
        return cls(**settings)


_INTS = {"hot_bytes", "warm_bytes", "disk_bytes", "disk_bytes_per_day", "chunk_tokens", "prefill_tokens", "max_batch"}
_INTS |= {"keep_versions", "max_waiting"}
_FLOATS = {"upkeep_ms", "hot_ttl_s", "warm_ttl_s", "target_gap_s", "callable_timeout_s"}
_BOOLS = {"extract", "pin_dates", "progress", "remote_write", "trust_remote_code"}


def _parse(key: str, name: str, text: str) -> Any:
    """Return a variable's text as its field's type; "none" and "" are None, except for a salt."""
    if name == "salt":
        return text
    if name == "on_reply":
        raise ConfigError(f"{key}: a function cannot be given as text; pass Config(on_reply=...)")
    if text.lower() in ("none", ""):
        return None
    if name in ("key", "remote_key"):
        return _parse_key(key, text)
    try:
        if name in _BOOLS:
            return {"1": True, "true": True, "0": False, "false": False}[text.lower()]
        if name in _INTS:
            return int(text)
        return float(text) if name in _FLOATS else text
    except (KeyError, ValueError):
        raise ConfigError(f"{key}: cannot read {repr_of(text)} as a value of {name}") from None


def _parse_key(key: str, text: str) -> bytes:
    """Return the bytes of a secret written in hex; an error never shows it."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ConfigError(f"{key}: a key is given in hex, as secrets.token_hex(32) writes it") from None


def total_memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_hot_bytes() -> int:
    """A quarter of the machine's memory."""
    return total_memory_bytes() // 4


def memory_budgets(config: Config) -> tuple[int, int]:
    """Bytes of the hot and of the warm tier. An exact warm tier would only copy the hot one: none unless asked for."""
    hot_bytes = default_hot_bytes() if config.hot_bytes is None else config.hot_bytes
    if config.warm_bytes is not None:
        return hot_bytes, config.warm_bytes
    return hot_bytes, 0 if config.warm_codec == "exact" else hot_bytes // 2

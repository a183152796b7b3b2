"""Config: every wrong value is a ConfigError that names its field, and nothing else is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import attrs
import pytest

from agent_memory import Config, ConfigError

TOO_LARGE = 10**400  #: for a float
WRONG: dict[str, list[Any]] = {
    "hot_bytes": [-1, 1.5, "1", True],
    "warm_bytes": [-1, 1.5, "1", True],
    "disk_bytes": [-1, "1 GB", False],
    "disk_bytes_per_day": [-1, 1.5, "1 GB", True],
    "hot_ttl_s": [0, -1.0, "5", math.nan, math.inf, TOO_LARGE, True],
    "warm_ttl_s": [0, -1.0, "5", math.nan, math.inf],
    "warm_codec": ["q3", None, 3, ["exact"], "auto:0.002"],
    "cold_codec": ["q3", None, 3, "auto", "auto:", "auto:0", "auto:-1", "auto:nan", "auto:inf", "mix.4", "mix.1144"],
    "chunk_tokens": [0, -256, None, 256.0, True],
    "prefill_tokens": [0, -256, 300, "256"],
    "weights_dtype": ["int8", 32, ["float32"]],
    "salt": [None, 7, b"bytes"],
    "key": ["text", 7, True, bytearray(32)],
    "target_gap_s": [0, -0.25, None, "fast", math.nan, math.inf, TOO_LARGE, True],
    "keep_versions": [-1, 2.0, True, "8"],
    "max_batch": [0, -1, None, 2.0, True],
    "on_full": ["drop", None, 3],
    "max_waiting": [0, -1, 2.0, True, "8"],
    "callable_timeout_s": [0, -5, None, "5", math.nan, math.inf],
    "pin_dates": [None, "yes", 1],
    "tool_format": [7, True, ["mistral"]],
    "foresight": ["on", None, True, 8],
    "lookup": ["on", None, True, 8],
    "blas": ["openblas", True, 0],
    "progress": ["yes", 1],
    "redact": ["rule", 7, True, object()],
    "upkeep_ms": [0, -1, "50", math.nan, True],
    "extract": [None, "yes", 1],
    "embedder": ["minilm", 7, True, object()],
    "recorder": [7, "", b"file"],
    "on_reply": ["print", 7],
    "remote": [7, "", "bucket", b"s3://bucket"],
    "remote_key": ["a key", 7],
    "remote_write": [None, "yes", 1],
    "trust_remote_code": [None, "yes", 1],
}
RIGHT: dict[str, list[Any]] = {
    "hot_bytes": [None, 0, 1 << 40],
    "warm_bytes": [None, 0, 1 << 40],
    "disk_bytes": [None, 0],
    "disk_bytes_per_day": [None, 0, 1 << 40],
    "hot_ttl_s": [None, 1, 0.5],
    "warm_ttl_s": [None, 3600],
    "warm_codec": ["exact", "q8", "q5", "q4", "mix.8c40"],
    "cold_codec": ["exact", "q8", "q5", "q4", "auto:0.002", "mix.8c40"],
    "chunk_tokens": [1, 16],
    "prefill_tokens": [None, 512],
    "weights_dtype": [None, "float32", "bfloat16", "float16"],
    "salt": ["", "\ud800"],
    "key": [None, bytes(32), lambda: bytes(32)],
    "target_gap_s": [1, 0.01],
    "keep_versions": [None, 0, 8],
    "max_batch": [1],
    "on_full": ["error", "compact"],
    "max_waiting": [None, 1],
    "callable_timeout_s": [1, 0.2],
    "pin_dates": [True, False],
    "tool_format": [None, "mistral"],
    "foresight": ["auto", "off"],
    "lookup": ["auto", "off"],
    "blas": [None, "auto"],
    "progress": [None, True, False],
    "redact": [None, "rules"],
    "upkeep_ms": [None, 20, 0.5],
    "extract": [True, False],
    "embedder": [None, "resident"],
    "recorder": [None, Path("/tmp/recorder.jsonl")],
    "on_reply": [None, print],
    "remote": [None],
    "remote_key": [None, b"", b"0" * 32, bytes],
    "remote_write": [True, False],
    "trust_remote_code": [True],
}
SETTINGS = [a.name for a in attrs.fields(Config)]


def each(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values]


def test_every_setting_has_wrong_and_right_values_here() -> None:
    assert sorted(WRONG) == sorted(RIGHT) == sorted(SETTINGS)


@pytest.mark.parametrize(("name", "value"), each(WRONG))
def test_a_wrong_value_is_a_config_error_that_names_the_setting(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be ") as caught:
        Config(**{name: value})
    assert isinstance(caught.value, ValueError)
    if name not in ("salt", "key", "remote_key"):
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("name", "value"), each(RIGHT))
def test_a_right_value_is_kept(name: str, value: Any) -> None:
    assert getattr(Config(**{name: value}), name) == value


def test_the_limits_between_settings_are_named_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"^prefill_tokens must be a multiple of chunk_tokens \(16\): 24$"):
        Config(chunk_tokens=16, prefill_tokens=24)


@pytest.mark.parametrize("name", ["key", "remote_key"])
def test_a_key_is_shown_neither_in_the_repr_nor_in_an_error(name: str) -> None:
    assert "a host's secret" not in repr(Config.make(**{name: b"a host's secret, 16 bytes and more"}))
    with pytest.raises(ConfigError) as caught:
        Config.make(**{name: "a host's secret"})
    assert "a host's secret" not in str(caught.value)
    with pytest.raises(ConfigError, match=f"_{name.upper()}: a key is given in hex") as caught:
        Config.from_env(environ={f"AGENT_MEMORY_{name.upper()}": "a host's secret"})
    assert "a host's secret" not in str(caught.value)


def test_a_salt_is_shown_neither_in_the_repr_nor_in_an_error() -> None:
    assert "tenant" not in repr(Config(salt="tenant"))
    with pytest.raises(ConfigError) as caught:
        Config(salt=b"tenant")  # type: ignore[arg-type]
    assert "tenant" not in str(caught.value)


def test_a_remote_needs_a_key_or_says_on_purpose_that_there_is_none() -> None:
    with pytest.raises(ConfigError, match="^remote needs a remote_key: .*token_bytes"):
        Config(remote="s3://bucket/prefix")
    assert Config(remote="s3://bucket/prefix", remote_key=b"").remote_key == b""
    assert "hidden" not in repr(Config(remote="s3://bucket", remote_key=b"hidden in here, we hope"))


def test_a_config_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Config().max_batch = 3  # type: ignore[misc]


def test_make_is_config_with_unknown_names_explained() -> None:
    assert Config.make(max_batch=3) == Config(max_batch=3)
    with pytest.raises(ConfigError, match=r"^unknown setting 'hot_byte'; known: .*hot_bytes"):
        Config.make(hot_byte=3)


def test_from_env_reads_every_setting_and_nothing_else() -> None:
    environ = {
        "AGENT_MEMORY_HOT_BYTES": "4096",
        "AGENT_MEMORY_WARM_BYTES": "0",
        "AGENT_MEMORY_DISK_BYTES": "None",
        "AGENT_MEMORY_DISK_BYTES_PER_DAY": "1000000",
        "AGENT_MEMORY_HOT_TTL_S": "600",
        "AGENT_MEMORY_WARM_TTL_S": "none",
        "AGENT_MEMORY_WARM_CODEC": "exact",
        "AGENT_MEMORY_COLD_CODEC": "exact",
        "AGENT_MEMORY_CHUNK_TOKENS": "16",
        "AGENT_MEMORY_PREFILL_TOKENS": "32",
        "AGENT_MEMORY_WEIGHTS_DTYPE": "bfloat16",
        "AGENT_MEMORY_SALT": "none",
        "AGENT_MEMORY_TARGET_GAP_S": "0.5",
        "AGENT_MEMORY_KEEP_VERSIONS": "3",
        "AGENT_MEMORY_MAX_BATCH": "2",
        "AGENT_MEMORY_ON_FULL": "compact",
        "AGENT_MEMORY_MAX_WAITING": "32",
        "AGENT_MEMORY_CALLABLE_TIMEOUT_S": "1",
        "AGENT_MEMORY_PIN_DATES": "0",
        "AGENT_MEMORY_TOOL_FORMAT": "mistral",
        "AGENT_MEMORY_LOOKUP": "auto",
        "AGENT_MEMORY_FORESIGHT": "off",
        "AGENT_MEMORY_BLAS": "",
        "AGENT_MEMORY_PROGRESS": "false",
        "AGENT_MEMORY_REDACT": "rules",
        "AGENT_MEMORY_UPKEEP_MS": "20",
        "AGENT_MEMORY_EXTRACT": "1",
        "AGENT_MEMORY_EMBEDDER": "resident",
        "AGENT_MEMORY_RECORDER": "/tmp/recorder.jsonl",
        "AGENT_MEMORY_KEY": "ff00" * 8,
        "AGENT_MEMORY_REMOTE": "s3://bucket/prefix",
        "AGENT_MEMORY_REMOTE_KEY": "00ff" * 8,
        "AGENT_MEMORY_REMOTE_WRITE": "0",
        "AGENT_MEMORY_TRUST_REMOTE_CODE": "1",
    }
    assert {key.removeprefix("AGENT_MEMORY_").lower() for key in environ} == set(SETTINGS) - {"on_reply"}
    assert Config.from_env(environ=environ | {"HOME": "/", "MAX_BATCH": "9"}) == Config(
        hot_bytes=4096,
        warm_bytes=0,
        disk_bytes_per_day=1_000_000,
        hot_ttl_s=600.0,
        chunk_tokens=16,
        prefill_tokens=32,
        weights_dtype="bfloat16",
        salt="none",
        target_gap_s=0.5,
        keep_versions=3,
        max_batch=2,
        on_full="compact",
        max_waiting=32,
        callable_timeout_s=1.0,
        pin_dates=False,
        tool_format="mistral",
        lookup="auto",
        foresight="off",
        blas=None,
        progress=False,
        redact="rules",
        upkeep_ms=20.0,
        extract=True,
        embedder="resident",
        recorder=Path("/tmp/recorder.jsonl"),
        remote="s3://bucket/prefix",
        remote_key=b"\0\xff" * 8,
        key=b"\xff\0" * 8,
        remote_write=False,
        trust_remote_code=True,
    )


def test_from_env_takes_another_prefix_and_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Config.from_env("X_", {"X_HOT_BYTES": "7", "AGENT_MEMORY_HOT_BYTES": "8"}) == Config(hot_bytes=7)
    monkeypatch.setenv("AGENT_MEMORY_MAX_BATCH", "5")
    assert Config.from_env().max_batch == 5
    assert Config().max_batch == 8


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("HOT_BYTES", "a lot"),
        ("MAX_BATCH", "2.5"),
        ("MAX_BATCH", "0"),
        ("MAX_BATCH", "none"),
        ("TARGET_GAP_S", "nan"),
        ("PROGRESS", "maybe"),
        ("WARM_CODEC", "q3"),
        ("HOT_BYTE", "1"),
        ("ON_REPLY", "print"),
        ("RECORDER", "~nobody-of-that-name/recorder.jsonl"),
    ],
)
def test_a_wrong_variable_is_a_config_error_that_names_it(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?i){key}"):
        Config.from_env(environ={f"AGENT_MEMORY_{key}": text})

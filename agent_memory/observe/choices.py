"""Which settings a Memory runs with, where each comes from, and what would change it: for ``doctor()``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs import field, frozen

from agent_memory.config import Codec, Config, memory_budgets, total_memory_bytes
from agent_memory.figures import Choice, ChoiceSource
from agent_memory.protocols import ModelRunner
from agent_memory.toolcall.choice import choice_of

_GIB = 1 << 30

#: Setting -> what another value does. One entry for each field of ``Config``.
EFFECTS: Mapping[str, str] = {
    "hot_bytes": "more keeps more agents ready to decode, and lets more requests run at once",
    "warm_bytes": "more keeps more agents in memory, encoded; worth it with a lossy warm_codec or without a disk",
    "disk_bytes": "more keeps more agents' KV on disk; the KV of least worth is evicted first",
    "disk_bytes_per_day": "a limit spares an SSD; KV beyond it is computed again, logs are always written",
    "hot_ttl_s": "a limit frees live memory that no request has used for so long",
    "warm_ttl_s": "a limit frees warm memory that no request has used for so long",
    "warm_codec": "'q8', 'q5' or 'q4' keep 2 to 7 times more agents in memory; restored KV is 'quantized' then",
    "cold_codec": "'q8', 'q5', 'q4' or 'auto:0.002' keep 2 to 7 times more agents on disk, restored as 'quantized'",
    "chunk_tokens": "smaller shares prefixes more finely and writes more files; KV of another size is not reused",
    "prefill_tokens": "larger computes prompts faster on GPUs, and lets running replies wait longer",
    "weights_dtype": "another dtype is another identity: KV that was stored before is not used",
    "salt": "another salt sees other agents, and no KV of this one's",
    "key": "a key: the store's folder is encrypted, and read by who has it alone",
    "target_gap_s": "less keeps running replies smoother while a prompt is computed, which takes longer then",
    "max_batch": "more rows decode together: more tokens a second, each reply slower",
    "max_waiting": "a limit refuses requests with QueueFullError in place of letting them wait",
    "callable_timeout_s": "more patience for your own functions; one that hangs holds its request as long",
    "pin_dates": "False: a template that writes today's date makes each day's first turn compute everything",
    "tool_format": "a format's name: calls are read in that form alone; the error for an unknown name lists them all",
    "keep_versions": "more keeps more of what rewinds and replaced histories left behind, on disk too",
    "on_full": "'compact' goes on from a conversation's newest turns when it reaches the model's context",
    "lookup": "'auto' verifies several tokens in one step where a reply copies, or where its grammar forces text",
    "foresight": "'auto' keeps and restores KV by the turns that are expected, 'off' by last use alone",
    "blas": "None leaves the BLAS of mlx as it is: float32 prefill on Linux CPUs is then many times slower",
    "progress": "True shows bars always, False never",
    "redact": "'rules' or an object with redact(text): secrets reach neither the model nor the log",
    "upkeep_ms": "less lets a request wait less for idle work of long-term memory; None leaves it to maintain()",
    "extract": "True lets the model read what is remembered, while no request runs, for items that rules miss",
    "embedder": "'resident' or an Embedder: search by meaning beside words",
    "recorder": "a file: one line of JSON for each step of each request",
    "on_reply": "a function: called with each reply",
    "remote": "a bucket's URL: KV that other hosts have computed is fetched, and what is computed here is published",
    "remote_key": "the same secret on every host that shares the remote; with another one nothing is found there",
    "remote_write": "False fetches from the remote and publishes nothing",
    "trust_remote_code": "True runs Python code that comes with a model",
}
_SECRET = ("salt", "key", "redact", "embedder", "on_reply", "remote_key")  #: said to be set or not, and no more


@frozen
class _Found:
    value: Any
    source: ChoiceSource
    why: str


@frozen(kw_only=True)
class Circumstances:
    """What choices depend on. ``recorded``: what the store knew of the model. ``disk_bytes``: the folder's budget.

    ``cold_codec``: that of new KV; what "auto:0.002" stands for.
    """

    runner: ModelRunner
    config: Config
    recorded: Mapping[str, str]
    disk_bytes: int
    remote: Mapping[str, str] = field(factory=dict)  #: what is known of the bucket, in words
    cold_codec: Codec = "exact"


def choices(at: Circumstances) -> tuple[Choice, ...]:
    """Return a choice for every setting, in the order of ``Config``."""
    return tuple(_choice(field, at) for field in attrs.fields(Config))


def _choice(field: attrs.Attribute[Any], at: Circumstances) -> Choice:
    name, given = field.name, getattr(at.config, field.name)
    found = _FOUND[name](at) if name in _FOUND else None
    if given != field.default:
        value = found.value if found is not None and name not in _SECRET else given
        found = _Found(value, "config", f"given as Config({name}=...); the default is {_shown(name, field.default)}")
    elif found is None:
        found = _Found(given, "default", "nothing else was given")
    change = f"Config({name}=...): {EFFECTS[name]}"
    return Choice(name=name, value=_shown(name, found.value), source=found.source, why=found.why, change=change)


def _shown(name: str, value: Any) -> Any:
    if name in _SECRET:
        return "set" if value else "not set"
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _hot_bytes(at: Circumstances) -> _Found:
    hot_bytes, _ = memory_budgets(at.config)
    return _Found(hot_bytes, "machine", f"a quarter of this machine's {total_memory_bytes() / _GIB:.1f} GiB")


def _warm_bytes(at: Circumstances) -> _Found:
    hot_bytes, warm_bytes = memory_budgets(at.config)
    if at.config.warm_codec == "exact":
        return _Found(warm_bytes, "default", "with warm_codec 'exact' a warm tier would only copy the hot one")
    return _Found(warm_bytes, "default", f"half of hot_bytes ({hot_bytes:,}), as warm_codec is lossy")


def _disk_bytes(at: Circumstances) -> _Found:
    if not at.disk_bytes:
        return _Found(0, "default", "the Memory was opened without a folder")
    return _Found(at.disk_bytes, "machine", "32 GiB, or a quarter of what was free and the store's own at its opening")


def _prefill_tokens(at: Circumstances) -> _Found:
    found = at.config.prefill_tokens or at.runner.prefill_tokens
    backend = at.runner.facts.get("backend")
    if backend in ("mlx cpu", "mlx gpu"):
        return _Found(found, "machine", f"256 on CPUs, 2,048 on GPUs; this is {backend}")
    return _Found(found, "model", f"what the runner {at.runner.name!r} asks for")


def _weights_dtype(at: Circumstances) -> _Found:
    value = at.runner.facts.get("weights_dtype", "")
    if "weights_dtype" not in at.runner.choices:
        return _Found(value or None, "model", "the model was not loaded by this library")
    recorded = at.recorded.get("weights_dtype")
    if recorded is not None:
        return _Found(
            value, "store", f"{recorded!r} was chosen when this store first had the model: its KV stays valid"
        )
    if at.runner.facts.get("backend") == "mlx cpu":
        limit = f"a quarter of this machine's {total_memory_bytes() / _GIB:.1f} GiB"
        return _Found(value, "machine", f"on CPUs float32 where the weights then fit {limit}, else as stored")
    return _Found(value, "machine", "on GPUs the weights stay as they are stored")


def _tool_format(at: Circumstances) -> _Found:
    found = choice_of(at.runner.tokenizer)
    return _Found(found.format or "any JSON form", "model", found.reason)


def _blas(at: Circumstances) -> _Found:
    facts = at.runner.facts
    if "blas" not in facts:
        return _Found(at.config.blas, "default", "this runner multiplies no matrices")
    note = facts.get("blas_note") or "the fast BLAS is in use"
    return _Found(facts["blas"], "machine", str(note))


_FOUND: Mapping[str, Callable[[Circumstances], _Found]] = {
    "hot_bytes": _hot_bytes,
    "warm_bytes": _warm_bytes,
    "disk_bytes": _disk_bytes,
    "prefill_tokens": _prefill_tokens,
    "weights_dtype": _weights_dtype,
    "tool_format": _tool_format,
    "blas": _blas,
}

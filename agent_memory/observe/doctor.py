"""What ``Memory.doctor()`` looks at, with advice; ``choices.py`` says what was chosen."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping

from agent_memory.config import auto_budget, memory_budgets, total_memory_bytes
from agent_memory.kvcache.coding import fallbacks, fitted, token_bytes
from agent_memory.observe.choices import Circumstances, choices
from agent_memory.observe.codec_quality import short_name
from agent_memory.toolcall.choice import choice_of
from agent_memory.types import Doctor

_GIB = 1 << 30


def examine(at: Circumstances, *, explain: bool = False) -> Doctor:
    """Facts of the machine and the opened model, what was chosen, and advice."""
    runner, config = at.runner, at.config
    hot_bytes, warm_bytes = memory_budgets(config)
    calls, tags = choice_of(runner.tokenizer), runner.tokenizer.reasoning
    facts = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "memory_gib": round(total_memory_bytes() / _GIB, 1),
        "hot_bytes": hot_bytes,
        "warm_bytes": warm_bytes,
        "prefill_tokens": config.prefill_tokens or runner.prefill_tokens,
        "kv_bytes_per_token": runner.layout.token_bytes,
        "cold_codec": config.cold_codec,
        "cold_bytes_per_token": token_bytes(runner.layout, fitted(runner.layout, at.cold_codec)),
        "tool_format": calls.format or "any JSON form",
        "tool_format_reason": calls.reason,
        "reasoning_tags": " ".join(tags) if tags else "none",
        **runner.facts,
        **at.remote,
    }
    advice = list(facts.pop("notes", ()))
    n_tensors = len(runner.layout.tensors) + len(runner.layout.windows)
    if facts.get("backend") == "mlx cpu" and sys.platform == "linux":
        if not facts.get("blas_active"):
            advice.append(f"prefill runs on a slow BLAS: {facts.get('blas_note')}")
        if facts.get("weights_dtype") not in ("float32", ""):
            advice.append(
                f"weights are {facts['weights_dtype']}; on this CPU float32 is several times faster: "
                "Config(weights_dtype='float32') if memory allows"
            )
    if not runner.layout.is_storable:
        advice.append(f"KV of this model is kept in memory only ({runner.layout.unstored[0]}): restarts recompute it")
    if at.remote:
        advice += _of_remote(at.remote)
    budget = auto_budget(config.cold_codec)
    if budget is not None and at.cold_codec == "exact":
        advice.append(
            f"cold_codec {config.cold_codec!r} stores KV exactly until memory.choose_codec({budget:g}) has found what "
            "it stands for on this model"
        )
    for codec in dict.fromkeys((at.cold_codec, config.warm_codec)):
        if exact := fallbacks(runner.layout, codec):
            advice.append(f"{short_name(codec)} leaves {len(exact)} of {n_tensors} tensors exact ({exact[0]})")
    return Doctor(facts=facts, advice=tuple(advice), choices=choices(at), is_explained=explain)


def _of_remote(remote: Mapping[str, str]) -> list[str]:
    """Return what would make the traffic with the bucket better."""
    found = []
    if not remote["remote_state"].startswith("in use"):
        found.append(f"the remote is {remote['remote_state']}")
    if remote["remote_conditions"].startswith("ignored"):
        found.append("the remote ignores conditions: agents cannot be moved through it safely")
    if remote["remote_key"].startswith("none"):
        found.append("the remote has no key: Config(remote_key=secrets.token_bytes(32)) on every host that shares it")
    return found

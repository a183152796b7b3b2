"""Explain what a request would reuse, without making it: nothing is computed, logged or created."""

from __future__ import annotations

import attrs
import numpy as np

from agent_memory.log.log import Log
from agent_memory.observe.explain import ADVICE, CacheReport
from agent_memory.protocols import Tokenizer
from agent_memory.requests.prompting import Planner, forgotten_why
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.request import Prompt, Why
from agent_memory.scheduler.reuse import Found

_NEW = "nothing like this prompt was computed before"


def explained(engine: Engine, planner: Planner, log: Log | None) -> CacheReport:
    """The report on a planned prompt; ``log``: of the agent that would ask."""
    prompt = planner.prompt()
    if log is not None and not log.turns:  # nothing of its own: compared with all that is stored
        prompt = attrs.evolve(prompt, explain=planner.explain_as_new(prompt))
    found = engine.call(lambda: engine.look(prompt, log.name if log is not None else None))
    why = found.loss.why()
    return _report(prompt, found, Why("never_seen", _NEW) if why is None and found.may_be_new else why)


def explained_log(engine: Engine, tokenizer: Tokenizer, log: Log) -> CacheReport:
    """The report on an agent's conversation as it stands: what of its KV is there for the next turn."""
    ids, n_kv = log.known(tokenizer), log.n_kv
    foreign = bool(log.turns) and (log.is_foreign or bool(len(log.ids) and not len(ids)))
    n_forgotten = log.facts.forgotten
    why = None if n_forgotten is None else forgotten_why(n_forgotten, 0)
    kept = tuple(np.asarray(ids[:n_kv]).tolist())
    prompt = Prompt(ids=(*kept, *kept[:1]), known=len(kept), foreign=foreign, n_logged=len(kept), why=why)
    found = engine.call(lambda: engine.look(prompt, log.name))
    return _report(prompt, found, found.loss.why(), n_tokens=len(kept))


def _report(prompt: Prompt, found: Found, why: Why | None, n_tokens: int | None = None) -> CacheReport:
    missing = sorted(tier for tier, seconds in found.restore_s.items() if seconds is None)
    restore_s = None if missing else sum(seconds for seconds in found.restore_s.values() if seconds is not None)
    notes = [f"nothing was restored from {' or '.join(missing)} since this Memory was opened"] if missing else []
    notes += [] if found.prefill_s is not None else ["nothing was computed since this Memory was opened"]
    return CacheReport(
        cause=None if why is None else why.cause,
        detail="" if why is None else why.detail,
        advice="" if why is None else ADVICE[why.cause],
        prompt_tokens=len(prompt.ids) if n_tokens is None else n_tokens,
        reusable=dict(found.tier_tokens),
        diverged_at=None if why is None else why.at,
        shared="" if why is None else why.texts.shared,
        here="" if why is None else why.texts.here,
        there="" if why is None else why.texts.there,
        restore_s=restore_s,
        prefill_s=found.prefill_s,
        unmeasured="; ".join(notes),
    )

"""Explain what a request would reuse, without making it: nothing is computed, logged or created."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs
import numpy as np

from agent_memory.errors import UnsupportedParameterError
from agent_memory.log.log import Log
from agent_memory.observe.explain import ADVICE, CacheReport
from agent_memory.observe.lint import LintReport, lint
from agent_memory.prefix.foresight import Outlook
from agent_memory.prompt import messages as shapes
from agent_memory.protocols import Tokenizer
from agent_memory.requests.options import Settings
from agent_memory.requests.prompting import Planner, compacted_why, forgotten_why
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.request import Prompt, Why
from agent_memory.scheduler.reuse import Found
from agent_memory.types import Message

_NEW = "nothing like this prompt was computed before"


class Explaining:
    """Makes reports on what requests would reuse. Any thread: the engine thread is asked for the look-up alone.

    ``planner``: plans a request's prompt. ``tokenizer``: the model's; raises ClosedError after ``close()``.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Callable[[], Tokenizer],
        planner: Callable[[object, Log | None, Settings], Planner],
    ) -> None:
        self._engine, self._tokenizer, self._planner = engine, tokenizer, planner

    def explain(self, prompt: object, log: Log | None, settings: Settings) -> CacheReport:
        """Return the report on a request; ``prompt`` None: on the conversation of ``log`` as it stands."""
        tokenizer = self._tokenizer()
        if prompt is None and log is not None:
            return self._of_log(log, tokenizer)
        planner = self._planner(prompt, log, settings)
        planned = planner.prompt()
        if log is not None and not log.turns:  # nothing of its own: compared with all that is stored
            planned = attrs.evolve(planned, explain=planner.explain_as_new(planned))
        owner = log.name if log is not None else None
        found, outlook = self._engine.call(lambda: self._look(planned, owner, is_exact=settings.exact))
        why = found.loss.why()
        why = Why("never_seen", _NEW) if why is None and found.may_be_new else why
        return _report(len(planned.ids), found, why, outlook)

    def _look(self, prompt: Prompt, owner: str | None, *, is_exact: bool = False) -> tuple[Found, Outlook]:
        """Engine thread."""
        outlook = Outlook() if owner is None else self._engine.ahead.outlook(owner)
        return self._engine.look(prompt, owner, is_exact=is_exact), outlook

    def _of_log(self, log: Log, tokenizer: Tokenizer) -> CacheReport:
        ids, n_kv, n_forgotten = log.known(tokenizer), log.n_kv, log.facts.forgotten
        why = None if n_forgotten is None else forgotten_why(n_forgotten, 0)
        if why is None and log.facts.compacted is not None and n_kv < len(ids):
            n_kv, why = len(ids), compacted_why(log)
        kept = tuple(np.asarray(ids[:n_kv]).tolist())
        prompt = Prompt(
            ids=(*kept, *kept[:1]),  # one more, as a next turn has
            known=min(log.n_kv, len(kept)),
            foreign=bool(log.turns) and (log.is_foreign or bool(len(log.ids) and not len(ids))),
            n_logged=len(kept),
            why=why,
        )
        found, outlook = self._engine.call(lambda: self._look(prompt, log.name))
        return _report(len(kept), found, found.loss.why(), outlook)


def _report(n_tokens: int, found: Found, why: Why | None, outlook: Outlook) -> CacheReport:
    missing = sorted(tier for tier, seconds in found.restore_s.items() if seconds is None)
    notes = [f"nothing was restored from {' or '.join(missing)} since this Memory was opened"] if missing else []
    notes += [] if found.prefill_s is not None else ["nothing was computed since this Memory was opened"]
    texts = None if why is None else why.texts
    return CacheReport(
        cause=None if why is None else why.cause,
        detail="" if why is None else why.detail,
        advice="" if why is None else ADVICE[why.cause],
        prompt_tokens=n_tokens,
        reusable=dict(found.tier_tokens),
        diverged_at=None if why is None else why.at,
        shared="" if texts is None else texts.shared,
        here="" if texts is None else texts.here,
        there="" if texts is None else texts.there,
        restore_s=None if missing else sum(seconds or 0.0 for seconds in found.restore_s.values()),
        prefill_s=found.prefill_s,
        unmeasured="; ".join(notes),
        next_s=outlook.next_s,
        expected=outlook.why,
    )


def linted(prompts: object) -> LintReport:
    """Return the report on volatile text across prompts. Raises UnsupportedParameterError for what is no list."""
    if isinstance(prompts, str | Mapping | Message) or not isinstance(prompts, Sequence):
        raise UnsupportedParameterError(f"prompts must be a list of prompts, got {type(prompts).__name__}")
    return lint([shapes.normalize(prompt) for prompt in prompts])

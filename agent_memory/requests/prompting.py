"""From what a caller asks, and an agent's log at that moment, to the ids of a prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
import numpy as np
from attrs import frozen

from agent_memory.errors import HistoryDivergedError, ToolResultError, UnsupportedParameterError
from agent_memory.log.facts import Facts
from agent_memory.log.log import Log
from agent_memory.log.versions import shown_name
from agent_memory.prefix.chunks import common_prefix
from agent_memory.prompt import messages as shapes
from agent_memory.prompt.frame import closings_of
from agent_memory.prompt.own_words import Composed, Part, compose
from agent_memory.prompt.results import paired
from agent_memory.prompt.template import raw_ids, render, writes_calls
from agent_memory.prompt.tokens import reuse
from agent_memory.protocols import Tokenizer
from agent_memory.requests.cleaning import cleaned, of_value
from agent_memory.requests.misses import Before, explain
from agent_memory.requests.outline import Outline
from agent_memory.requests.recalled import NOTHING, Candidates
from agent_memory.scheduler.request import Prompt, Why
from agent_memory.tools import as_functions
from agent_memory.types import Card, Message, OnDiverge, Tool
from agent_memory.views.units import count

Ids = np.ndarray[Any, Any]


@frozen
class Answers:
    """Messages that continue a log: tool results, as long as it is of the ``version`` in which their calls are open.

    ``version`` None: whatever the log is by then.
    """

    messages: tuple[Message, ...]
    version: int | None = None


@frozen(kw_only=True)
class Rendering:
    """How a request's messages are rendered."""

    tools: tuple[Tool, ...] = ()
    variables: Mapping[str, Any] | None = None
    raw: bool = False
    generation_prompt: bool = True
    keep_reasoning: bool | None = None  #: None: the agent's, else the template's own way
    on_diverge: OnDiverge = "replace"
    clock: Callable[[], datetime] = datetime.now  #: local time
    pin_dates: bool = True
    clean: Callable[[str], str] | None = None  #: redacts secrets in a text, before the model and the log see it
    recalls: Callable[[str], Candidates] | None = None  #: looks up what a question recalls


class Planner:
    """Makes a request's prompt from what the caller gave and, for an agent, from its log at that moment.

    - Arguments are copied at once: the caller may change them while the request waits.
    - Secrets are redacted, and recall is looked up, at once and on the caller's thread.
    - Unchanged replies of the log keep the ids that the model wrote; the template renders everything else.
    - A list with another history than the log's replaces it, branches off, or is refused (``on_diverge``).
    """

    __slots__ = (
        "_asked", "_cache", "_candidates", "_composed_last", "_how", "_log", "_now", "_seen", "_tokenizer",
        "facts", "given", "goes_on", "is_branch", "is_tight", "n_known", "n_replaced", "recalled",
    )  # fmt: skip

    def __init__(self, tokenizer: Tokenizer, prompt: object, log: Log | None, how: Rendering = Rendering()) -> None:
        if how.raw and not isinstance(prompt, str):
            raise UnsupportedParameterError(f"raw=True takes a str, got {type(prompt).__name__}")
        self._tokenizer, self._log = tokenizer, log
        variables = _snapshot(how.variables)
        self._how = attrs.evolve(how, variables=variables if how.clean is None else of_value(variables, how.clean))
        self._seen = prompt.version if isinstance(prompt, Answers) else None
        self.goes_on = isinstance(prompt, str | Answers)  #: False: the prompt is a whole history
        if isinstance(prompt, Answers):
            self._asked = shapes.normalize(prompt.messages) if prompt.messages else ()  # none: a call is still open
        else:
            self._asked = shapes.normalize(prompt)
        if how.clean is not None:
            self._asked = cleaned(self._asked, log.messages if log else (), how.clean)
        self._candidates = self._recall()
        self._now = how.clock()
        self._cache: tuple[tuple[int, int], Prompt] | None = None
        self._composed_last = Composed([])  #: the parts of the newest prompt
        self.given: tuple[Message, ...] = ()
        self.facts = Facts()  #: the agent's, once this turn is in its log
        self.is_branch = False  #: True if the log stays unchanged: the list has another history and branches off
        self.is_tight = False  #: True if the conversation cannot be compacted for it
        self.n_replaced = 0  #: messages of the log that the list replaces
        self.n_known = 0  #: messages before the new ones: the log's, or those up to the newest reply
        self.recalled: tuple[Card, ...] = ()  #: the cards that this turn adds

    def prompt(self) -> Prompt:
        """Render and tokenize; again only when the log has changed since.

        Raises AgentDeletedError, HistoryDivergedError and ToolResultError.
        """
        if self._log:
            self._log.ensure_exists()
        version = self._log.version if self._log else 0, len(self._candidates.forgotten)
        if self._cache is None or self._cache[0] != version:
            self._cache = (version, self._plan())
        return self._cache[1]

    def follow(self) -> None:
        """Accept the log's new version: the request itself changed it."""
        if self._seen is not None and self._log is not None:
            self._seen = self._log.version

    def _plan(self) -> Prompt:
        log = self._log
        if log and self._seen not in (None, log.version):
            raise moved_on(log.name)
        given = log.full_history(self._asked, goes_on=self.goes_on) if log else self._asked
        given = paired(given, may_end_open=not self._how.generation_prompt)
        self.given = log.as_logged(given) if log else given
        self._note_divergence()
        self.n_known = log.n_same(self.given) if log else _n_answered(self.given)
        self._show_recalled()
        self.facts = self._facts()
        known = log.known(self._tokenizer) if log else np.zeros(0, np.uint32)
        if self._how.raw:
            ids = raw_ids(self._tokenizer, self._asked[0].content, known.tolist())
            return self._finished(ids, known, Composed(ids))
        composed = self._composed()
        return self._finished(reuse(composed.ids, known.tolist(), self._tokenizer), known, composed)

    def _note_divergence(self) -> None:
        """Count the log's messages that the list replaces. Raises HistoryDivergedError with on_diverge="error"."""
        log = self._log
        if log is None or self.goes_on:
            return
        n_same = log.n_same(self.given)
        self.n_replaced = len(log.messages) - n_same
        if self.n_replaced and self._how.on_diverge == "error":
            raise HistoryDivergedError(shown_name(log.name) or "", n_same, len(log.messages))
        self.is_branch = self.is_branch or bool(self.n_replaced and self._how.on_diverge == "branch")

    def _recall(self) -> Candidates:
        """Look up what the new user message recalls; nothing if results or a call come last."""
        last = self._asked[-1] if self._asked else None
        if self._how.recalls is None or last is None or last.role != "user":
            return NOTHING
        return self._how.recalls(last.content)

    def _show_recalled(self) -> None:
        """Put recalled cards that the conversation does not show yet in front of the new message."""
        self.recalled = ()
        if len(self.given) > self.n_known and self.given[-1].role == "user":
            last = self.given[-1]
            self.recalled = self._candidates.fresh(self.given)
            self.given = (*self.given[:-1], attrs.evolve(last, recalled=(*last.recalled, *self.recalled)))

    def _facts(self) -> Facts:
        """Return the agent's facts with this turn; with pinned dates, its date is that of its first turn."""
        functions = as_functions(self._how.tools)
        kept = self._log.facts if self._log else Facts()
        return attrs.evolve(
            kept,
            forgotten=None,
            compacted=None,
            answered=(),
            has_shown=kept.has_shown or any(message.recalled for message in self.given) or None,
            date=kept.date or (self._date if self._log and self._how.pin_dates else None),
            tools=_digest(functions, sort_keys=False) if functions else "",
            tools_sorted=_digest(functions, sort_keys=True) if functions else "",
            variables=_digest(self._how.variables) if self._how.variables else "",
        )

    @property
    def _date(self) -> datetime:
        """Return the local time for the template; with pinned dates, that of the agent's first turn."""
        log = self._log
        if log is None or not self._how.pin_dates:
            return self._now
        if log.facts.date is None and log.turns:  # a log of an older release: its newest turn's time
            return datetime.fromtimestamp(log.turns[-1].created_s)
        return log.facts.date or self._now

    def _write(
        self,
        messages: Sequence[Message],
        generation_prompt: bool,
        *,
        now: datetime | None = None,
        tools: Sequence[Tool] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the template's text; an argument that is None is this request's own."""
        how = self._how
        return render(
            self._tokenizer,
            messages,
            tools=how.tools if tools is None else tools,
            variables=how.variables if variables is None else variables,
            generation_prompt=generation_prompt,
            now=now or self._date,
        )

    def _composed(self) -> Composed:
        """Return the prompt with the log's replies as the model wrote them, or rendered whole by the template."""
        log, how, tokenizer = self._log, self._how, self._tokenizer
        replies = log.said_in(tokenizer, log.n_same(self.given)) if log else {}
        keeps = how.keep_reasoning if how.keep_reasoning is not None else bool(self.facts.keep_reasoning)
        composed = None
        if replies and tokenizer.has_template:
            composed = compose(
                tokenizer,
                self.given,
                replies,
                self._write,
                native_calls=writes_calls(tokenizer, self.given, how.tools),
                generation_prompt=how.generation_prompt,
                keep_reasoning=keeps,
            )
        if composed is not None:
            return composed
        text = self._write(self.given, how.generation_prompt)
        return Composed(tokenizer.encode(text), parts=(Part(0, text),))

    def _finished(self, ids: Sequence[int], known: np.ndarray[Any, Any], composed: Composed) -> Prompt:
        log = self._log
        self._composed_last = composed
        if log is None:
            prompt = Prompt(ids=tuple(ids))
            return attrs.evolve(prompt, explain=self.explain_as_new(prompt))
        shared = common_prefix(known, np.array(ids, np.uint32))
        n_logged = min(log.n_kv, len(known))
        if (n_forgotten := log.facts.forgotten) is not None:
            return Prompt(
                ids=tuple(ids),
                known=min(shared, log.n_kv),
                n_logged=n_forgotten,
                why=forgotten_why(n_forgotten, shared),
            )
        prompt = Prompt(
            ids=tuple(ids),
            known=min(shared, log.n_kv),
            foreign=bool(log.turns) and (log.is_foreign or bool(len(log.ids) and not len(known))),
            n_logged=n_logged,
        )
        if log.facts.compacted is not None and log.n_kv < len(known):
            return attrs.evolve(prompt, n_logged=len(known), why=compacted_why(log))
        return attrs.evolve(prompt, why=self._why(composed, ids, known[shared:], shared) if shared < n_logged else None)

    def explain_as_new(self, prompt: Prompt) -> Callable[[int, Ids], Why]:
        """Return a function that explains why a prompt without a log differs from other ids at a position."""
        composed, ids = self._composed_last, prompt.ids
        return lambda at, other: self._why(composed, ids, other, at)

    def _why(self, composed: Composed, ids: Sequence[int], other: Ids, at: int) -> Why:
        log, tokenizer = self._log, self._tokenizer
        closings = closings_of(tokenizer, self._write) if tokenizer.has_template else ()
        before = None
        if log is not None and log.turns:
            dates = {datetime.fromtimestamp(turn.created_s) for turn in log.turns[-1:]} | {log.facts.date}
            before = Before(log.messages, log.n_same(self.given), log.facts, tuple(filter(None, dates)))
        outline = Outline(
            tokenizer,
            self.given,
            self._how.tools,
            composed,
            closings,
            self._write,
            generation_prompt=self._how.generation_prompt,
            variables=self._how.variables,
        )
        return explain(outline, ids, other, at, before=before, facts=self.facts)


def moved_on(agent: str) -> ToolResultError:
    """Return the error for results whose calls are open no more."""
    return ToolResultError(
        f"the log of agent {agent!r} has moved on since these results were given: its open calls were answered "
        f"already, or taken back. Look at its messages, and answer what is open there"
    )


def forgotten_why(n_computed: int, shared: int) -> Why:
    """Return the cause of KV that is gone because a card of the conversation was forgotten."""
    n_lost = max(0, n_computed - shared)
    detail = f"a card of this conversation was forgotten, and the KV with it; {n_lost:,} tokens that were computed"
    return Why("forgotten", f"{detail} before are computed anew")


def compacted_why(log: Log) -> Why:
    """Return the cause of KV that does not exist yet because the conversation was compacted."""
    detail = f"{count(log.facts.compacted or 0, 'turn')} of this conversation left it when it was compacted"
    return Why("compacted", f"{detail}; the {len(log.ids):,} tokens that stay are computed as a new prompt")


def _n_answered(messages: Sequence[Message]) -> int:
    """Return the number of messages up to the newest reply."""
    return next((n for n in range(len(messages), 0, -1) if messages[n - 1].role == "assistant"), 0)


def _digest(value: object, *, sort_keys: bool = True) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys, default=dict).encode()).hexdigest()[:16]


def _snapshot(variables: object) -> Mapping[str, Any] | None:
    """Return a deep copy of template variables: no code of the caller's runs while a prompt is rendered."""
    if variables is None:
        return None
    if not isinstance(variables, Mapping):
        raise UnsupportedParameterError(f"template must be a mapping of variables, got {type(variables).__name__}")
    try:
        held: Mapping[str, Any] = json.loads(json.dumps(dict(variables), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedParameterError(f"template must hold values that JSON knows: {error}") from error
    return held

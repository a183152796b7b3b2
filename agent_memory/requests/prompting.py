"""From what a caller asks, and an agent's log at that moment, to the ids of a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen

from agent_memory.errors import ToolResultError, UnsupportedParameterError
from agent_memory.log.log import Log
from agent_memory.prefix.chunks import common_prefix
from agent_memory.prompt import messages as shapes
from agent_memory.prompt.results import paired
from agent_memory.prompt.template import prompt_ids, raw_ids
from agent_memory.protocols import Tokenizer
from agent_memory.scheduler.request import Prompt
from agent_memory.types import Message, Tool


@frozen
class Answers:
    """Tool results that continue a log, as long as it is of the ``version`` in which their calls are open."""

    messages: tuple[Message, ...]
    version: int


class Planner:
    """Makes a request's prompt from what the caller gave and, for an agent, from its log at that moment.

    What the caller gave is copied at once: he may do with it what he likes while the request waits.
    """

    __slots__ = (
        "_asked", "_cache", "_generation_prompt", "_goes_on", "_log", "_raw", "_seen", "_tokenizer", "_tools",
        "_variables", "given",
    )  # fmt: skip

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: object,
        log: Log | None,
        *,
        tools: Sequence[Tool] = (),
        raw: bool = False,
        variables: Mapping[str, Any] | None = None,
        generation_prompt: bool = True,
    ) -> None:
        if raw and not isinstance(prompt, str):
            raise UnsupportedParameterError(f"raw=True takes a str, got {type(prompt).__name__}")
        self._tokenizer, self._log = tokenizer, log
        self._seen = prompt.version if isinstance(prompt, Answers) else None
        self._goes_on = isinstance(prompt, str | Answers)
        if isinstance(prompt, Answers):
            self._asked = shapes.normalize(prompt.messages) if prompt.messages else ()  # none: a call is left open
        else:
            self._asked = shapes.normalize(prompt)
        self._raw, self._variables, self._generation_prompt = raw, _snapshot(variables), generation_prompt
        self._tools = tuple(tools)
        self._cache: tuple[int, Prompt] | None = None
        self.given: tuple[Message, ...] = ()

    def prompt(self) -> Prompt:
        """Render and tokenize; again only when the log has changed since. Raises AgentDeletedError."""
        if self._log:
            self._log.ensure_exists()
        version = self._log.version if self._log else 0
        if self._cache is None or self._cache[0] != version:
            self._cache = (version, self._plan())
        return self._cache[1]

    def _plan(self) -> Prompt:
        log = self._log
        if log and self._seen not in (None, log.version):
            raise ToolResultError(
                f"the log of agent {log.name!r} has moved on since these results were given: its open calls were "
                f"answered already, or taken back. Look at its messages, and answer what is open there"
            )
        known = log.known(self._tokenizer) if log else np.zeros(0, np.uint32)
        given = log.full_history(self._asked, goes_on=self._goes_on) if log else self._asked
        given = paired(given, may_end_open=not self._generation_prompt)
        self.given = log.as_logged(given) if log else given
        if self._raw:
            ids = raw_ids(self._tokenizer, self._asked[0].content, known.tolist())
        else:
            ids = prompt_ids(
                self._tokenizer,
                self.given,
                known.tolist(),
                tools=self._tools,
                variables=self._variables,
                generation_prompt=self._generation_prompt,
            )
        shared = common_prefix(known, np.array(ids, np.uint32))
        return Prompt(
            ids=tuple(ids),
            known=min(shared, log.n_kv) if log else 0,
            foreign=bool(log and log.turns and (log.is_foreign or not len(known))),
        )


def _snapshot(variables: object) -> Mapping[str, Any] | None:
    """The variables as values of their own: nothing of the caller's is called while a prompt is rendered."""
    if variables is None:
        return None
    if not isinstance(variables, Mapping):
        raise UnsupportedParameterError(f"template must be a mapping of variables, got {type(variables).__name__}")
    try:
        held: Mapping[str, Any] = json.loads(json.dumps(dict(variables), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedParameterError(f"template must hold values that JSON knows: {error}") from error
    return held

"""Compaction: a conversation keeps its newest turns, and a summary replaces the older ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import numpy as np

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.log.log import Log
from agent_memory.log.said import Said
from agent_memory.log.turns import Turn
from agent_memory.log.versions import Span, State, squashed
from agent_memory.prompt.messages import copied
from agent_memory.protocols import Tokenizer
from agent_memory.requests.prompting import Answers, Planner, Rendering
from agent_memory.requests.versions import Versions
from agent_memory.types import Message

#: Replaces the older turns: a text, or a function that makes one of their messages. None: no replacement.
Summary = str | Callable[[tuple[Message, ...]], str] | None

KEEP_TURNS = 4
_HEAD = "Summary of the conversation so far:\n"
_ROOM = 0.75  #: share of the context that a conversation has at most after it was compacted for space, if possible
_TAIL = 64  #: ids after a reply that the template may have written


class Compacting:
    """Compacts agents' conversations. Any thread; the summary is made on the caller's.

    - The system prompt, the agent's settings and the newest turns stay; replies keep the ids that the model wrote.
    - The summary comes before the first message that stays. A turn that answers calls stays with the turn of the calls.
    - The state before is a version of the agent; its KV is reused when that version is restored.
    """

    def __init__(self, versions: Versions, how: Callable[[Log], Rendering], tokenizer: Callable[[], Tokenizer]) -> None:
        self._versions, self._how, self._tokenizer = versions, how, tokenizer

    def compact(self, log: Log, keep_turns: object, summary: Summary) -> None:
        """Compact an idle agent's conversation; does nothing if it has at most ``keep_turns`` turns.

        Raises ClosedError, UnsupportedParameterError, RequestError while a turn runs, StaleVersionError if one ran.
        """
        if not isinstance(keep_turns, int) or isinstance(keep_turns, bool) or keep_turns < 1:
            raise UnsupportedParameterError(f"keep_turns must be an int of at least 1, got {repr_of(keep_turns)}")
        if not (summary is None or isinstance(summary, str) or callable(summary)):
            raise UnsupportedParameterError(f"summary must be a str, a function or None, got {repr_of(summary)}")
        log.ensure_exists()
        self._tokenizer()  # refused where the Memory is closed, also for a conversation that is short enough
        version, before = log.version, _scratch(log, squashed(log.turns, log.first_system), log.first_system)
        first = _first_kept(before.turns, keep_turns)
        if not first:
            return
        n_left_out = before.turns[first].n_messages_kept
        text = summary(copied(before.messages[:n_left_out])) if callable(summary) else summary
        if text is not None and not isinstance(text, str):
            raise UnsupportedParameterError(f"summary must return a str, got {repr_of(text)}")
        state = self._state(log, before, first, text)
        self._versions.replace(log, state, "compacted", version)

    def make_room(self, log: Log, n_prompt: int, limit: int) -> bool:
        """Compact a conversation whose next prompt has ``n_prompt`` tokens of ``limit``; False if that does not help.

        Engine thread, before the turn starts.
        """
        if (state := self._fitting(log, n_prompt, limit)) is not None:
            self._versions.replace(log, state, "compacted", log.version, is_own_turn=True)
        return state is not None

    def can_make_room(self, log: Log, n_prompt: int, limit: int) -> bool:
        """True if ``make_room`` would help now."""
        return self._fitting(log, n_prompt, limit) is not None

    def _fitting(self, log: Log, n_prompt: int, limit: int) -> State | None:
        before = _scratch(log, squashed(log.turns, log.first_system), log.first_system)
        n_new = max(0, n_prompt - len(log.ids))
        fitting: State | None = None
        for keep_turns in range(1, KEEP_TURNS + 1):
            first = _first_kept(before.turns, keep_turns)
            state = self._state(log, before, first, None) if first else None
            if state is None or _n_ids(state) + n_new >= limit * (_ROOM if fitting else 1):
                break
            fitting = state
        return fitting

    def _state(self, log: Log, before: Log, first: int, summary: str | None) -> State:
        """Return the state that begins with turn ``first``, and its ids as the template renders them."""
        tokenizer, how = self._tokenizer(), self._how(log)
        summary = how.clean(summary) if summary and how.clean is not None else summary
        said = before.said_in(tokenizer, len(before.messages))
        system = log.system
        turns: list[Turn] = []
        n_messages = 0 if system is None else 1
        for turn in before.turns[first:]:
            messages = turn.messages
            if not turns and summary:
                opened = attrs.evolve(messages[0], content=f"{_HEAD}{summary}\n\n{messages[0].content}")
                messages = (opened, *messages[1:])
            reply = said.get(turn.n_messages_kept + len(messages) - 1)
            turns.append(_turn(turn, messages, n_messages, reply, tokenizer))
            n_messages += len(messages)
        scratch = _scratch(log, turns, system)
        planner = Planner(tokenizer, Answers((), scratch.version), scratch, how)
        turns[-1] = _with_ids(turns[-1], planner.prompt().ids, tokenizer)
        n_left_out = (log.facts.compacted or 0) + first
        return attrs.evolve(_scratch(log, turns, system).state, facts=attrs.evolve(log.facts, compacted=n_left_out))


def _scratch(log: Log, turns: Sequence[Turn], system: str | None) -> Log:
    """Return a log with other turns and without an agent."""
    scratch = log.forked(log.name, log.agent_id)
    scratch.restore(State(turns=tuple(turns), spans=(Span(log.agent_id, 0),), system=system, facts=log.facts))
    return scratch


def _first_kept(turns: Sequence[Turn], keep_turns: int) -> int:
    """Return the number of the first turn that stays, which begins with a user's message; 0: all turns stay."""
    starts = [n for n, turn in enumerate(turns[: max(0, len(turns) - keep_turns + 1)]) if _begins_with_user(turn)]
    return starts[-1] if starts else 0


def _begins_with_user(turn: Turn) -> bool:
    return bool(turn.messages) and turn.messages[0].role == "user"


def _turn(turn: Turn, messages: tuple[Message, ...], n_messages: int, reply: Said | None, tokenizer: Tokenizer) -> Turn:
    """Return a turn without computed ids, except those that the model wrote and the ids right before them."""
    ids = np.concatenate([reply.before, reply.ids]) if reply is not None else turn.ids[:0]
    return attrs.evolve(
        turn,
        messages=messages,
        n_messages_kept=n_messages,
        keep=0,
        ids=ids,
        n_kv=0,
        n_reply=len(reply.ids) if reply is not None else None,
        tokenizer=tokenizer.digest,
    )


def _with_ids(turn: Turn, ids: Sequence[int], tokenizer: Tokenizer) -> Turn:
    """Return the last turn with the ids of the whole conversation; they end with its reply, if they contain it."""
    whole = np.array(ids, np.uint32)
    if turn.n_reply:
        reply = turn.ids[len(turn.ids) - turn.n_reply :]
        bare = reply[:-1] if int(reply[-1]) in tokenizer.eos_ids else reply
        for stop in range(len(whole), max(len(bare), len(whole) - _TAIL) - 1, -1):
            if len(bare) and np.array_equal(whole[stop - len(bare) : stop], bare):
                return attrs.evolve(turn, ids=np.concatenate([whole[:stop], reply[len(bare) :]]))
    return attrs.evolve(turn, ids=whole, n_reply=None)


def _n_ids(state: State) -> int:
    last = state.turns[-1]
    return last.keep + len(last.ids)

"""An agent's log on its way from one store to another: its branches without their numbers, checked as they arrive.

- Branches are counted from 0, each one after the branch that it leaves.
- What arrives is a stranger's: each number is compared with what came before it, each text with what a log may hold.
- Ids are kept only where this model's tokenizer made them; other turns keep their messages, and ids are made anew.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import attrs
import numpy as np
from attrs import field, frozen

from agent_memory.errors import AgentMemoryError
from agent_memory.log.branches import put_branch, put_version
from agent_memory.log.facts import Facts
from agent_memory.log.logs import put_agent
from agent_memory.log.soundness import BAD_JSON, is_agent_facts, is_count, is_time, is_tools, strangers_json
from agent_memory.log.turn_rows import put_turn
from agent_memory.log.turns import Turn
from agent_memory.log.versions import REASONS, AgentRecord, Kept, Span, State, Version
from agent_memory.prompt.messages import from_json, normalize, to_json
from agent_memory.types import Finish, Message

MAX_BRANCHES = MAX_VERSIONS = 1 << 16
_OWN = -1  #: number of a branch that is made here, of no store
_FINISHES = (None, *get_args(Finish))
_LONG = 512  #: characters of a digest or a label


@frozen
class Branch:
    """Turns from number ``start`` on, after those of an earlier branch, which is named by its place."""

    base: int | None
    start: int
    turns: tuple[Turn, ...] = field(repr=False)


@frozen
class Carried:
    """The log of an agent, and for each version the place of its branch."""

    record: AgentRecord
    live: int  #: the place of the branch that the next turn is added to
    branches: tuple[Branch, ...]
    versions: tuple[tuple[Kept, int], ...]


def carried(record: AgentRecord, *, is_damaged: bool = False) -> Carried:
    """Return an agent's log as it is carried. ``is_damaged``: it has only the turns before the first damaged one."""
    live = State(
        turns=record.turns, spans=record.spans or (Span(record.agent_id, 0),), system=record.system, facts=Facts()
    )
    if is_damaged:  # the branch may go on elsewhere
        live = live.first(len(live.turns)).on(_OWN)
    places: dict[int, int] = {}
    found: dict[int, Branch] = {}
    for state in (live, *(kept.state for kept in record.kept)):
        for number, span in enumerate(state.spans):
            place = places.setdefault(span.branch, len(places))
            stop = state.spans[number + 1].start if number + 1 < len(state.spans) else len(state.turns)
            turns = state.turns[span.start : stop]
            base = places[state.spans[number - 1].branch] if number and span.start else None
            if place not in found or len(turns) > len(found[place].turns):
                found[place] = Branch(base, span.start, turns)
    branches = tuple(found[place] for place in range(len(found)))
    versions = tuple((kept, places[kept.state.spans[-1].branch]) for kept in record.kept)
    return Carried(record, places[live.spans[-1].branch], branches, versions)


@frozen(kw_only=True)
class Terms:
    """Under which a log is taken in: the open model's tokenizer, and what takes secrets out of texts."""

    tokenizer: str  #: its digest
    n_vocab: int | None  #: ids from here on are none of the model's; None: not known
    message: Callable[[Message], Message] = lambda message: message
    text: Callable[[str], str] = str
    tools: Callable[[str], str] = str  #: of the JSON of tools


@frozen(kw_only=True)
class Arrival:
    """An agent that is to be stored: its record and versions, and its branches with their turns."""

    salt: str
    record: AgentRecord  #: without turns
    branches: tuple[tuple[int, Span | None], ...]  #: numbers, and where each one leaves another
    turns: Callable[[], Iterable[tuple[int, int, Turn]]] = field(repr=False)  #: branch, number, turn


def put_arrival(db: sqlite3.Connection, arrival: Arrival) -> None:
    """Add an agent that arrives. Inside a transaction; raises sqlite3.IntegrityError if its name is taken."""
    put_agent(db, arrival.salt, arrival.record)
    for number, base in arrival.branches:
        put_branch(db, number, base, ())
    for branch, number, turn in arrival.turns():
        put_turn(db, branch, number, turn, to_json(turn.messages))
    for kept in arrival.record.kept:
        put_version(db, arrival.record.agent_id, kept)


class Intake:
    """Checks a log as it arrives, from its first part to its last. Keeps three numbers of each turn.

    Raises ValueError for a log that no version of this library writes.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._starts: list[int] = []
        self._after: list[list[tuple[int, int, int]]] = []  # of each turn: messages, ids told, ids kept
        self._n_first = 0  # messages before the first turn
        self._is_cleaned = False  # the system prompt held a secret
        self.n_remade = 0  #: turns whose ids are made anew
        self.has_secrets = False  #: True if a secret was taken out of a text

    def agent(self, told: Any) -> dict[str, Any]:
        """Return what is told of an agent itself: name, system prompt, tools, facts and times."""
        wanted = {"name": str, "system": str | None, "tools": str, "facts": str | None}
        if not isinstance(told, dict) or not all(isinstance(told.get(k), t) for k, t in wanted.items()):
            raise ValueError("what it says of the agent cannot be read")
        if not told["name"] or not all(is_time(told.get(k)) for k in ("created_s", "used_s")):
            raise ValueError("what it says of the agent makes no sense")
        strangers_json(told["tools"].encode("ascii", "backslashreplace"))
        if not is_tools(told["tools"]):
            raise ValueError("the agent's tools cannot be read")
        self._n_first = told["system"] is not None
        system, facts = self.described(told["system"], told["facts"])
        self._is_cleaned = system != told["system"]
        tools = self._terms.tools(told["tools"])
        self.has_secrets |= self._is_cleaned or tools != told["tools"]
        times = {name: _time(told, name) for name in ("created_s", "used_s")}
        return {**told, **times, "system": system, "facts": facts, "tools": tools}

    def described(self, system: Any, facts: Any) -> tuple[str | None, str | None]:
        """Return a system prompt and the JSON of facts. What is recalled is of another store, and stays there."""
        if not isinstance(system, str | None) or not isinstance(facts, str | None):
            raise ValueError("a system prompt is no text")
        for text in (system, facts):
            if text is not None:
                text.encode()  # raises UnicodeEncodeError, a ValueError
        if facts is not None:
            strangers_json(facts.encode("ascii", "backslashreplace"))
        if not is_agent_facts(facts):
            raise ValueError("the agent's facts cannot be read")
        told, clean = Facts.from_json(facts), self._terms.text
        told = attrs.evolve(
            told,
            recall=None,
            holder=None,
            forgotten=told.forgotten if is_count(told.forgotten) else None,
            compacted=told.compacted if is_count(told.compacted) else None,
            system=None if told.system is None else clean(told.system),
            answered=tuple((call, clean(text)) for call, text in told.answered),
        )
        return None if system is None else clean(system), told.to_json()

    def branch(self, base: Any, start: Any) -> None:
        """Begin a branch."""
        is_first = base is None and start == 0 and type(start) is int
        if not is_first:
            if type(base) is not int or type(start) is not int or not 0 <= base < len(self._starts) or start < 1:
                raise ValueError("a branch leaves a branch that is not there")
            if start > self.n_turns(base):
                raise ValueError("a branch leaves a turn that is not there")
        if len(self._starts) >= MAX_BRANCHES:
            raise ValueError(f"it has more than {MAX_BRANCHES:,} branches")
        before = [] if is_first else self._turns(base, start)
        self._starts.append(start)
        self._after.append(before[-1:] if before else [])

    def n_turns(self, branch: int) -> int:
        """Turns up to the end of a branch, with those of the branches before it."""
        start = self._starts[branch]
        return start + len(self._after[branch]) - (start > 0)

    def _turns(self, branch: int, stop: int) -> list[tuple[int, int, int]]:
        """The numbers of the turn before ``stop``; of a branch that may be wholly before it."""
        start = self._starts[branch]
        at = stop - start if start else stop - 1
        if at < 0:
            raise ValueError("a branch leaves a branch before that begins")
        return self._after[branch][at : at + 1]

    def turn(self, told: Mapping[str, Any], messages: str, ids: np.ndarray[Any, Any]) -> Turn:
        """Return the next turn of the newest branch. ``messages``: JSON; ``ids``: u32."""
        turn = self._read(told, messages, ids)
        if not self._after:
            raise ValueError("a turn is of no branch")
        n_messages, n_told, n_kept = (self._after[-1] or [(self._n_first, 0, 0)])[-1]
        n_after = turn.keep + len(ids)
        if turn.keep > n_told or turn.n_messages_kept > n_messages + 1 or turn.n_kv > n_after:
            raise ValueError("a turn refers to what is not there")
        clean = tuple(map(self._terms.message, turn.messages))
        is_same = all(a is b or to_json([a]) == to_json([b]) for a, b in zip(clean, turn.messages, strict=True))
        is_clean = is_same and not self._is_cleaned
        self.has_secrets |= not is_clean
        if is_clean and turn.tokenizer == self._terms.tokenizer and turn.keep <= n_kept:
            if self._terms.n_vocab is not None and len(ids) and int(ids.max()) >= self._terms.n_vocab:
                raise ValueError("a turn has ids that the model does not know")
            n_kept = n_after
        else:
            keep = min(turn.keep, n_kept)
            n_kv = min(turn.n_kv, keep)
            turn = attrs.evolve(turn, messages=clean, keep=keep, ids=ids[:0], n_kv=n_kv, n_reply=None)
            self.n_remade += 1
            n_kept = keep
        self._after[-1].append((turn.n_messages_kept + len(turn.messages), n_after, n_kept))
        return turn

    def _read(self, told: Mapping[str, Any], messages: str, ids: np.ndarray[Any, Any]) -> Turn:
        """Return a turn as it is told. Raises ValueError."""
        numbers = [told.get(name) for name in ("keep", "n_messages_kept", "n_kv")]
        n_reply, tokenizer = told.get("n_reply"), told.get("tokenizer")
        if not all(type(n) is int and is_count(n) for n in numbers) or not is_time(told.get("created_s")):
            raise ValueError("a turn's numbers make no sense")
        if n_reply is not None and not (type(n_reply) is int and 0 <= n_reply <= told["keep"] + len(ids)):
            raise ValueError("a turn's reply is longer than the conversation")
        if not isinstance(tokenizer, str) or len(tokenizer) > _LONG or not tokenizer.isprintable():
            raise ValueError("a turn's tokenizer makes no sense")
        if not tokenizer.isascii() or told.get("finish") not in _FINISHES:
            raise ValueError("a turn's end makes no sense")
        return Turn(
            messages=read_messages(messages),
            keep=told["keep"],
            ids=ids,
            tokenizer=tokenizer,
            finish=told.get("finish"),
            created_s=_time(told),
            n_messages_kept=told["n_messages_kept"],
            n_kv=told["n_kv"],
            n_reply=n_reply,
        )

    def version(self, told: Mapping[str, Any], described: Any) -> tuple[Version, int, str | None, Facts]:
        """Return a version, the place of its branch, its system prompt and facts. ``described``: label and these."""
        numbers = [told.get(name) for name in ("number", "branch", "n_turns")]
        if not all(type(n) is int and is_count(n) for n in numbers) or not is_time(told.get("created_s")):
            raise ValueError("a version's numbers make no sense")
        number, branch, n_turns = told["number"], told["branch"], told["n_turns"]
        if not number or branch >= len(self._starts) or n_turns > self.n_turns(branch):
            raise ValueError("a version refers to turns that are not there")
        if n_turns < self._starts[branch] or told.get("reason") not in REASONS or not isinstance(described, dict):
            raise ValueError("a version makes no sense")
        label = described.get("label")
        if not isinstance(label, str | None) or label == "":
            raise ValueError("a label is no text")
        system, facts = self.described(described.get("system"), described.get("facts"))
        version = Version(
            number=number,
            n_turns=n_turns,
            created_s=_time(told),
            label=None if label is None else self._terms.text(label),
            reason=told["reason"],
        )
        return version, branch, system, Facts.from_json(facts)


def _time(told: Mapping[str, Any], name: str = "created_s") -> float:
    """Return a time as SQLite gives it back: it knows no negative zero."""
    return float(told[name]) + 0.0


def read_messages(text: str) -> tuple[Message, ...]:
    """Return the messages of a stranger's JSON. Raises ValueError."""
    try:
        strangers_json(text.encode("ascii"))
        found = from_json(text)
        checked = normalize(found) if found else ()
        for message in checked:
            if not isinstance(message.source, str):
                raise ValueError("what the model wrote is no text")
            message.source.encode()
            for card in message.recalled:
                if not (is_count(card.id) and isinstance(card.text, str) and isinstance(card.workspace, str)):
                    raise ValueError("a card makes no sense")
                f"{card.text}{card.workspace}".encode()
    except (*BAD_JSON, AgentMemoryError) as error:
        raise ValueError(f"a message cannot be read: {error}") from error
    return checked

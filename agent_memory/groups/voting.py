"""Votes: the schema that holds a ballot, and how ballots are counted. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from agent_memory.config import is_text
from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.groups.events import Event
from agent_memory.views.page import Note, Page, Shown, Table

_MOST_HELD = 4  #: options of which a grammar lists every order: 24; of more it holds each place alone


@frozen(kw_only=True)
class Tally(Shown):
    """A vote's result. ``winner`` is None where there is a tie, or no valid ballot; ``tied`` names the options then."""

    question: str
    options: tuple[str, ...]
    is_ranked: bool
    scores: Mapping[str, float]  #: ballots for each option; Borda's points where they rank: n - 1 for a first place
    ballots: Mapping[str, tuple[str, ...]]  #: member -> its choice, or its order, best first; () for an invalid ballot
    winner: str | None = None
    tied: tuple[str, ...] = ()

    def __str__(self) -> str:
        scores = ", ".join(f"{option} {self.scores[option]:g}" for option in self.options)
        if self.winner is not None:
            return f"{scores}: {self.winner} wins"
        return f"{scores}: a tie between {' and '.join(self.tied)}" if self.tied else f"{scores}: no valid ballot"

    def _page(self) -> Page:
        best = sorted(self.options, key=lambda option: -self.scores[option])
        rows = [(option, f"{self.scores[option]:g}") for option in best]
        cast = [(member, ", ".join(ballot) or "invalid") for member, ballot in self.ballots.items()]
        ended = str(self).rpartition(": ")[2]
        scores = Table(rows, ("option", "points" if self.is_ranked else "ballots"))
        return Page(self.question, [Note(ended), scores, *([Table(cast, ("member", "ballot"))] if cast else [])])


def checked_vote(question: object, options: Sequence[str], *, is_ranked: object = False) -> tuple[str, ...]:
    """The options of a vote. Raises UnsupportedParameterError."""
    if not is_text(question) or not question.strip():
        raise UnsupportedParameterError(f"question must be a text, got {repr_of(question)}")
    if not isinstance(is_ranked, bool):
        raise UnsupportedParameterError(f"ranked must be a bool, got {repr_of(is_ranked)}")
    if isinstance(options, str) or not isinstance(options, Sequence):
        raise UnsupportedParameterError(f"options must be a list of texts, got {repr_of(options)}")
    found = tuple(options)
    if not all(is_text(one) and one for one in found) or not 2 <= len(found) == len(set(found)):
        raise UnsupportedParameterError(f"options must be two or more different texts, got {repr_of(found)}")
    return found


def ballot_schema(options: Sequence[str], *, is_ranked: bool) -> dict[str, Any]:
    """The JSON Schema of one ballot."""
    if not is_ranked:
        value: dict[str, Any] = {"enum": list(options)}
    elif len(options) <= _MOST_HELD:
        value = {"enum": [list(order) for order in itertools.permutations(options)]}
    else:
        value = {"type": "array", "items": {"enum": list(options)}, "minItems": len(options), "maxItems": len(options)}
    return {"type": "object", "properties": {"vote": value}, "required": ["vote"], "additionalProperties": False}


def ballot_question(question: str, options: Sequence[str], *, is_ranked: bool) -> str:
    """Return what a voter is asked."""
    how = '{"vote": [all options, best first]}' if is_ranked else '{"vote": option}'
    return f"Vote: {question}\nOptions: {'; '.join(options)}.\nAnswer with JSON: {how}."


def ballots_in(events: Sequence[Event], vote: int) -> dict[str, str]:
    """Return member -> its ballot of a vote, as it was written."""
    return {str(e.speaker): e.text for e in events if e.kind == "ballot" and e.more.get("vote") == vote}


def open_vote(events: Sequence[Event]) -> Event | None:
    """Return the vote that is not over yet."""
    votes = [event for event in events if event.kind == "vote"]
    over = {event.number for event in events if event.kind == "tally"}
    return votes[-1] if votes and votes[-1].number not in over else None


def ballot_of(text: str, options: Sequence[str], *, is_ranked: bool) -> tuple[str, ...]:
    """The choices that a ballot's JSON names, best first, each once; () where it names none."""
    try:
        vote = json.loads(text)["vote"]
    except (ValueError, KeyError, TypeError, RecursionError):  # a voter without a grammar writes what it likes
        return ()
    named = vote if isinstance(vote, list) and is_ranked else [vote]
    return tuple(dict.fromkeys(one for one in named if isinstance(one, str) and one in options))


def counted(
    question: str, options: tuple[str, ...], ballots: Mapping[str, tuple[str, ...]], *, is_ranked: bool
) -> Tally:
    """Count ballots: plurality, or Borda's points. Options that a ranking leaves out share the places that are left."""
    scores = dict.fromkeys(options, 0.0)
    n = len(options)
    for ballot in filter(None, ballots.values()):
        if not is_ranked:
            scores[ballot[0]] += 1
            continue
        for place, option in enumerate(ballot):
            scores[option] += n - 1 - place
        left = [option for option in options if option not in ballot]
        for option in left:
            scores[option] += (len(left) - 1) / 2
    best = [option for option in options if scores[option] == max(scores.values())] if any(ballots.values()) else []
    return Tally(
        question=question,
        options=options,
        is_ranked=is_ranked,
        scores=scores,
        ballots=dict(ballots),
        winner=best[0] if len(best) == 1 else None,
        tied=tuple(best) if len(best) > 1 else (),
    )

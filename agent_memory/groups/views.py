"""What a member hears of a group's events, as text for its model. Pure.

A member's view only grows: the text of a question is a function of the events since the member's last one, and later
events never change it. A line by somebody else cannot pose as another: further lines of it are indented, and marks of
chat templates in it are broken (``recall.cards``).
"""

from __future__ import annotations

from collections.abc import Sequence

from agent_memory.groups.events import Event
from agent_memory.prompt.escaping import escaped, without_marks_of

NOTHING_NEW = "Nothing new was said. Go on."


def heard_text(
    events: Sequence[Event], member: str, members: Sequence[str], heard: int, until: int, own: int, tokenizer: object
) -> str:
    """Lines of ``events[heard:until]`` that ``member`` hears, one a paragraph; "" for none.

    ``own``: number of the member's newest turn that its own log has: those up to there are no news to it.
    """

    def shown(event: Event) -> str:
        return _line(event, member)

    line = without_marks_of(tokenizer, shown)
    return "\n".join(line(event) for event in in_order(events[heard:until], members) if _is_news(event, member, own))


def introduction(member: str, members: Sequence[str]) -> str:
    """What a member is told at first: who it is, and how to read the lines of others."""
    *most, last = ["", *(escaped(one) for one in members if one != member)]
    company = f" with {', '.join(filter(None, most))}{' and ' if len(most) > 1 else ''}{last}" if last else ""
    me = escaped(member)
    return (
        f"You are {me}, in a conversation{company}. A line begins with the name of whoever said it. Answer as {me}, "
        "without writing your name."
    )


def _is_news(event: Event, member: str, own: int) -> bool:
    is_own_turn = event.kind == "turn" and event.speaker == member and (event.number or 0) <= own
    return event.is_heard_by(member) and bool(event.text.strip()) and not is_own_turn


def in_order(events: Sequence[Event], members: Sequence[str]) -> list[Event]:
    """Return events with the turns of each round in the order of members, whoever came to an end first."""
    out = list(events)
    rounds = {(e.phase, e.round) for e in events if e.kind == "turn" and e.round is not None}
    for one in rounds:
        places = [n for n, e in enumerate(events) if e.kind == "turn" and (e.phase, e.round) == one]
        ordered = sorted((events[n] for n in places), key=lambda e: members.index(str(e.speaker)))
        for place, event in zip(places, ordered, strict=True):
            out[place] = event
    return out


def _line(event: Event, member: str) -> str:
    if event.speaker is None and event.kind in ("say", "tally"):
        return event.text.strip()
    name, to = escaped(event.speaker or "host"), event.to or ()
    is_own = event.speaker == member
    if event.kind == "whisper":
        others = " and ".join(escaped(one) for one in to if one not in (member, event.speaker))
        name += f" (you, to {others} alone)" if is_own else " (to you alone)"
    elif is_own:
        name += " (you)"
    return f"{name}: {escaped(event.text)}"

"""Facts out of sentences: a slot (subject and relation) and its value, where the sentence's grammar shows both.

Only relations that hold one value at a time are read: "the capital of X is Y", "X was founded by Y", "my dentist is Y",
"I live in Y". Two facts of one slot overrule one another by time (``recall.slots``).
"""

from __future__ import annotations

import re

from attrs import frozen

from agent_memory.recall.words import terms

_LONGEST_WORDS = 40  #: longer sentences say more than one thing

_NAME = r"[^,;:]+?(?:, [^,;:]+?)?"
_PLACE = r"(?: the (?!United|Soviet|Russian|Roman|Ottoman|Kingdom)\w+ of)?"
_NUMBER = re.compile(r"^\s*(?:\d+[.):]|[-*•])\s+")
_NOW = r"(?:now |currently |still |actually )?"
#: "The capital of France is Paris", "Ann's dentist is Bo", "our deadline is now Friday"
_POSSESSED = re.compile(
    r"^(?P<slot>(?:the|a|an) [^,;:]+? (?:of|in|where|that|for) [^;:]+?"
    r"|(?:[^,;:]+?['’]s|(?:my|our|his|her|their|its)) [^,;:]+?)"
    rf" (?:is|are|was|were|will be|has changed to|changed to|moved to|became) {_NOW}(?P<value>[^;]+)$",
    re.IGNORECASE,
)
#: "The deadline is Friday": a thing that there is one of
_SINGLE = re.compile(
    r"^the (?P<slot>(?:[\w-]+ ){0,4}(?:deadline|release|launch|budget|version|port|password|address|date|owner|lead|"
    r"manager|director|limit|timeout|region|branch|database|framework|language|meeting|standup|url|price|plan|default|"
    r"name|status|target|goal|quota))"
    rf" (?:is|will be|has changed to|changed to|moved to|became) {_NOW}(?P<value>[^;]+)$",
    re.IGNORECASE,
)
#: "Chanel was founded by Coco Chanel", "baseball was created in the country of Japan", "Ann is married to Bo"
_PASSIVE = re.compile(
    rf"^(?P<subject>{_NAME}) (?:is|was|are|were) "
    rf"{_NOW}(?P<verb>\w+ed|born|written|built|made|led|run|known|famous|based|responsible) "
    rf"(?P<relation>(?:by|in|at|to|with|for|on|from){_PLACE}) (?P<value>[^;]+)$",
    re.IGNORECASE,
)
#: "Ann is a citizen of France"
_MEMBER = re.compile(
    rf"^(?P<subject>{_NAME}) (?:is|was) {_NOW}(?:a|an|the) "
    r"(?P<relation>(?!kind|type|sort|part|member|lot|matter|bit|piece|couple|number|friend|fan)\w+ (?:of|at|in)) "
    r"(?P<value>[^;]+)$",
    re.IGNORECASE,
)
#: "Ann lives in Paris", "Bo speaks the language of Japanese", "I work at Acme"
_ACTIVE = re.compile(
    rf"^(?P<subject>{_NAME}) {_NOW}(?P<verb>lives?|lived|died|works?|worked|plays?|speaks?|moved|relocated|teach|"
    r"teaches|stud(?:y|ies)) "
    rf"(?P<relation>(?:in|at|to|for|as|with){_PLACE}|the \w+ of) (?P<value>[^;]+)$",
    re.IGNORECASE,
)
_VERBS = {"moved": "live", "relocated": "live", "lives": "live", "lived": "live"}
_HOME = {*_VERBS, "live", "work", "works"}  #: said of oneself too, and in conversations
_NOBODY = re.compile(r"(?:here|i|we|it|this|that|there|he|she|they|you|what|who|which)\b", re.IGNORECASE)
_FILLER = re.compile(
    r"^(?:(?:just )?confirmed:?|note:|fyi:?|update:|by the way,?|actually,?|so,?|and|but)\s+", re.IGNORECASE
)
_TRAIL = re.compile(
    r"\s*(?:,? (?:now|from now on|again|already|at the moment|these days|instead))?[.!\s]*$", re.IGNORECASE
)


@frozen
class Fact:
    """What a sentence says of its slot."""

    slot: str
    value: str


def read(sentence: str, speaker: str | None, *, is_talk: bool) -> Fact | None:
    """Return the fact that a sentence states, if its grammar shows one.

    ``is_talk``: of a conversation, where a sentence about what happened to somebody is no lasting fact: only what is
    possessed, single, or said of where one lives and works is read.
    """
    if len(sentence) > _LONGEST_WORDS * 12 or len(sentence.split()) > _LONGEST_WORDS or sentence.rstrip().endswith("?"):
        return None
    plain = _FILLER.sub("", _TRAIL.sub("", _NUMBER.sub("", sentence))).strip()
    if match := _SINGLE.match(plain) or _POSSESSED.match(plain):
        return _fact(match["slot"], match["value"], speaker)
    match = _ACTIVE.match(plain)
    if match and match["verb"].lower() in _HOME and _is_person(match["subject"]):
        return _of_verb(match, speaker)
    if is_talk:
        return None
    match = _MEMBER.match(plain) or _PASSIVE.match(plain) or _ACTIVE.match(plain)
    if not match or _NOBODY.match(match["subject"]):
        return None
    if match.re is _MEMBER:
        return _fact(f"{match['subject']} {match['relation']}", match["value"], speaker)
    return _of_verb(match, speaker)


def _of_verb(match: re.Match[str], speaker: str | None) -> Fact:
    verb = match["verb"].lower()
    relation = "in" if verb in ("moved", "relocated") else match["relation"]
    return _fact(f"{match['subject']} {_VERBS.get(verb, verb)} {relation}", match["value"], speaker)


def _is_person(subject: str) -> bool:
    return subject.lower() in ("i", "we") or subject[:1].isupper()


def _fact(slot: str, value: str, speaker: str | None) -> Fact:
    words = terms(slot)
    if words and words[0] in ("i", "my", "we", "our"):
        owner = terms(speaker) if speaker else ["i"]
        words = [*owner, *words[1:]]
    while words and words[0] in ("the", "a", "an"):
        words = words[1:]
    return Fact(" ".join(words), value.strip(" .!\"'"))

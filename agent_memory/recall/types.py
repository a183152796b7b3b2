"""The values of context memory that callers see. All frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from attrs import field, frozen

from agent_memory.errors import repr_of
from agent_memory.recall.given import a_number
from agent_memory.types import Message
from agent_memory.views.page import Note, Page, Plain, Shown, Table
from agent_memory.views.units import ago, count, short, size

#: What a text was remembered as.
TextKind = Literal["chat", "note", "diff", "log"]
#: What a rule found in a text: lasting knowledge, then things that happened.
TypedKind = Literal[
    "decision", "requirement", "constraint", "task", "preference", "instruction", "fact", "error", "log_entry",
    "test_failure", "change", "event",
]  # fmt: skip
TEXT_KINDS: tuple[str, ...] = get_args(TextKind)
TYPED_KINDS: tuple[str, ...] = get_args(TypedKind)
Status = Literal["asserted", "hypothetical", "refuted"]


@frozen(kw_only=True)
class Item:
    """One remembered passage, or one typed item that a rule found in a text."""

    id: int
    text: str
    kind: str  #: one of TEXT_KINDS or TYPED_KINDS
    source: str | None  #: what the caller named: a conversation, a file
    at: float  #: seconds since the epoch: when it was said or became true
    workspace: str
    span: tuple[int, int]  #: [start, stop) in characters of the remembered text
    superseded_by: int | None = None
    count: int = 1  #: how often the same text was remembered
    role: str = "user"
    speaker: str | None = None
    slot: str | None = None  #: of a fact: its subject and relation, normalised
    value: str | None = None  #: of a fact: what the slot holds
    status: Status = "asserted"
    is_stale: bool = False  #: something that it depends on was superseded
    found_by: str | None = None  #: the extractor that found a typed item; None: a rule

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return f"Item({self.id} {self.kind}: {repr_of(text)})"


@frozen
class Hit(Shown):
    """An item that a question recalled. The values of ``parts`` sum to ``score``."""

    item: Item
    score: float
    parts: Mapping[str, float]

    def __repr__(self) -> str:
        parts = " ".join(f"{name}={value:+.3f}" for name, value in self.parts.items() if value)
        return f"Hit({self.score:.3f} {repr_of(self.item)} {parts})"

    def _page(self) -> Page:
        one = self.item
        said = ", ".join(str(part) for part in (one.kind, one.source, one.speaker, ago(one.at)) if part)
        return Page(f"{self.score:.3f} {said}", [Plain(one.text), Note(_line(self.parts))])


@frozen(kw_only=True)
class Weights:
    """How much each signal counts in a score; 0 switches a signal off.

    Every signal but ``relevance`` and ``similarity`` is a share of these two: nothing is recalled for its age alone.
    """

    relevance: float = field(default=1.0, validator=a_number(0))  #: words of the question in the passage and around it
    similarity: float = field(default=1.5, validator=a_number(0))  #: vectors, where there is an embedder
    speaker: float = field(default=0.4, validator=a_number(0))  #: subtracted from what an assistant said
    standing: float = field(default=1.0, validator=a_number(0))  #: added to standing instructions and preferences
    recency: float = field(default=0.1, validator=a_number(0))  #: halves every 30 days
    usage: float = field(default=0.05, validator=a_number(0))  #: how often working sets used it, saturating
    failure: float = field(default=0.1, validator=a_number(0))  #: errors and failed tests
    salience: float = field(default=0.3, validator=a_number(0))  #: what feedback says
    #: questions about a whole course: passages near a better one
    spread: float = field(default=0.15, validator=a_number(0))


@frozen(kw_only=True)
class IngestReport(Shown):
    """What one ``remember`` wrote. Everything in it is durable."""

    ids: tuple[int, ...]  #: of the passages and typed items that were added
    n_texts: int  #: texts that were new
    n_duplicates: int  #: texts that were known already: counted, not stored again
    n_items: Mapping[str, int]  #: new typed items by kind
    redactions: Mapping[str, int]  #: secrets that were replaced, by kind
    superseded: tuple[int, ...] = ()  #: facts that a newer one replaced
    extraction_error: str | None = None  #: why an extractor failed; the text is stored and searchable

    def _page(self) -> Page:
        rows = [("duplicates", f"{self.n_duplicates:,}"), ("superseded", f"{len(self.superseded):,}")]
        rows = [*((kind, f"{n:,}") for kind, n in self.n_items.items()), *rows]
        rows += [(f"redacted: {kind}", f"{n:,}") for kind, n in self.redactions.items()]
        failed = [Note(self.extraction_error)] if self.extraction_error else []
        return Page(f"{count(self.n_texts, 'new text')} remembered", [Table(rows), *failed])


@frozen(kw_only=True)
class Expansion:
    """An item in its place: the whole text, its neighbours, and its links."""

    item: Item
    text: str  #: the remembered text that the item is a span of
    before: tuple[Item, ...]
    after: tuple[Item, ...]
    typed: tuple[Item, ...]  #: items that rules found in the same text
    links: tuple[tuple[str, Item], ...]  #: (relation, item)


@frozen(kw_only=True)
class Dropped:
    """An item that a working set left out, and why."""

    item: Item
    reason: Literal["budget", "superseded", "stale"]


@frozen(kw_only=True)
class WorkingSet(Shown):
    """Cards for one task, in an order whose beginning stays the same from turn to turn."""

    text: str  #: the cards' texts, joined
    messages: tuple[Message, ...]  #: one system message a card; () where there are no cards
    items: tuple[Item, ...]
    n_tokens: int
    dropped: tuple[Dropped, ...] = ()
    is_compacted: bool = False  #: cards before the new ones were removed: their KV is computed anew

    def __repr__(self) -> str:
        return f"WorkingSet({len(self.items)} cards, {self.n_tokens} tokens, {len(self.dropped)} dropped)"

    def _page(self) -> Page:
        title = f"{count(len(self.items), 'card')}, {count(self.n_tokens, 'token')}"
        rows = [(one.kind, one.text, ago(one.at)) for one in self.items]
        dropped = [Note(f"left out ({one.reason}): {short(one.item.text)}") for one in self.dropped]
        return Page(title, [*([Table(rows)] if rows else []), *dropped])


@frozen(kw_only=True)
class Change:
    """One step of a consolidation: ``item`` is hidden behind ``other``, which says the same."""

    action: Literal["merge"]
    item: int
    other: int
    reason: str


@frozen(kw_only=True)
class Plan:
    """What a consolidation does, or did. ``id`` is 0 where nothing was done."""

    id: int
    changes: tuple[Change, ...]


@frozen(kw_only=True)
class Maintained:
    """What idle maintenance did within its time."""

    n_embedded: int = 0
    n_extracted: int = 0  #: typed items that a model found
    n_extraction_failures: int = 0  #: pieces of texts that it failed on: tried again, three times in all
    n_expired: int = 0  #: texts older than ``retain_days``
    n_pages_merged: int = 0  #: of the full-text index: fewer parts are searched faster
    n_audit_rows_dropped: int = 0
    is_done: bool = True  #: False: call again
    ms: float = 0.0


@frozen(kw_only=True)
class AuditRow:
    """One change of a workspace. Holds no remembered text."""

    at: float
    action: str
    item: int | None
    detail: Mapping[str, object]


@frozen(kw_only=True)
class ContextStats(Shown):
    """Figures of one workspace."""

    n_texts: int
    n_duplicates: int
    n_items: Mapping[str, int]  #: by kind
    n_superseded: int
    n_vectors: int
    n_unread: int  #: texts that wait for an extractor
    nbytes: int  #: of the whole file, all workspaces
    by: Mapping[str, int] = field(factory=dict)  #: texts by day, kind or workspace, where asked for

    def _page(self) -> Page:
        rows = [*self.n_items.items(), ("superseded", self.n_superseded), ("vectors", self.n_vectors)]
        rows += [("duplicates", self.n_duplicates), ("unread", self.n_unread), *self.by.items()]
        title = f"{count(self.n_texts, 'text')}, {size(self.nbytes)}"
        return Page(title, [Table([(name, f"{n:,}") for name, n in rows])])


@frozen(kw_only=True)
class CheckReport(Shown):
    """What ``check`` found wrong, one line each."""

    damaged: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if nothing is damaged."""
        return not self.damaged

    def _page(self) -> Page:
        title = "Nothing is damaged" if self.ok else f"{len(self.damaged)} damaged"
        return Page(title, [Note(line) for line in self.damaged])


def _line(parts: Mapping[str, float]) -> str:
    """Return the parts of a score as one line."""
    return ", ".join(f"{name} {value:+.3f}" for name, value in parts.items() if value)

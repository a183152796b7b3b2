"""Secrets leave a text before it is stored: ``RuleRedactor``, over the rules of ``redaction_rules.py``."""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Literal

from attrs import field, frozen

from agent_memory.errors import ConfigError
from agent_memory.recall.protocols import Found, Redacted, Redactor
from agent_memory.recall.redaction_rules import RULES, Rule, fold
from agent_memory.recall.storage import Rows

OPENING = "[REDACTED:"
MOST_PASSES = 8  #: over one text; two where a secret stands by itself
_PLACEHOLDER = re.compile(r"\[REDACTED:[a-z0-9_]{1,40}:[0-9a-f]{8}\]")


@frozen
class RuleRedactor:
    """Replaces what the rules find by ``[REDACTED:kind:hash8]``.

    - ``salt`` keys the hash: within one salt equal secrets get equal placeholders, so that "the same key as yesterday"
      can still be seen; without the salt nothing can be looked up. Who has the salt can test guesses: it is as
      confidential as the store that keeps it. Without one, a new random salt.
    - Spans that overlap are joined under the kind of the first rule; rules stand from the most to the least specific.
    - Nothing that overlaps a placeholder is replaced, so redacting twice changes nothing.
    - Time is linear in the text: each rule looks only at texts that hold one of its keywords, with bounded patterns.

    Safe to use from any thread.
    """

    salt: bytes = field(factory=lambda: secrets.token_bytes(16), repr=False)
    rules: Sequence[Rule] = field(default=RULES, repr=lambda rules: f"<{len(rules)} rules>")
    _keywords: tuple[tuple[str, int, bool], ...] = field(init=False, repr=False, eq=False)

    @salt.validator
    def _check_salt(self, _: object, value: object) -> None:
        if not isinstance(value, bytes) or not 8 <= len(value) <= blake2b.MAX_KEY_SIZE:
            raise ConfigError(f"salt must be 8 to {blake2b.MAX_KEY_SIZE} bytes, got {type(value).__name__}")

    @_keywords.default
    def _ranked_keywords(self) -> tuple[tuple[str, int, bool], ...]:
        if not isinstance(self.rules, Sequence) or not all(isinstance(one, Rule) for one in self.rules):
            raise ConfigError(f"rules must be a list of Rule, got {type(self.rules).__name__}")
        return tuple((word, rank, rule.folds_case) for rank, rule in enumerate(self.rules) for word in rule.keywords)

    def redact(self, text: str) -> Redacted:
        """Return ``text`` with every secret that a rule finds replaced by its placeholder."""
        found: list[Found] = []
        for _ in range(MOST_PASSES):  # beside a placeholder another secret may come into view
            spans = _joined(self._spans(text))
            if not spans:
                break
            placeholders = [f"{OPENING}{kind}:{self._digest(text[start:stop])}]" for start, stop, kind in spans]
            pieces: list[str] = []
            end = shift = 0
            moved: list[Found] = []
            for (start, stop, kind), placeholder in zip(spans, placeholders, strict=True):
                pieces += (text[end:start], placeholder)
                moved += (_moved(one, shift) for one in found if end <= one.start < start)
                moved.append(Found(kind, start + shift, start + shift + len(placeholder)))
                shift += len(placeholder) - (stop - start)
                end = stop
            moved += (_moved(one, shift) for one in found if one.start >= end)
            text, found = "".join((*pieces, text[end:])), moved
        return Redacted(text, tuple(found))

    def _spans(self, text: str) -> Iterable[tuple[int, int, int, str]]:
        """(start, stop, rank of the rule, kind) of whatever a rule finds."""
        folded = fold(text)
        taken = [match.span() for match in _PLACEHOLDER.finditer(text)] if OPENING in text else []
        for rank in {rank for word, rank, is_folded in self._keywords if word in (folded if is_folded else text)}:
            rule = self.rules[rank]
            for start, stop in rule.find(text, folded):
                if start < stop and not _overlaps(taken, start, stop):
                    yield start, stop, rank, rule.kind

    def _digest(self, secret: str) -> str:
        return blake2b(secret.encode("utf-8", "surrogatepass"), key=self.salt, digest_size=4).hexdigest()


def _moved(found: Found, shift: int) -> Found:
    return Found(found.kind, found.start + shift, found.stop + shift)


def redactor_of(db: Rows, *, is_read_only: bool = False) -> RuleRedactor:
    """Return the redactor of a recall file: its salt lies in the file, so that equal secrets stay equal for good.

    Inside a write transaction; with ``is_read_only`` in any, and then a file without a salt gets none.
    """
    row = db.execute("SELECT value FROM redaction_salt").fetchone()
    if row is None:
        salt = secrets.token_bytes(32)
        if is_read_only:
            return RuleRedactor(salt)
        db.execute("INSERT INTO redaction_salt (value) VALUES (?) ON CONFLICT DO NOTHING", (salt,))
        row = db.execute("SELECT value FROM redaction_salt").fetchone()  # another process may have been first
    return RuleRedactor(bytes(row[0]))


def chosen_redactor(
    redact: Redactor | Literal["rules"] | None, db: Rows, *, is_read_only: bool = False
) -> Redactor | None:
    """Return the redactor that a caller chose. In a transaction as ``redactor_of`` needs it. Raises ConfigError."""
    if redact == "rules":
        return redactor_of(db, is_read_only=is_read_only)
    if redact is not None and not isinstance(redact, Redactor):
        raise ConfigError(f"redact must have a method redact(text), be 'rules' or None; got {type(redact).__name__}")
    return redact


def _overlaps(taken: Sequence[tuple[int, int]], start: int, stop: int) -> bool:
    """True if ``[start, stop)`` meets one of some spans in order of place."""
    place = bisect_left(taken, (stop, 0))  # those before it begin before ``stop``
    return place > 0 and taken[place - 1][1] > start


def _joined(spans: Iterable[tuple[int, int, int, str]]) -> list[tuple[int, int, str]]:
    """Spans in order of place; those that overlap as one, of the kind of the rule that stands first."""
    joined: list[tuple[int, int, int, str]] = []
    for start, stop, rank, kind in sorted(spans):
        if joined and start < joined[-1][1]:
            first, last, other_rank, other_kind = joined[-1]
            rank, kind = min((other_rank, other_kind), (rank, kind))
            joined[-1] = (first, max(last, stop), rank, kind)
        else:
            joined.append((start, stop, rank, kind))
    return [(start, stop, kind) for start, stop, _, kind in joined]

"""Secrets leave a text before it is stored: ``RuleRedactor``, over the rules of ``redaction_rules.py``."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Protocol, runtime_checkable

from attrs import field, frozen

from agent_memory.errors import ConfigError
from agent_memory.recall.redaction_rules import RULES, Rule

#: How a placeholder begins; no rule redacts what begins so, hence redacting twice changes nothing.
OPENING = "[REDACTED:"


@frozen(kw_only=True)
class Finding:
    """One secret of a text: what it is and where it was, never the secret itself.

    ``text[start:stop]`` of the given text is what was replaced; ``digest`` is equal for equal secrets of one salt.
    """

    kind: str
    digest: str
    start: int
    stop: int

    @property
    def placeholder(self) -> str:
        return f"{OPENING}{self.kind}:{self.digest}]"


@frozen
class Redacted:
    """A text without its secrets, and what was taken out, in order of place."""

    text: str
    found: tuple[Finding, ...] = ()


@runtime_checkable
class Redactor(Protocol):
    """Whatever takes the secrets out of a text. Called before anything is stored, from any thread."""

    def redact(self, text: str) -> Redacted:
        """Return ``text`` with every secret replaced. Redacting its own result again must change nothing."""
        ...


@frozen
class RuleRedactor:
    """Replaces what the rules find by ``[REDACTED:kind:hash8]``.

    - ``salt`` keys the hash: within one salt equal secrets stay equal, so that "the same key as yesterday" can still be
      seen; without the salt nothing can be looked up. Who has the salt can test guesses, so it is as confidential as the
      store that keeps it. None: a new random one.
    - Spans that overlap are joined under the kind of the first rule; rules stand from the most to the least specific.
    - Time is linear in the text: each rule looks only at texts that hold one of its keywords, with bounded patterns.

    Safe to use from any thread.
    """

    salt: bytes = field(factory=lambda: secrets.token_bytes(16), repr=False)
    rules: Sequence[Rule] = field(default=RULES, repr=lambda rules: f"<{len(rules)} rules>")

    @salt.validator
    def _check_salt(self, _: object, value: object) -> None:
        if not isinstance(value, bytes) or not 8 <= len(value) <= blake2b.MAX_KEY_SIZE:
            raise ConfigError(f"salt must be 8 to {blake2b.MAX_KEY_SIZE} bytes, got {value!r:.40}")

    def redact(self, text: str) -> Redacted:
        """Return ``text`` with every secret that a rule finds replaced by its placeholder."""
        spans = _joined(self._spans(text))
        if not spans:
            return Redacted(text)
        found = tuple(
            Finding(kind=kind, digest=self._digest(text[start:stop]), start=start, stop=stop)
            for start, stop, kind in spans
        )
        pieces: list[str] = []
        end = 0
        for finding in found:
            pieces += (text[end : finding.start], finding.placeholder)
            end = finding.stop
        return Redacted("".join((*pieces, text[end:])), found)

    def _spans(self, text: str) -> Iterable[tuple[int, int, int, str]]:
        """(start, stop, rank of the rule, kind) of whatever a rule finds."""
        folded = text.lower()
        for rank, rule in enumerate(self.rules):
            if rule.may_be_in(text, folded):
                for start, stop in rule.find(text):
                    if stop > start and not text.startswith(OPENING, start):
                        yield start, stop, rank, rule.kind

    def _digest(self, secret: str) -> str:
        return blake2b(secret.encode("utf-8", "surrogatepass"), key=self.salt, digest_size=4).hexdigest()


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

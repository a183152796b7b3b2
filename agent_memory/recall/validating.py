"""Found patterns against those that should have been found: precision, recall, F1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.recall.drafts import Draft, likeness
from agent_memory.recall.episode_types import PATTERN_KINDS, PRF, Pattern
from agent_memory.recall.signatures import condition_key, error_signature
from agent_memory.recall.similarity import matched

_NEEDED = {
    "tool_sequence": {"tools"},
    "decision_point": {"condition", "choice"},
    "error_recovery": {"error", "tools"},
    "context_pattern": {"features", "tools"},
}


def validated(found: Sequence[Draft], gold: Iterable[Pattern | Mapping[str, Any]]) -> PRF:
    """Return how well ``found`` matches ``gold``: a largest one-to-one matching of pairs at least 0.85 alike."""
    if isinstance(gold, str | Mapping) or not isinstance(gold, Iterable):
        raise UnsupportedParameterError(f"gold must be a list of patterns, got {type(gold).__name__}")
    wanted = [_as_draft(one) for one in gold]
    kinds = {draft.kind for draft in wanted}
    compared = [draft for draft in found if draft.kind in kinds]
    pairs = matched(compared, wanted, likeness)
    n = len(pairs)
    precision = n / len(compared) if compared else 1.0
    recall = n / len(wanted) if wanted else 1.0
    return PRF(
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if n else 0.0,
        n_found=len(compared),
        n_gold=len(wanted),
        n_matched=n,
        missed=tuple(_shown(draft) for i, draft in enumerate(wanted) if i not in pairs),
        extra=tuple(draft.id for j, draft in enumerate(compared) if j not in pairs.values()),
    )


def _as_draft(gold: Pattern | Mapping[str, Any]) -> Draft:
    if isinstance(gold, Pattern):
        gold = {"kind": gold.kind, **{name: getattr(gold, name) for name in _NEEDED[gold.kind]}}
    if not isinstance(gold, Mapping):
        raise UnsupportedParameterError(f"a gold pattern must be a Pattern or a mapping, got {type(gold).__name__}")
    kind = gold.get("kind")
    if kind not in PATTERN_KINDS:
        raise UnsupportedParameterError(
            f"a gold pattern's kind must be one of {', '.join(PATTERN_KINDS)}, got {repr_of(kind)}"
        )
    given = {name: value for name, value in gold.items() if name != "kind"}
    if given.keys() != _NEEDED[kind]:
        needed, has = ", ".join(sorted(_NEEDED[kind])), ", ".join(sorted(given)) or "nothing"
        raise UnsupportedParameterError(f"a gold {kind} needs {needed}; it has {has}")
    return Draft(
        kind=kind,
        evidence=(),
        tools=tuple(given.get("tools", ())),
        condition=condition_key(given.get("condition", "")),
        choice=given.get("choice", ""),
        error=error_signature(given["error"]) if "error" in given else "",
        features=frozenset(given.get("features", ())),
    )


def _shown(draft: Draft) -> str:
    parts = (draft.condition, draft.choice, draft.error, " ".join(sorted(draft.features)), " > ".join(draft.tools))
    return f"{draft.kind}: {' | '.join(part for part in parts if part)}"

"""How an agent's turns are asked and rendered: facts that its log keeps, so that later turns are as the first ones."""

from __future__ import annotations

import json
from datetime import datetime

import attrs
from attrs import frozen

from agent_memory.errors import UnsupportedParameterError
from agent_memory.types import Recall


@frozen(kw_only=True)
class Facts:
    """What rendering one agent's turns depends on beside its messages.

    ``tools``, ``tools_sorted``: digests of the tools that the newest turn offered, in their own key order and in
    sorted order. ``variables``: digest of the newest turn's template variables. ``system``: the system prompt of the
    newest turn, where it is another than the one before the first turn. ``answered``: results of open tool calls, each
    with the id of its call, while other calls of the same reply wait for theirs.
    """

    date: datetime | None = None  #: local time that the chat template was told; None: it was never asked
    keep_reasoning: bool | None = None  #: the agent's own choice; None: what the template does
    tools: str = ""
    tools_sorted: str = ""
    variables: str = ""
    recall: Recall | None = None  #: what each turn recalls; None: nothing
    forgotten: int | None = None  #: ids that had their KV before a card was forgotten, until the next turn
    compacted: int | None = None  #: turns that were compacted since the newest turn, until the next one
    system: str | None = None
    answered: tuple[tuple[str, str], ...] = ()
    n_versions: int | None = None  #: the highest number that a version of the agent was given; none is given twice
    has_shown: bool | None = None  #: True once cards were shown, also in turns that were taken back
    holder: str | None = None  #: by which this store may publish the agent's log; None: it never did, or another may

    def to_json(self) -> str | None:
        """Compact JSON of the facts that say something; None where none does."""
        row = {name: value for name, value in attrs.asdict(self).items() if value not in (None, "", [])}
        if self.date is not None:
            row["date"] = self.date.isoformat(timespec="seconds")
        return json.dumps(row, separators=(",", ":"), sort_keys=True) if row else None

    @classmethod
    def from_json(cls, text: str | None) -> Facts:
        """The reverse of ``to_json``. What cannot be read is left out."""
        try:
            row = dict(json.loads(text or "{}"))
            date = row.get("date")
            return cls(
                date=datetime.fromisoformat(date) if isinstance(date, str) else None,
                keep_reasoning=row.get("keep_reasoning") if isinstance(row.get("keep_reasoning"), bool) else None,
                recall=_recall(row.get("recall")),
                forgotten=row.get("forgotten") if isinstance(row.get("forgotten"), int) else None,
                compacted=row.get("compacted") if isinstance(row.get("compacted"), int) else None,
                n_versions=row.get("n_versions") if isinstance(row.get("n_versions"), int) else None,
                has_shown=True if row.get("has_shown") is True else None,
                holder=row.get("holder") if isinstance(row.get("holder"), str) else None,
                system=row.get("system") if isinstance(row.get("system"), str) else None,
                answered=tuple((str(call), str(text)) for call, text in row.get("answered", ())),
                **{name: str(row.get(name, "")) for name in ("tools", "tools_sorted", "variables")},
            )
        except (ValueError, TypeError):
            return cls()


def _recall(row: object) -> Recall | None:
    try:
        return Recall(**row) if isinstance(row, dict) else None
    except (TypeError, UnsupportedParameterError):
        return None

"""How an agent's turns are rendered: facts that its log keeps, so that later turns are rendered as the first ones."""

from __future__ import annotations

import json
from datetime import datetime

import attrs
from attrs import frozen


@frozen(kw_only=True)
class Facts:
    """What rendering one agent's turns depends on beside its messages.

    ``tools``, ``tools_sorted``: digests of the tools that the newest turn offered, in their own key order and in
    sorted order. ``variables``: digest of the newest turn's template variables. ``system``: the system prompt of the
    newest turn, where it is another than the one before the first turn.
    """

    date: datetime | None = None  #: local time that the chat template was told; None: it was never asked
    keep_reasoning: bool | None = None  #: the agent's own choice; None: what the template does
    tools: str = ""
    tools_sorted: str = ""
    variables: str = ""
    system: str | None = None

    def to_json(self) -> str | None:
        """Compact JSON of the facts that say something; None where none does."""
        row = {name: value for name, value in attrs.asdict(self).items() if value not in (None, "")}
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
                system=row.get("system") if isinstance(row.get("system"), str) else None,
                **{name: str(row.get(name, "")) for name in ("tools", "tools_sorted", "variables")},
            )
        except (ValueError, TypeError):
            return cls()

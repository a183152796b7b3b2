"""The ids that the model itself wrote for one message of a log."""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import field, frozen

_BEFORE = 64  #: prompt ids kept in front of a reply: more than any template writes to open one

Ids = np.ndarray[Any, Any]


@frozen
class Said:
    """One reply's ids, its end of turn included where the model wrote one, and the prompt ids right before them."""

    ids: Ids = field(eq=False, repr=lambda a: f"<{len(a)} ids>")  #: u32
    before: Ids = field(eq=False, repr=lambda a: f"<{len(a)} ids>")  #: u32

    @classmethod
    def last_of(cls, ids: Ids, n_reply: int) -> Said:
        """The last ``n_reply`` of a log's ids."""
        start = len(ids) - n_reply
        return cls(ids[start:].copy(), ids[max(0, start - _BEFORE) : start].copy())

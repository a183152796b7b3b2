"""Which agent's turn follows which: counts that decay, after the last agent and after the last two. Pure."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping

MOST_CONTEXTS = 1024
MOST_FOLLOWERS = 8  #: of one context; the rarest is dropped
_KEPT = 0.9  #: what one more turn leaves of the older counts of its context
_ORDER = 2
_DEPTH = 2  #: turns that are looked ahead
_WIDTH = 6  #: ways of turns that are followed
_LEAST = 0.05  #: chance below which a way is not followed

Context = tuple[str, ...]


class Followers:
    """Counts of handovers, bounded, the longest unused context dropped first. Engine thread only.

    - A context of two agents counts by its number of turns against one; the rest of the chance is the shorter one's.
    - ``near`` is computed once a turn: at most ``_DEPTH * _WIDTH`` contexts of ``MOST_FOLLOWERS``.
    """

    depth = _DEPTH

    def __init__(self) -> None:
        self._counts: OrderedDict[Context, dict[str, float]] = OrderedDict()
        self._context: Context = ()
        self._near: Mapping[str, tuple[float, float]] | None = None
        self._following: Mapping[str, float] | None = None

    def note(self, owner: str) -> None:
        """Count the turn of an agent."""
        for order in range(1, len(self._context) + 1):
            context = self._context[-order:]
            counts = self._counts.setdefault(context, {})
            self._counts.move_to_end(context)
            for name in counts:
                counts[name] *= _KEPT
            counts[owner] = counts.get(owner, 0.0) + 1.0
            if len(counts) > MOST_FOLLOWERS:
                del counts[min(counts, key=lambda name: (counts[name], name))]
        while len(self._counts) > MOST_CONTEXTS:
            self._counts.popitem(last=False)
        self._context, self._near = (*self._context, owner)[-_ORDER:], None
        self._following = None

    def forget(self, owner: str) -> None:
        """Drop every count that names an agent."""
        for context in [one for one in self._counts if owner in one]:
            del self._counts[context]
        for counts in self._counts.values():
            counts.pop(owner, None)
        self._context = () if owner in self._context else self._context
        self._near = self._following = None

    @property
    def following(self) -> Mapping[str, float]:
        """Name -> chance of the next turn."""
        if self._following is None:
            self._following = self.chances(self._context)
        return self._following

    @property
    def near(self) -> Mapping[str, tuple[float, float]]:
        """Name -> (chance of a turn within ``depth``, that chance times the turns until then)."""
        if self._near is None:
            self._near = self._ahead()
        return self._near

    def chances(self, context: Context) -> dict[str, float]:
        """Return the chance of each agent's turn right after a context."""
        found: dict[str, float] = defaultdict(float)
        rest = 1.0
        for order in range(len(context), 0, -1):
            counts = self._counts.get(context[-order:])
            if counts:
                total = sum(counts.values())
                known = rest * total / (total + 1.0)
                for name, count in counts.items():
                    found[name] += known * count / total
                rest -= known
        return found

    def _ahead(self) -> dict[str, tuple[float, float]]:
        first: dict[str, tuple[float, float]] = {}
        ways: dict[Context, float] = {self._context: 1.0}
        for step in range(1, _DEPTH + 1):
            following: dict[Context, float] = defaultdict(float)
            for context, chance in ways.items():
                for name, share in self.chances(context).items():
                    here = chance * share
                    if here >= _LEAST:
                        known, weighted = first.get(name, (0.0, 0.0))
                        new = here * (1.0 - known)
                        first[name] = (known + new, weighted + new * step)
                        following[(*context, name)[-_ORDER:]] += here
            ways = dict(sorted(following.items(), key=lambda way: -way[1])[:_WIDTH])
        return first

    def check(self) -> list[str]:
        """Return the invariants that do not hold, in words."""
        most = max(map(len, self._counts.values()), default=0)
        found = {
            f"{len(self._counts)} contexts are counted": len(self._counts) > MOST_CONTEXTS,
            f"{most} followers of one context are counted": most > MOST_FOLLOWERS,
        }
        return [text for text, is_wrong in found.items() if is_wrong]

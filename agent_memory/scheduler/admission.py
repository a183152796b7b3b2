"""Admission by bytes: the most that a request may need, and which rows share a padded batch. Pure."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from agent_memory.errors import OutOfBudgetError

#: mlx-lm's caches grow in steps of this many tokens.
_STEP = 256


@frozen
class Place:
    """The group that a request would decode in, and the bytes that it would reserve."""

    group: int
    tokens: int  #: the most that its buffers may have
    n_bytes: int
    is_alone: bool = False  #: True if no other row may join the group


class Admission:
    """The hot tier's bytes, shared by idle lineages and running rows, and the groups that rows decode in.

    - A group is padded to its longest row: it reserves ``rows * longest`` tokens, and ``row_bytes`` (windows and
      states of layers) for each row.
    - A row gets a group of its own where the padding would read more bytes a step than another forward pass does,
      which is the weights once more, or where the padding does not fit; or where it must decode alone.
    - ``reserved_bytes <= limit_bytes`` once a row has started.
    """

    def __init__(
        self,
        limit_bytes: int,
        token_bytes: int,
        weights_bytes: int,
        row_bytes: int = 0,
        fetched_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self.limit_bytes = limit_bytes
        self.fetched_bytes = fetched_bytes  #: bytes of KV that came from a bucket and is not restored yet
        self._token_bytes, self._weights_bytes, self._row_bytes = token_bytes, weights_bytes, row_bytes
        self._groups: dict[int, dict[int, int]] = {}  # group -> row -> worst tokens
        self._closed: set[int] = set()  # groups that no other row may join
        self._n_groups = 0

    @property
    def rows(self) -> set[int]:
        """The rows that have reserved bytes."""
        return {row for rows in self._groups.values() for row in rows}

    @property
    def reserved_bytes(self) -> int:
        """The most bytes that all running rows may need, and those that were fetched."""
        groups = self._groups.values()
        tokens = sum(len(rows) * max(rows.values()) for rows in groups)
        rows_bytes = self._token_bytes * tokens + self._row_bytes * sum(len(rows) for rows in groups)
        return rows_bytes + self.fetched_bytes()

    def kv_bytes(self, n_tokens: int) -> int:
        """Return the most bytes that restored KV of ``n_tokens`` takes, spare capacity included."""
        return self.slots(n_tokens) * self._token_bytes + self._row_bytes

    @staticmethod
    def slots(n_tokens: int) -> int:
        """Return the tokens that buffers of restored KV have, spare capacity included."""
        return (n_tokens + _STEP // 2 + _STEP - 1) // _STEP * _STEP

    def worst_tokens(self, n_prompt: int, max_tokens: int) -> int:
        """Return the most tokens that a row's buffers may have. Raises OutOfBudgetError if it could never fit.

        A growing cache is copied layer by layer: the old and the new buffer of one layer exist together, which the
        capacity of one more step covers.
        """
        tokens = (n_prompt + max_tokens + 2 * _STEP - 1) // _STEP * _STEP
        needed = tokens * self._token_bytes + self._row_bytes
        if needed > self.limit_bytes:
            raise OutOfBudgetError(needed, self.limit_bytes)
        return tokens

    def place(self, tokens: int, *, is_alone: bool = False) -> Place:
        """Return the group in which a row of ``tokens`` adds the fewest bytes; a closed one if it ``is_alone``.

        O(groups).
        """
        alone = tokens * self._token_bytes + self._row_bytes
        best = Place(self._n_groups, tokens, alone, is_alone)
        if is_alone:
            return best
        free = self.limit_bytes - self.reserved_bytes
        for group, rows in self._groups.items():
            if group in self._closed:
                continue
            longest = max(rows.values())
            added = self._token_bytes * ((len(rows) + 1) * max(longest, tokens) - len(rows) * longest)
            added += self._row_bytes
            is_worth_it = added - alone <= self._weights_bytes and (added <= free or alone > free)
            if is_worth_it and (best.group == self._n_groups or added < best.n_bytes):
                best = Place(group, tokens, added)
        return best

    def add(self, row: int, place: Place) -> None:
        """Reserve the bytes of a row that starts."""
        self._groups.setdefault(place.group, {})[row] = place.tokens
        self._n_groups = max(self._n_groups, place.group + 1)
        if place.is_alone:
            self._closed.add(place.group)

    def remove(self, row: int) -> None:
        """Free the bytes that a row reserved; idempotent."""
        for group, rows in list(self._groups.items()):
            if rows.pop(row, None) is not None and not rows:
                del self._groups[group]
                self._closed.discard(group)

    def has_room(self, needed_bytes: int) -> bool:
        """True if ``needed_bytes`` fit beside the running rows, with every idle lineage evicted."""
        return needed_bytes + self.reserved_bytes <= self.limit_bytes

    def shortfall(self, needed_bytes: int, idle_bytes: int) -> int:
        """Return the bytes of ``idle_bytes`` that must be evicted for ``needed_bytes`` more."""
        return max(0, needed_bytes + self.reserved_bytes + idle_bytes - self.limit_bytes)

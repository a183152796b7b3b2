"""How alike two sequences, texts, tasks or patterns are, from 0 to 1; groups of what is alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from random import Random
from typing import TypeVar

T = TypeVar("T")
S = TypeVar("S", bound=Hashable)

#: From here on two patterns are one.
DUPLICATE = 0.85


def jaccard(one: Set[S], other: Set[S]) -> float:
    """Return the share of what either has that both have; 1 for two empty sets."""
    return len(one & other) / len(one | other) if one or other else 1.0


def edit_similarity(one: Sequence[S], other: Sequence[S]) -> float:
    """Return 1 less the edit distance (insert, delete, replace) over the longer length."""
    if not one and not other:
        return 1.0
    row = list(range(len(other) + 1))
    for i, mine in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, theirs in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (mine != theirs))
    return 1 - row[-1] / max(len(one), len(other))


def text_similarity(one: str, other: str) -> float:
    """Return the similarity of two short texts by their words: their order or their set, whichever is nearer."""
    mine, theirs = one.lower().split(), other.lower().split()
    return max(edit_similarity(mine, theirs), jaccard(set(mine), set(theirs)))


def matched(found: Sequence[T], gold: Sequence[S], similarity: Callable[[T, S], float]) -> dict[int, int]:
    """Return gold index -> found index of a largest one-to-one matching of pairs at least ``DUPLICATE`` alike."""
    choices = [
        sorted(
            (j for j, one in enumerate(found) if similarity(one, wanted) >= DUPLICATE),
            key=lambda j: (-similarity(found[j], wanted), j),
        )
        for wanted in gold
    ]
    owner: dict[int, int] = {}

    def place(i: int, tried: set[int]) -> bool:
        for j in choices[i]:
            if j not in tried:
                tried.add(j)
                if j not in owner or place(owner[j], tried):
                    owner[j] = i
                    return True
        return False

    for i in range(len(gold)):
        place(i, set())
    return {i: j for j, i in owner.items()}


def merged(groups: Mapping[str, Sequence[T]]) -> list[tuple[str, list[T]]]:
    """Return groups, largest first; one whose key is ``DUPLICATE`` alike to a larger one's joins that."""
    kept: list[tuple[str, list[T]]] = []
    for key in sorted(groups, key=lambda key: (-len(groups[key]), key)):
        near = next((group for other, group in kept if text_similarity(other, key) >= DUPLICATE), None)
        if near is None:
            kept.append((key, list(groups[key])))
        else:
            near.extend(groups[key])
    return kept


def clusters(items: Sequence[T], similarity: Callable[[T, T], float], *, n: int, seed: int = 0) -> list[list[int]]:
    """Return ``n`` groups (fewer where there are fewer distinct items) of indexes: k-medoids.

    The first medoid is drawn by ``seed``, the others are the farthest from those there are. O(items squared).
    """
    if not items:
        return []
    distance = [[0.0] * len(items) for _ in items]
    for i, one in enumerate(items):
        for j in range(i):
            distance[i][j] = distance[j][i] = 1 - similarity(one, items[j])
    medoids = [Random(seed).randrange(len(items))]
    while len(medoids) < n:
        farthest = max(range(len(items)), key=lambda i: (min(distance[i][m] for m in medoids), -i))
        if min(distance[farthest][m] for m in medoids) <= 0:
            break
        medoids.append(farthest)
    for _ in range(20):
        groups = _assigned(distance, medoids)
        better = [min(group, key=lambda i: (sum(distance[i][j] for j in group), i)) for group in groups]
        if better == medoids:
            break
        medoids = better
    return sorted(sorted(group) for group in _assigned(distance, medoids))


def _assigned(distance: Sequence[Sequence[float]], medoids: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in medoids]
    for i, row in enumerate(distance):
        nearest = min(range(len(medoids)), key=lambda g: (row[medoids[g]], medoids[g]))
        groups[nearest].append(i)
    return [group for group in groups if group]

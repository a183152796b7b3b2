"""How likely something is by chance: what keeps an extractor from taking noise for a pattern."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import comb, exp, lgamma, log
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def tail(n: int, k: int, p: float) -> float:
    """Return the probability of at least ``k`` successes in ``n`` trials of probability ``p``."""
    if k <= 0:
        return 1.0
    if k > n or p <= 0:
        return 0.0
    if p >= 1:
        return 1.0
    total = 0.0
    for i in range(k, n + 1):
        total += exp(lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) + i * log(p) + (n - i) * log(1 - p))
    return min(1.0, total)


def rate(hits: int, n: int) -> float:
    """Return a background rate that is never 0: half a hit more, in ten trials more."""
    return (hits + 0.5) / (n + 10)


def probably_better(successes: int, failures: int, other_successes: int, other_failures: int) -> float:
    """Return the probability that one rate of success exceeds another, both with a uniform prior.

    Exact: P(Beta(a, b) > Beta(c, d)) as a finite sum over the first's successes.
    """
    a, b, c, d = successes + 1, failures + 1, other_successes + 1, other_failures + 1
    total = 0.0
    for i in range(a):
        total += exp(_log_beta(c + i, b + d) - log(b + i) - _log_beta(1 + i, b) - _log_beta(c, d))
    return min(1.0, max(0.0, total))


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def hypergeometric_tail(n: int, marked: int, drawn: int, k: int) -> float:
    """Return the probability that at least ``k`` of ``drawn`` from ``n`` are among the ``marked``."""
    most = min(marked, drawn)
    if k > most:
        return 0.0
    ways = sum(comb(marked, i) * comb(n - marked, drawn - i) for i in range(max(k, drawn - (n - marked)), most + 1))
    return ways / comb(n, drawn)


def discoveries(chances: Mapping[K, float], false_share: float, n_tested: int) -> set[K]:
    """Return the keys that are kept when at most ``false_share`` of what is kept may be there by chance.

    ``n_tested`` includes what was tested and has no chance given. Source: Benjamini and Hochberg, 1995.
    """
    ranked = sorted(chances.values())
    kept = [chance for i, chance in enumerate(ranked, 1) if chance <= false_share * i / max(1, n_tested)]
    return {key for key, chance in chances.items() if kept and chance <= kept[-1]}

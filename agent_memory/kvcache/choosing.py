"""Which bits each tensor of KV gets, by what its errors cost: a knapsack. Pure.

Noise of a uniform quantizer is ``(range / (2**bits - 1))**2 / 12``, and what a small noise costs in KL is proportional
to it; costs of different tensors nearly add up. So one measurement for each tensor, at ``PROBE_BITS``, gives its cost
at any number of bits. Each further bit gains less than the one before: so the best allotment is found by giving one
more bit to the tensor that gains most per byte, until the budget holds.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import attrs
from attrs import frozen

from agent_memory.kvcache.coding import PLANES, coding, mixed
from agent_memory.kvcache.layout import Layout, TensorSpec

PROBE_BITS = 4
#: Bits from coarse to fine; 0 is exact.
LEVELS = (*sorted(PLANES), 0)


@frozen
class Sensitivity:
    """What errors of one tensor cost."""

    spec: TensorSpec
    kl: float  #: nats a token, with this tensor alone at ``PROBE_BITS``
    n_rows: int  #: tokens whose rows a restore reads: all, or those of a window

    def kl_at(self, bits: int) -> float:
        """Predict the cost at other bits; 0 for exact rows."""
        return max(self.kl, 0.0) * noise(bits) / noise(PROBE_BITS)

    def bytes_at(self, bits: int) -> int:
        """Return the bytes of its rows; of exact ones where no codec makes them smaller."""
        return self.n_rows * self.spec.heads * row_bytes(self.spec, bits)


def noise(bits: int) -> float:
    """Return the mean square error of codes of ``bits`` bits, relative to that of one bit; 0 bits are exact."""
    return 1 / (2**bits - 1) ** 2 if bits else 0.0


def row_bytes(spec: TensorSpec, bits: int) -> int:
    """Return the bytes of one row."""
    made = coding(spec, mixed({spec.name: bits}))
    return spec.row_bytes if made is None else made.row_bytes


def codable(layout: Layout) -> tuple[TensorSpec, ...]:
    """Return the tensors that a codec can encode."""
    specs = (*layout.tensors, *layout.windows)
    return tuple(spec for spec in specs if coding(spec, mixed({spec.name: PROBE_BITS})) is not None)


def allot(found: Sequence[Sensitivity], budget: float) -> Mapping[str, int]:
    """Return the bits of each tensor: the fewest bytes whose predicted cost is at most ``budget``, in nats a token."""
    levels = [_Levels.of(one) for one in found]
    at = [0] * len(found)
    cost = sum(one.kl_at(each.bits[0]) for one, each in zip(found, levels, strict=True))
    heap = [(-each.gains[0], number) for number, each in enumerate(levels) if each.gains]
    heapq.heapify(heap)
    while cost > budget and heap:
        _, number = heapq.heappop(heap)
        one, each = found[number], levels[number]
        cost -= one.kl_at(each.bits[at[number]]) - one.kl_at(each.bits[at[number] + 1])
        at[number] += 1
        if at[number] < len(each.gains):
            heapq.heappush(heap, (-each.gains[at[number]], number))
    return {one.spec.name: each.bits[k] for one, each, k in zip(found, levels, at, strict=True)}


@frozen
class _Levels:
    """The numbers of bits worth choosing among, from coarse to fine, and what each step up gains per byte."""

    bits: tuple[int, ...]
    gains: tuple[float, ...]

    @classmethod
    def of(cls, one: Sensitivity) -> _Levels:
        """Leave out what costs no fewer bytes than a finer one, and what lies above the line between its neighbours."""
        smaller = [b for b in LEVELS if b and one.bytes_at(b) < one.bytes_at(0)]
        kept: list[int] = []
        for b in [*smaller, 0]:
            while len(kept) > 1 and _slope(one, kept[-2], kept[-1]) < _slope(one, kept[-1], b):
                kept.pop()
            kept.append(b)
        return cls(tuple(kept), tuple(_slope(one, a, b) for a, b in zip(kept, kept[1:], strict=False)))


def _slope(one: Sensitivity, coarse: int, fine: int) -> float:
    return (one.kl_at(coarse) - one.kl_at(fine)) / (one.bytes_at(fine) - one.bytes_at(coarse))


def merged(*texts: Sequence[Sensitivity]) -> list[Sensitivity]:
    """Return the mean sensitivities of several texts, of the same tensors in the same order."""
    return [attrs.evolve(each[0], kl=sum(one.kl for one in each) / len(each)) for each in zip(*texts, strict=True)]

"""Which bits each tensor of KV gets, by what its errors cost: a knapsack. Pure.

Noise of a uniform quantizer is ``(range / (2**bits - 1))**2 / 12``, and what a small noise costs in KL is proportional
to it; costs of different tensors nearly add up. So one measurement for each tensor, at ``PROBE_BITS``, gives its cost
at any number of bits. Each further bit gains less than the one before: so the best allotment is found by giving one
more bit to the tensor that gains most per byte, until the budget holds. Tensors of one layer that share a digit of a
mixed codec's name, as the keys of its two caches do, are one: they get the same bits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

import attrs
from attrs import frozen

from agent_memory.config import Codec
from agent_memory.kvcache.coding import PLANES, coding, mixed, place
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


def sensitivities(layout: Layout, n_context: int, measure: Callable[[Codec], float]) -> list[Sensitivity]:
    """Return what errors of each tensor cost, the others exact, on a text with ``n_context`` tokens of context.

    ``measure`` returns what a codec costs on it, in nats a token. Tensors that get the same bits can only be measured
    together: each is charged an equal share.
    """
    of_window = {spec.name for spec in layout.windows}
    found = []
    for alike in probed(layout):
        kl = measure(mixed({spec.name: PROBE_BITS for spec in alike})) / len(alike)
        for spec in alike:
            n_rows = min(n_context, layout.window) if spec.name in of_window else n_context
            found.append(Sensitivity(spec, kl, n_rows))
    return found


def probed(layout: Layout) -> list[list[TensorSpec]]:
    """Return the tensors that a codec can encode, those together that a mixed codec gives the same bits."""
    by_place: dict[int, list[TensorSpec]] = {}
    for spec in codable(layout):
        by_place.setdefault(place(spec.name), []).append(spec)
    return list(by_place.values())


def bits_of(found: Sequence[Sensitivity], codec: Codec) -> dict[str, int]:
    """Return the bits that a codec gives each tensor; 0: exact."""
    made = {one.spec.name: coding(one.spec, codec) for one in found}
    return {name: 0 if form is None else form.bits for name, form in made.items()}


def n_bytes(found: Sequence[Sensitivity], codec: Codec) -> int:
    """Return the bytes of all rows under a codec."""
    made = [(one, coding(one.spec, codec)) for one in found]
    return sum(
        one.n_rows * one.spec.heads * (one.spec.row_bytes if form is None else form.row_bytes) for one, form in made
    )


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
    by_place: dict[int, list[Sensitivity]] = {}
    for one in found:
        by_place.setdefault(place(one.spec.name), []).append(one)
    levels = [_Levels.of(alike) for alike in by_place.values()]
    at = [0] * len(levels)
    cost = sum(each.costs[0] for each in levels)
    heap = [(-each.gains[0], number) for number, each in enumerate(levels) if each.gains]
    heapq.heapify(heap)
    while cost > budget and heap:
        _, number = heapq.heappop(heap)
        each = levels[number]
        cost -= each.costs[at[number]] - each.costs[at[number] + 1]
        at[number] += 1
        if at[number] < len(each.gains):
            heapq.heappush(heap, (-each.gains[at[number]], number))
    chosen = {where: each.bits[k] for where, each, k in zip(by_place, levels, at, strict=True)}
    return {one.spec.name: chosen[place(one.spec.name)] for one in found}


@frozen
class _Levels:
    """The numbers of bits worth choosing among, from coarse to fine: what each costs, and each step up gains per byte.

    Of tensors that get the same bits.
    """

    bits: tuple[int, ...]
    costs: tuple[float, ...]
    gains: tuple[float, ...]

    @classmethod
    def of(cls, alike: Sequence[Sensitivity]) -> _Levels:
        """Leave out what costs no fewer bytes than a finer one, and what lies above the line between its neighbours."""
        size = {b: sum(one.bytes_at(b) for one in alike) for b in LEVELS}
        cost = {b: sum(one.kl_at(b) for one in alike) for b in LEVELS}

        def slope(coarse: int, fine: int) -> float:
            return (cost[coarse] - cost[fine]) / (size[fine] - size[coarse])

        kept: list[int] = []
        for b in [*(b for b in LEVELS if b and size[b] < size[0]), 0]:
            while len(kept) > 1 and slope(kept[-2], kept[-1]) < slope(kept[-1], b):
                kept.pop()
            kept.append(b)
        gains = tuple(slope(a, b) for a, b in zip(kept, kept[1:], strict=False))
        return cls(tuple(kept), tuple(cost[b] for b in kept), gains)


def merged(*texts: Sequence[Sensitivity]) -> list[Sensitivity]:
    """Return the mean sensitivities of several texts, of the same tensors in the same order."""
    return [attrs.evolve(each[0], kl=sum(one.kl for one in each) / len(each)) for each in zip(*texts, strict=True)]

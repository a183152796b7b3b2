"""``Memory.choose_codec()``: measures what errors of each tensor cost, and gives each the bits that pay most."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from attrs import frozen

from agent_memory.config import Codec, auto_codec
from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.kvcache.choosing import Sensitivity, allot, bits_of, codable, merged, n_bytes, probed, sensitivities
from agent_memory.kvcache.coding import fallbacks, mixed
from agent_memory.kvcache.layout import Layout
from agent_memory.observe.codec_quality import CONTEXT_SHARE, LEAST_TOKENS, CodecReport, report
from agent_memory.progress import Progress, silent
from agent_memory.protocols import Divergence, ModelRunner
from agent_memory.scheduler.engine import Engine
from agent_memory.views.page import Note, Page, Shown, Table
from agent_memory.views.units import count

#: Tokens of a window of text: 768 of context and 256 that are compared.
WINDOW_TOKENS = 1024
#: Windows that the choice is made on, and as many that it is checked on.
MOST_WINDOWS = 2
_TRIES = 6
_CLOSE_ENOUGH = 0.9  #: of the budget: a better allotment saves a few hundredths of a bit
_Measure = Callable[[Sequence[int], Codec], Divergence]


@frozen(kw_only=True)
class CodecChoice(Shown):
    """A mixed codec: fewest bytes within a budget of KL, chosen on some texts and checked on others."""

    codec: Codec  #: its name: for ``Config(cold_codec=, warm_codec=)``, ``export(codec=)`` and ``measure_codec``
    setting: str  #: "auto:0.002": what ``Config.cold_codec`` finds it by, in this store
    budget: float  #: nats a token
    kl: float  #: measured on the texts that it was chosen on; at most ``budget``
    checked: CodecReport  #: on the other texts
    bits: Mapping[str, int]  #: by tensor, as "012.k"; 0: exact
    #: nats a token, by tensor, with that tensor alone at 4 bits; those that get the same bits share what they cost
    sensitivity: Mapping[str, float]

    def __repr__(self) -> str:
        return (
            f"CodecChoice({self.setting}: {self.checked.bits_per_value:.2f} bits, {self.checked.ratio:.2f}x smaller, "
            f"KL {self.kl:.2g}, and {self.checked.kl:.2g} on text that it was not chosen on)"
        )

    def _page(self) -> Page:
        rows = [
            ("bits per value", f"{self.checked.bits_per_value:.2f}"),
            ("smaller than exact", f"{self.checked.ratio:.2f} times"),
            ("divergence, chosen on", f"{self.kl:.2g} nats a token"),
            ("divergence, checked on", f"{self.checked.kl:.2g} nats a token"),
        ]
        layers = sorted({name.rpartition(".")[0] for name in self.bits})
        shown = [(layer, *(_bits(self.bits.get(f"{layer}.{part}")) for part in "kv")) for layer in layers]
        table = Table(shown, head=("layer", "bits of keys", "bits of values"))
        title = f"Codec for {self.setting}, checked over {count(self.checked.n_tokens, 'token')}"
        return Page(title, [Table(rows), table, Note(self.codec)])


def _bits(n: int | None) -> str:
    return "" if n is None else f"{n}" if n else "exact"


def choose(
    engine: Engine,
    runner: ModelRunner,
    chunk_tokens: int,
    kl: object,
    texts: Sequence[Sequence[int]],
    progress: Progress = silent,
) -> CodecChoice:
    """Return the choice for a budget of ``kl``, on texts as ids; see ``Memory.choose_codec``."""
    budget = _budget(kl)
    layout = runner.layout
    if not layout.is_storable:
        raise UnsupportedParameterError(f"KV of this model is not stored: {layout.unstored[0]}")
    if not codable(layout):
        raise UnsupportedParameterError(f"every codec leaves all KV of {runner.name} exact; there is nothing to choose")
    tuned, checked = _windows(texts, min(WINDOW_TOKENS, runner.context_tokens or WINDOW_TOKENS))
    batch = engine.call(lambda: runner.open_batch(chunk_tokens))

    def measure(ids: Sequence[int], codec: Codec) -> Divergence:
        return engine.call(lambda: batch.measure(ids, int(len(ids) * CONTEXT_SHARE), codec))

    try:
        found = merged(*[_sensitivities(layout, measure, tuned, number, progress) for number in range(len(tuned))])
        codec, reached = _within(budget, found, lambda codec: _mean([measure(ids, codec) for ids in tuned]))
        told = report(codec, [measure(ids, codec) for ids in checked], fallbacks(layout, codec))
    finally:
        engine.call(batch.close)
    return CodecChoice(
        codec=codec,
        setting=auto_codec(budget),
        budget=budget,
        kl=reached,
        checked=told,
        bits=bits_of(found, codec),
        sensitivity={one.spec.name: one.kl for one in found},
    )


def _budget(kl: object) -> float:
    if isinstance(kl, bool) or not isinstance(kl, (int, float)) or not 0 < kl <= sys.float_info.max:
        raise UnsupportedParameterError(f"kl must be a finite number above 0, in nats a token: got {repr_of(kl)}")
    return float(kl)


def _windows(texts: Sequence[Sequence[int]], size: int) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Cut texts into windows, and deal them out: to choose on, and to check on."""
    found = [window for ids in texts for window in _cut(ids, size)]
    if len(found) == 1:
        [only] = found
        half = (len(only) + 1) // 2
        found = [only[:half], [only[0], *only[half:]]]
    if not found or min(map(len, found)) < LEAST_TOKENS:
        shortest = min(map(len, found), default=0)
        raise UnsupportedParameterError(
            f"{shortest} tokens say nothing: give texts of {2 * LEAST_TOKENS} tokens or more, as long as your prompts"
        )
    return found[0::2][:MOST_WINDOWS], found[1::2][:MOST_WINDOWS]


def _cut(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield windows, each with its text's first id: models read the first token otherwise than all others."""
    yield ids[:size]
    for start in range(size, len(ids), size - 1):
        if len(ids) - start >= size // 4:
            yield [ids[0], *ids[start : start + size - 1]]


def _sensitivities(
    layout: Layout, measure: _Measure, windows: Sequence[Sequence[int]], number: int, progress: Progress
) -> list[Sensitivity]:
    """Measure the cost of each tensor's errors on one window, the others exact."""
    ids, probes = windows[number], probed(layout)
    names = iter(alike[0].name for alike in probes)
    done = itertools.count(number * len(probes))

    def cost(codec: Codec) -> float:
        progress(next(done), len(windows) * len(probes), next(names))
        return _mean([measure(ids, codec)])

    return sensitivities(layout, int(len(ids) * CONTEXT_SHARE), cost)


def _within(budget: float, found: Sequence[Sensitivity], measure: Callable[[Codec], float]) -> tuple[Codec, float]:
    """Return the mixed codec of fewest bytes found whose measured cost is within the budget, and that cost.

    Costs of tensors do not quite add up: the allotment for a budget is measured, and the budget given to the next one
    is corrected by what came out.
    """
    best: tuple[int, Codec, float] | None = None
    aim = budget
    for _ in range(_TRIES):
        codec = mixed(allot(found, aim))
        kl, size = measure(codec), n_bytes(found, codec)
        if kl <= budget and (best is None or size < best[0]):
            best = (size, codec, kl)
        if _CLOSE_ENOUGH * budget <= kl <= budget:
            break
        aim *= min(max(0.97 * budget / kl, 0.1), 10.0) if kl > 0 else 10.0
    if best is None:
        codec = mixed({one.spec.name: 0 for one in found})
        return codec, measure(codec)
    return best[1], best[2]


def _mean(found: Sequence[Divergence]) -> float:
    return sum(one.kl for one in found) / sum(one.n_tokens for one in found)

"""Drafting: whether a decode step verifies several tokens of its rows, and how many."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from agent_memory.protocols import Batch, Tokenizer
from agent_memory.scheduler.row import Row

#: Rows that are verified together; more rows share a step well enough.
_MOST_ROWS = 4
#: Ids fed for each row, its next one included.
_WIDTHS = (2, 3, 4, 6, 8, 12, 16)
#: What a step costs more each time that the number of its ids doubles, in steps of a single id, as long as it waits for
#: memory: on two quiet cores, decoding 1, 2, 4 and 8 rows of the starter model took 39, 53, 62 and 74 ms.
_DOUBLING = 0.3
#: What each further id costs where computing is what takes the time: by ``benchmarks/lookup.py --steps`` (CPU time, one
#: BLAS thread, load) 4, 8, 16, 32 and 64 ids cost 1.2, 1.5, 2.1, 2.9 and 5.4 steps, .06 to .08 an id. On GPUs a small
#: number of ids costs next to nothing.
_EACH = 0.07
#: Least expected gain of a verified step: the time of the single steps that it saves, over its own.
_LEAST_GAIN = 1.1
#: Verified steps after which the gain is judged, and ids for which verifying then pauses; twice as many each time.
_JUDGED, _PAUSE, _LONGEST_PAUSE = 16, 256, 8192


class Drafting:
    """Chooses between a single step and a verified one. Engine thread only.

    - A step is verified where the single steps that it is expected to save (``saved``), by the shares of right ids so
      far, outweigh its cost. Each row goes on as far as its own draft is right; one without a draft, by one id.
    - Rows with ``exact=True``, with logits processors or a repetition penalty take single steps.
    - The width depends on the ids alone; what the steps took in fact is a brake: where verifying has cost more time
      than it saved, it pauses, and is tried again later.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ends = tokenizer.eos_ids
        self._brake = Brake()

    def step(self, batch: Batch, group: int, rows: Sequence[Row]) -> list[tuple[int, int]]:
        """Run one decode step of a group, as ``Batch.step`` does, or several at once."""
        if self._may_draft(batch, group, rows):
            known = batch.ahead(group)
            self._brake.interrupt()
            for row in rows:
                self._draft(row, *known[row.number])
            if width := self._width(rows):
                return self._verify(batch, group, rows, width)
        began = time.perf_counter()
        tokens = batch.step(group)
        self._brake.stepped(len(rows), time.perf_counter() - began)
        return tokens

    def _may_draft(self, batch: Batch, group: int, rows: Sequence[Row]) -> bool:
        """True if it is worth waiting for the ids that are fed next: single steps are built while the last one runs."""
        if len(rows) > _MOST_ROWS or any(row.request.is_exact for row in rows) or not batch.can_verify(group):
            return False
        if self._brake.is_on:
            return False
        for row in rows:
            row.draft.follow(row.output)
            row.draft.look(_WIDTHS[-1])
        return any(row.request.constraint is not None for row in rows) or self._width(rows, 1) > 0

    def _draft(self, row: Row, token: int, is_given: bool) -> None:
        """Make a row's draft of what follows ``token``."""
        output = row.output if is_given else [*row.output, token]
        n_ids = max(0, min(_WIDTHS[-1] - 1, row.max_tokens - len(output))) if token not in self._ends else 0
        row.draft.follow(output)
        row.draft.look(n_ids)
        row.draft.force(row.request.constraint, token, n_ids)
        row.draft.cut(n_ids, self._ends)

    def _width(self, rows: Sequence[Row], n_fed: int = 0) -> int:
        """Return the ids to feed for each row, with the best expected gain; 0 for a single step.

        ``n_fed``: how many of the drafts' ids are the next ones themselves.
        """
        chances = [row.draft.chances[n_fed:] for row in rows]
        longest, best, best_gain = 1 + max(map(len, chances)), 0, _LEAST_GAIN
        for width in _WIDTHS:
            width = min(width, longest)
            if width < 2:
                break
            n_steps = 1 + saved([sum(one[: width - 1]) for one in chances])
            gain = n_steps * cost(len(rows)) / cost(len(rows) * width)
            if gain > best_gain:
                best, best_gain = width, gain
        return best

    def _verify(self, batch: Batch, group: int, rows: Sequence[Row], width: int) -> list[tuple[int, int]]:
        for row in rows:
            row.draft.cut(width - 1, self._ends)
        given = {number: is_given for number, (_, is_given) in batch.ahead(group).items()}
        began = time.perf_counter()
        tokens = batch.verify(group, {row.number: row.draft.ids for row in rows})
        seconds, right = time.perf_counter() - began, list[int]()
        for row in rows:
            own = sum(number == row.number for number, _ in tokens) - (not given[row.number])
            row.draft.verified(own)
            right.append(own)
        self._brake.verified(len(rows), seconds, 1 + saved(right))
        return tokens


def cost(n_ids: int) -> float:
    """Return the expected cost of a step with ``n_ids`` ids, in steps of a single id."""
    return 1 + max(_DOUBLING * math.log2(n_ids), _EACH * (n_ids - 1))


def saved(n_right: Sequence[float]) -> float:
    """Return how many later steps of a batch are saved by ids of its rows that are right.

    What every row gains makes the steps fewer. A row that gains alone only ends before the others: the steps after its
    end are as many, and cheaper by its share of them.
    """
    n_rows, least = len(n_right), min(n_right)
    shorter = 1 - cost(n_rows - 1) / cost(n_rows) if n_rows > 1 else 0.0
    return least + shorter * (sum(n_right) - n_rows * least)


class Brake:
    """Ends verifying for a while where it has cost more time than it saved. Pure: told of seconds."""

    def __init__(self) -> None:
        self._step_s: dict[int, float] = {}  # a single step's, by number of rows
        self._is_steady = False  # True if the last step was a single one: only then is the next one's time its own
        self._spent_s = self._saved_s = 0.0
        self._n_verified = self._left = 0
        self._pause = _PAUSE

    @property
    def is_on(self) -> bool:
        """True while verifying pauses."""
        return self._left > 0

    def interrupt(self) -> None:
        """Record that the step under way was waited for: the next one is built while nothing runs."""
        self._is_steady = False

    def stepped(self, n_rows: int, seconds: float) -> None:
        """Record a single step."""
        self._left = max(0, self._left - 1)
        if self._is_steady:
            known = self._step_s.get(n_rows, seconds)
            self._step_s[n_rows] = min(0.9 * known + 0.1 * seconds, 2 * known)  # one that was held up counts little
        self._is_steady = True

    def verified(self, n_rows: int, seconds: float, n_steps: float) -> None:
        """Record a verified step that took the place of ``n_steps`` single ones."""
        self._is_steady = False
        if (step_s := self._step_s.get(n_rows)) is None:
            return
        self._spent_s += seconds
        self._saved_s += n_steps * step_s
        self._n_verified += 1
        if self._n_verified < _JUDGED:
            return
        if self._spent_s > self._saved_s:
            self._left, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        else:
            self._pause = _PAUSE
        self._spent_s = self._saved_s = 0.0
        self._n_verified = 0

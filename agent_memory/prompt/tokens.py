"""Text and ids: which known ids a newly rendered prompt reuses, and text that streams out whole and stops in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.protocols import Tokenizer
from agent_memory.toolcall.marks import Beginnings


def reuse(fresh: Sequence[int], known: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """``fresh`` with the ids of ``known`` wherever the text is equal: same text as ``fresh``, most of ``known`` kept.

    The model's own tokens need not be those that a tokenizer makes of their text, and their KV exists. Both lists are
    split into runs at special ids, which never merge with what surrounds them. A run with equal text keeps the known
    ids; the first run that differs keeps its longest common prefix of ids, and everything after it is fresh. No id is
    ever cut. O(len) time.
    """
    same = n_common(list(fresh), list(known))
    if same in (len(fresh), len(known)):
        return list(fresh)
    specials = tokenizer.special_ids
    start = same
    while start and fresh[start - 1] not in specials:
        start -= 1
    out = list(fresh[:start])
    runs = zip(_runs(fresh, start, specials), _runs(known, start, specials), strict=False)
    at = start
    for (f_start, f_stop), (k_start, k_stop) in runs:
        mine, theirs = list(fresh[f_start:f_stop]), list(known[k_start:k_stop])
        if mine != theirs:
            taken = _exchange(mine, theirs, tokenizer, ends=k_stop == len(known))
            if taken is None:
                break
            mine = taken
        out += mine
        at = f_stop
        if k_stop == len(known):
            break
        if f_stop < len(fresh):
            if fresh[f_stop] != known[k_stop]:
                break
            out.append(fresh[f_stop])
            at = f_stop + 1
    return out + list(fresh[at:])


def _exchange(mine: list[int], theirs: list[int], tokenizer: Tokenizer, *, ends: bool) -> list[int] | None:
    """The known ids for one run of equal text; with ``ends`` (the log stops in this run) its text may go on."""
    wanted, have = tokenizer.key(mine), tokenizer.key(theirs)
    if wanted == have:
        return theirs
    if ends and wanted.startswith(have):
        return _continued(mine, theirs, wanted, tokenizer)
    return None


def _continued(mine: list[int], theirs: list[int], wanted: str, tokenizer: Tokenizer) -> list[int] | None:
    """Return ``theirs`` and ids of the remaining text of ``mine``; None where no ids spell exactly that."""
    whole, begun = tokenizer.decode(mine), tokenizer.decode(theirs)
    made = theirs + tokenizer.encode(whole[len(begun) :])
    if tokenizer.key(made) == wanted and tokenizer.special_ids.isdisjoint(made):
        return made
    # Encoded by itself the rest may get a space that marks a beginning; the fresh ids have none where they part there.
    length, cut = len(tokenizer.key(theirs)), 0
    while length > 0:
        length, cut = length - len(tokenizer.key(mine[cut : cut + 1])), cut + 1
    made = theirs + mine[cut:]
    return made if tokenizer.key(made) == wanted else None


def _runs(ids: Sequence[int], start: int, specials: frozenset[int]) -> Iterator[tuple[int, int]]:
    """Half-open ranges between special ids, from ``start`` on; possibly empty ones."""
    for place in range(start, len(ids)):
        if ids[place] in specials:
            yield start, place
            start = place + 1
    yield start, len(ids)


def n_common(one: str | list[int], other: str | list[int]) -> int:
    """Return the length of the longest common prefix, found by halves: each step is one comparison of memory."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


_MOST_STOP = 10_000  #: characters of a request's stop strings: every beginning of each is kept, n * n / 2 bytes


def check_stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings as a tuple. Raises UnsupportedParameterError for an empty one, one that is no str, and too much."""
    if not isinstance(stop, Sequence) or isinstance(stop, (bytes, bytearray)):
        raise UnsupportedParameterError(f"stop must be a str or a list of them, got {type(stop).__name__}")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for one in stops:
        if not isinstance(one, str) or not one:
            raise UnsupportedParameterError(f"a stop string must be a non-empty str, got {repr_of(one)}")
        if any("\ud800" <= letter <= "\udfff" for letter in one):
            raise UnsupportedParameterError(f"a stop string must be valid Unicode, got {repr_of(one)}")
    if (n_characters := sum(map(len, stops))) > _MOST_STOP:
        raise UnsupportedParameterError(
            f"stop strings may have {_MOST_STOP:,} characters together, got {n_characters:,}. Give their beginnings"
        )
    return stops


class TextStream:
    """Turn a stream of ids into text: whole characters, and no text that may begin a stop string.

    Generation stops where a stop string is completed first; of those completed by the same character the longest
    counts. Its text, and what follows, is never given out, however tokens cut it.
    """

    __slots__ = (
        "_begun", "_decoded", "_detokenizer", "_held", "_ids", "_lens", "_stops", "_tokenizer", "stopped", "text",
    )  # fmt: skip

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, marks: bool = False) -> None:
        self._tokenizer, self._stops, self._begun = tokenizer, tuple(stop), Beginnings(stop)
        self._detokenizer = tokenizer.detokenizer(marks=marks)
        self._ids: list[int] = []
        self._lens: list[int] = []  # characters decoded after each id
        self._decoded = self._held = ""
        self.text = ""  #: everything given out
        self.stopped: str | None = None  #: the stop string that ended the text

    def add(self, token: int) -> str:
        """The text that is safe to give out after one more id."""
        self._ids.append(token)
        text = self._take(self._detokenizer.add(token))
        self._lens.append(len(self._decoded))
        return text

    def end(self) -> str:
        """Return the text kept back so far."""
        text = self._take(self._detokenizer.end())
        if self.stopped is None:
            text, held, self._held = text + self._held, self._held, ""
            self.text += held
        return text

    def kept(self) -> tuple[int, str]:
        """Return the number of ids whose text lies wholly before the stop, and the visible text after them."""
        n_ids = sum(1 for length in self._lens if length <= len(self.text))
        while n_ids:
            before = self.text[: self._lens[n_ids - 1]]
            if self._tokenizer.decode(self._ids[:n_ids]) == before:  # no half character pending after these ids
                return n_ids, self.text[len(before) :]
            n_ids -= 1
        return 0, self.text

    def _take(self, piece: str) -> str:
        """Decoded text in, safe text out; sets ``stopped``."""
        if self.stopped is not None:
            return ""
        self._decoded += piece
        window = self._held + piece
        ends = [(place + len(s), place, s) for s in self._stops if (place := window.find(s)) >= 0]
        if ends:
            _, place, self.stopped = min(ends)
            safe, self._held = window[:place], ""
        else:
            keep = self._begun.held_back(window)
            safe, self._held = window[: len(window) - keep], window[len(window) - keep :]
        self.text += safe
        return safe

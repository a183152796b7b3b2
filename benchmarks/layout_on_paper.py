"""Layouts on paper: what three ways of laying out KV on disk write, keep and read, before any of them is a store.

    python benchmarks/layout_on_paper.py [--agents 5] [--turns 20] [--token-bytes 46080] [--json FILE]

Agents with a common prefix take turns of 20 to 200 tokens; one is forked half-way, another deleted at the end. Bytes
and files are counted; the files of one agent's restore are then really written, filled with random bytes by numpy, and
read into one array each, which gives the milliseconds (page cache warm, medians). ``benchmarks/layout.py`` asks the
same of the real store.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from attrs import define, field
from common import median, timed, write_json

CHUNK, PER_SEGMENT, DELTAS, PREFIX = 256, 8, 16, 512

#: A file: (lineage, first token, one past the last). What two agents share has one lineage: the prefix's.
File = tuple[str, int, int]


#: What a turn does to a folder: (folder, agent, lineage, first new token, one past the last).
Layout = Callable[["Folder", str, str, int, int], None]


@define
class Folder:
    """What a layout has written so far: the files that live, and the tokens of all that was ever written."""

    files: dict[str, list[File]] = field(factory=dict)
    written: int = 0

    def write(self, agent: str, file: File) -> None:
        """A new file of an agent; a common one is written once."""
        if not any(file in files for files in self.files.values()):
            self.written += file[2] - file[1]
        self.files.setdefault(agent, []).append(file)


def whole(folder: Folder, agent: str, lineage: str, start: int, stop: int) -> None:
    """One file an agent, written anew each turn."""
    folder.files[agent] = []
    folder.write(agent, (lineage, 0, stop))


def chunks(folder: Folder, agent: str, lineage: str, start: int, stop: int) -> None:
    """One file a chunk; the unfinished one is written anew each turn."""
    mine = folder.files.setdefault(agent, [])
    mine[:] = [f for f in mine if f[2] % CHUNK == 0]
    for at in range(start // CHUNK * CHUNK, stop, CHUNK):
        folder.write(agent, (_owner(lineage, at + CHUNK), at, min(at + CHUNK, stop)))


def segments(folder: Folder, agent: str, lineage: str, start: int, stop: int) -> None:
    """Segments of up to eight chunks; the unfinished chunk as deltas, folded when it fills, merged at sixteen."""
    mine = folder.files.setdefault(agent, [])
    full = stop // CHUNK * CHUNK
    last = max((f[2] for f in mine if f[2] - f[1] >= CHUNK), default=0)
    if full > last:
        mine[:] = [f for f in mine if f[2] <= last]
        for at in range(last, full, PER_SEGMENT * CHUNK):
            end = min(at + PER_SEGMENT * CHUNK, full)
            folder.write(agent, (_owner(lineage, end), at, end))
        start = full
    deltas = [f for f in mine if f[1] >= max(full, last)]
    if len(deltas) + 1 >= DELTAS:
        mine[:] = [f for f in mine if f not in deltas]
        start = max(full, last)
    if start < stop:
        folder.write(agent, (lineage, start, stop))


def _owner(lineage: str, stop: int) -> str:
    return "prefix" if stop <= PREFIX else lineage


def play(layout: Layout, n_agents: int, n_turns: int) -> tuple[Folder, list[int], int]:
    """All turns, a fork and a deletion; the folder, the tokens written by each turn, and those that were new."""
    rng = np.random.default_rng(1)
    folder, lengths, per_turn, n_new = Folder(), dict.fromkeys((f"agent {n}" for n in range(n_agents)), 0), [], PREFIX
    for turn in range(n_turns):
        for agent in list(lengths):
            before, start = folder.written, lengths[agent]
            n_tokens = int(rng.integers(20, 201))
            n_new += n_tokens
            lengths[agent] += n_tokens + (PREFIX if turn == 0 else 0)
            layout(folder, agent, agent, start, lengths[agent])
            per_turn.append(folder.written - before)
        if turn == n_turns // 2:
            lengths["fork"] = lengths["agent 0"]
            folder.files["fork"] = list(folder.files["agent 0"])
    del folder.files["agent 1"]
    return folder, per_turn, n_new


def restore_ms(files: list[File], token_bytes: int, repeats: int) -> float:
    """Milliseconds to read the files of one agent into memory."""
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{n}.bin" for n in range(len(files))]
        for path, (_, start, stop) in zip(paths, files, strict=True):
            rng.integers(0, 255, (stop - start) * token_bytes, np.uint8).tofile(path)
        return 1e3 * median([timed(lambda: [np.fromfile(path, np.uint8) for path in paths]) for _ in range(repeats)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=5)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--token-bytes", type=int, default=46_080)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = []
    print(f"{'layout':10} {'written / new':>13} {'worst turn MB':>13} {'disk MB':>10} {'files':>6} {'restore ms':>10}")
    for layout in (whole, chunks, segments):
        folder, per_turn, n_new = play(layout, args.agents, args.turns)
        kept = {f for files in folder.files.values() for f in files}
        mega = args.token_bytes / 1e6
        row = {
            "layout": (layout.__doc__ or "").rstrip("."),
            "written / new": round(folder.written / n_new, 2),
            "worst turn MB": round(max(per_turn[args.agents :]) * mega, 1),
            "disk MB": round(sum(f[2] - f[1] for f in kept) * mega, 1),
            "files": len(kept),
            "files of one agent": len(folder.files["agent 0"]),
            "restore ms": round(restore_ms(folder.files["agent 0"], args.token_bytes, args.repeats), 1),
        }
        rows.append(row)
        print(
            f"{layout.__name__:10} {row['written / new']:13.2f} {row['worst turn MB']:13.1f} "
            f"{row['disk MB']:10.1f} {row['files of one agent']:6d} {row['restore ms']:10.1f}"
        )
    write_json(args.json, rows=rows, agents=args.agents, turns=args.turns, token_bytes=args.token_bytes)


if __name__ == "__main__":
    main()

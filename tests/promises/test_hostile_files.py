"""Files that pose as agents: damaged, or forged with right digests. Each ends with a typed error in bounded memory.

After a refusal every byte of the store is as it was. A forged file that says something possible is taken in, and its
agent can be asked: what it says is as trustworthy as who made it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    Agent,
    AgentFileError,
    AgentMemoryError,
    Config,
    ConfigError,
    EchoRunner,
    Memory,
    WrongKeyError,
    open_store,
)
from agent_memory.errors import RequestError
from tests.parts.agentfile import HEAD, Piece, broken, forged, framed, parts, sealed

CONFIG = Config(chunk_tokens=16, prefill_tokens=16)
SYSTEM = "Answer with what you heard. " * 60


def opened(path: Path) -> Memory:
    return Memory(EchoRunner(layers=1, heads=2, dim=64), path, config=CONFIG)


def exported(folder: Path, key: bytes | None = None) -> bytes:
    """An agent's file, of some 500 KB."""
    with opened(folder / "from") as memory:
        agent = memory.agent("a", system=SYSTEM)
        for text in ("one", "two"):
            agent.say(text)
        agent.checkpoint("two said")
        agent.rewind()
        agent.say("other")
        agent.export(folder / "a.agent", key=key)
    return (folder / "a.agent").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Tries:
    """Gives files to one store, and watches what becomes of it."""

    def __init__(self, folder: Path, key: bytes | None = None) -> None:
        self.key = key
        self.file, self.folder = folder / "tried", folder / "store"
        self.memory = opened(self.folder)
        self.memory.agent("b", system="Be brief.").say("hello")
        self.memory.flush()
        self.before = contents(self.folder)
        self.counts: Counter[str] = Counter()
        self.worst = 0.0  #: peak of allocated memory, in file sizes

    def give(self, raw: bytes) -> str:
        """The name of the error, or "taken"."""
        self.file.write_bytes(raw)
        tracemalloc.reset_peak()
        start, _ = tracemalloc.get_traced_memory()
        refusal, agent = self._imported()
        if agent is None:
            peak = tracemalloc.get_traced_memory()[1] - start
            self.worst = max(self.worst, peak / max(len(raw), 100_000))
            assert contents(self.folder) == self.before, refusal
        else:
            with contextlib.suppress(RequestError):
                agent.say("hello", max_tokens=2)
            agent.delete()
            self.memory.flush()
            self.before = contents(self.folder)
        self.counts[refusal] += 1
        return refusal

    def _imported(self) -> tuple[str, Agent | None]:
        try:
            return "taken", self.memory.import_agent(self.file, key=self.key)
        except (AgentFileError, ConfigError, WrongKeyError) as error:
            return type(error).__name__, None


def attack(folder: Path, n: int, seed: int) -> Tries:
    raw, rng = exported(folder), random.Random(seed)
    return attacked(Tries(folder), raw, n, lambda number: broken(raw, rng) if number % 2 else forged(raw, rng))


def attacked(tries: Tries, raw: bytes, n: int, change: Callable[[int], bytes]) -> Tries:
    """Give ``n`` changed files; those of odd numbers are damaged, and must not be taken."""
    tracemalloc.start()
    try:
        for number in range(n):
            changed = change(number)
            if changed == raw:
                continue
            found = tries.give(changed)
            assert found != "taken" or not number % 2, f"a damaged file was taken, number {number}"
    finally:
        tracemalloc.stop()
    assert tries.memory.agent("b").say("again").usage.miss is None
    assert tries.memory.verify().ok
    tries.memory.close()
    return tries


def test_200_damaged_and_forged_files_end_with_typed_errors_in_bounded_memory(tmp_path: Path) -> None:
    tries = attack(tmp_path, 200, 0)
    assert tries.counts["AgentFileError"] > 150
    assert tries.worst <= 2.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_5000_damaged_and_forged_files_end_with_typed_errors_in_bounded_memory(seed: int, tmp_path: Path) -> None:
    tries = attack(tmp_path, 1_000, seed)
    print(dict(tries.counts), f"peak / file size: {tries.worst:.2f}")
    assert tries.counts["AgentFileError"] > 750
    assert tries.worst <= 2.0


def test_every_cut_and_every_flipped_byte_of_a_log_is_found(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path / "from") as memory:
        agent = memory.agent("a")
        agent.say("one")
        agent.export(tmp_path / "a.agent", log_only=True)
    raw = (tmp_path / "a.agent").read_bytes()
    with opened(tmp_path / "store") as memory:
        before = contents(tmp_path / "store")
        for at in range(0, len(raw), 3):
            for changed in (raw[:at], raw[:at] + bytes([raw[at] ^ 0x20]) + raw[at + 1 :]):
                (tmp_path / "b.agent").write_bytes(changed)
                with pytest.raises(AgentFileError):
                    memory.import_agent(tmp_path / "b.agent")
        assert contents(tmp_path / "store") == before


def _with(raw: bytes, kind: str, number: int = 0, **facts: Any) -> bytes:
    found = parts(raw)
    one = [piece for piece in found if piece.kind == kind][number]
    one.facts |= facts
    return sealed(found)


def _body(raw: bytes, kind: str, change: Any) -> bytes:
    found = parts(raw)
    one = next(piece for piece in found if piece.kind == kind)
    one.body = change(one.body)
    return sealed(found)


def _named(raw: bytes, name: str) -> bytes:
    return _body(raw, "agent", lambda body: json.dumps({**json.loads(body), "name": name}).encode())


def _deep(raw: bytes) -> bytes:
    return _body(raw, "agent", lambda body: b'{"name":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


def _wide(raw: bytes) -> bytes:
    return _body(raw, "agent", lambda body: b"[" + b"{}," * 200_000 + b"{}]")


def _deep_arguments(raw: bytes) -> bytes:
    found = parts(raw)
    turn = next(piece for piece in found if piece.kind == "turn")
    n_ids = 4 * turn.facts["n_ids"]
    call = '[{"role":"assistant","content":"","tool_calls":[{"name":"f","id":"1","arguments":{"a":%s}}]}]'
    turn.body = (call % ("[" * 5_000 + "]" * 5_000)).encode() + turn.body[len(turn.body) - n_ids :]
    return sealed(found)


def _cycle(raw: bytes) -> bytes:
    """The first rows follow the last ones."""
    found = parts(raw)
    rows = [piece for piece in found if piece.kind == "rows"]
    rows[0].facts |= {"parent": [len(rows) - 1, 0], "start": rows[-1].facts["start"]}
    return sealed(found)


def _big_ids(raw: bytes) -> bytes:
    found = parts(raw)
    turn = next(piece for piece in found if piece.kind == "turn")
    turn.body = turn.body[:-4] + struct.pack("<I", 0xFFFFFFFF)
    return sealed(found)


def _giant_head(raw: bytes) -> bytes:
    return raw[:HEAD] + framed(b"{}", b"", n_head=0xFFFFFFFF) + bytes(64)


def _giant_body(raw: bytes) -> bytes:
    return raw[:HEAD] + framed(b'{"part":"agent"}', b"", n_body=0xFFFFFFFFFFFFFFFF) + bytes(64)


def _many_parts(raw: bytes) -> bytes:
    found = parts(raw)
    branch = next(at for at, piece in enumerate(found) if piece.kind == "branch")
    return sealed([*found[:branch], *[Piece({"part": "branch", "base": None, "start": 0}, b"")] * 70_000])


def _half_body(raw: bytes) -> bytes:
    found = parts(raw)
    rows = next(piece for piece in found if piece.kind == "rows")
    rows.body = rows.body[: len(rows.body) // 2]
    return sealed(found)


def _orphan(raw: bytes) -> bytes:
    found = parts(raw)
    after = next(at for at, piece in enumerate(found) if piece.kind == "version")
    return sealed([*found[:after], Piece({"part": "branch", "base": None, "start": 0}, b""), *found[after:]])


HOSTILE = {
    "deep JSON": _deep,
    "wide JSON": _wide,
    "deep arguments": _deep_arguments,
    "a cycle of pieces": _cycle,
    "rows that follow themselves": lambda raw: _with(raw, "rows", 1, parent=[1, 0]),
    "rows that follow rows behind them": lambda raw: _with(raw, "rows", 1, parent=[2, 0]),
    "a branch that leaves itself": lambda raw: _with(raw, "branch", 1, base=1),
    "ids that no model has": _big_ids,
    "a giant header": _giant_head,
    "a giant body": _giant_body,
    "many parts": _many_parts,
    "half a body": _half_body,
    "a lying number of tokens": lambda raw: _with(raw, "rows", 0, n_tokens=1 << 30),
    "a lying number of ids": lambda raw: _with(raw, "turn", 0, n_ids=1 << 40),
    "a lossy codec that poses as exact": lambda raw: _with(raw, "rows", 0, codec="q4"),
    "an unknown part": lambda raw: sealed([*parts(raw), Piece({"part": "exec"}, b"rm")]),
    "a newer version": lambda raw: sealed(parts(raw), version=3),
    "a version that poses as sealed": lambda raw: sealed(parts(raw), version=2),
    "a lying end": lambda raw: sealed(parts(raw), end={"sha256": "0" * 64}),
    "bytes behind the end": lambda raw: raw + b"more",
    "a branch of nobody": _orphan,
    "an empty name": lambda raw: _body(
        raw, "agent", lambda body: json.dumps({**json.loads(body), "name": ""}).encode()
    ),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_file_is_refused_and_touches_nothing(how: str, tmp_path: Path) -> None:
    raw = exported(tmp_path)
    changed = HOSTILE[how](raw)
    tries = Tries(tmp_path)
    tracemalloc.start()
    try:
        assert tries.give(changed) == "AgentFileError"
    finally:
        tracemalloc.stop()
    assert tries.worst <= 2.0
    tries.memory.close()


def test_values_that_sqlite_changes_are_stored_as_it_gives_them_back(tmp_path: Path) -> None:
    """A negative zero comes back as zero, and a checksum over it would then be wrong."""
    found = parts(exported(tmp_path))
    for piece in found:
        if piece.kind in ("turn", "version"):
            piece.facts["created_s"] = -0.0
        if piece.kind == "agent":
            piece.body = json.dumps({**json.loads(piece.body), "created_s": -0.0, "used_s": -0.0}).encode()
    (tmp_path / "b.agent").write_bytes(sealed(found))
    with opened(tmp_path / "store") as memory:
        assert memory.import_agent(tmp_path / "b.agent").info.n_turns == 2
        assert memory.verify().ok
    with opened(tmp_path / "store") as memory:
        assert [version.created_s for version in memory.agent("a").history()] == [0.0]


def test_a_name_that_looks_like_a_path_is_a_name_and_no_path(tmp_path: Path) -> None:
    name = "../../../" + str(tmp_path / "outside")
    raw = _named(exported(tmp_path), name)
    (tmp_path / "b.agent").write_bytes(raw)
    with opened(tmp_path / "store") as memory:
        assert memory.import_agent(tmp_path / "b.agent").name == name
        memory.flush()
        assert memory.verify().strangers == ()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.agent", "b.agent", "from", "store"]


KILLED = """
import os, sys
from agent_memory.log.files import Files
from tests.promises.test_hostile_files import opened
from tests.parts.breaking import CHANGES
from pathlib import Path

left = int(sys.argv[2])

def dying(name):
    real = getattr(Files, name)
    def call(self, *given):
        global left
        if armed:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), 9)
        return real(self, *given)
    return call

armed = False
for name in CHANGES:
    setattr(Files, name, dying(name))
memory = opened(Path(sys.argv[1]) / "store")
armed = True
memory.import_agent(Path(sys.argv[1]) / "a.agent")
armed = False
print(int(sys.argv[2]) - left)
memory.close()
"""


def killed(folder: Path, at: int) -> int | None:
    """Import in a process that is killed before its change number ``at`` of the disk; None, or the changes it made."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(at)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode in (0, -9), done.stderr
    return int(done.stdout) if done.returncode == 0 else None


def is_whole_or_as_before(folder: Path, before: set[str]) -> bool:
    """True if the agent is there with all of its KV; else nothing of it is."""
    with opened(folder / "store") as memory:
        assert memory.verify().ok
        names = {info.name for info in memory.agents()}
        files = {str(file) for file in (folder / "store").rglob("*.safetensors")}
        if "a" not in names:
            assert (names, files) == ({"b"}, before)
            return False
        usage = memory.agent("a").say("And now?").usage
        assert (usage.miss, usage.computed_tokens < 32) == (None, True)
        return True


def kills(folder: Path, points: Iterable[int]) -> list[bool]:
    exported(folder)
    with opened(folder / "store") as memory:
        memory.agent("b", system="Be brief.").say("hello")
    before = {str(file) for file in (folder / "store").rglob("*.safetensors")}
    clean = contents(folder / "store")
    n_changes = killed(folder, 1_000_000) or 0
    assert n_changes > 10
    found = []
    for at in (point for point in points if point <= n_changes):
        for file in (folder / "store").rglob("*"):
            if file.is_file() and str(file.relative_to(folder / "store")) not in clean:
                file.unlink()
        for name, raw in clean.items():
            (folder / "store" / name).write_bytes(raw)
        is_done = killed(folder, at if at > 0 else n_changes + at) is not None  # what follows the commit may vary
        found.append(is_whole_or_as_before(folder, before))
        assert found[-1] or not is_done
    return found


def test_kill_9_in_mid_import_leaves_the_store_as_before_or_whole(tmp_path: Path) -> None:
    found = kills(tmp_path, [1, 12, -2])
    assert not found[0]
    assert found == sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_kill_9_before_each_change_of_the_disk_leaves_the_store_as_before_or_whole(part: int, tmp_path: Path) -> None:
    found = kills(tmp_path, range(1 + part, 1_000, 4))
    assert found == sorted(found)
    print(f"{len(found)} kills, {sum(found)} after the commit")


def test_kill_9_in_mid_export_leaves_the_former_file(tmp_path: Path) -> None:
    former = exported(tmp_path)
    code = KILLED[: KILLED.index("memory = opened")] + (
        "memory = opened(Path(sys.argv[1]) / 'from')\nmemory.agent('a').say('more')\nmemory.flush()\n"
        "armed = True\nmemory.agent('a').export(Path(sys.argv[1]) / 'a.agent')\n"
    )
    for at in (2, 20):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(at)], check=False, timeout=120)
        assert done.returncode == -9
        assert (tmp_path / "a.agent").read_bytes() == former
    with open_store(tmp_path / "from") as view:
        assert view.verify().ok


def test_a_view_refuses_no_less(tmp_path: Path) -> None:
    """Errors of a view's export are the library's own."""
    exported(tmp_path)
    with open_store(tmp_path / "from") as view, pytest.raises(AgentMemoryError):
        view.export("a", tmp_path / "no folder" / "a.agent")
    assert os.listdir(tmp_path) != []


def _turn_of(raw: bytes, source: str, *, is_first: bool = False) -> bytes:
    """An agent whose user messages say that a group has asked them, or that they are a group's events."""
    found = parts(raw)
    for piece in found:
        if piece.kind == "agent" and is_first:
            piece.body = json.dumps({**json.loads(piece.body), "system": None}).encode()
        if piece.kind == "turn":
            at = len(piece.body) - 4 * piece.facts["n_ids"]
            told = json.loads(piece.body[:at])
            for message in told:
                message |= {"source": source} if message["role"] == "user" else {}
            piece.facts |= {"n_messages_kept": piece.facts["n_messages_kept"] - 1} if is_first else {}
            piece.body = json.dumps(told).encode() + piece.body[at:]
    return sealed(found)


@pytest.mark.parametrize(
    "told", ["{", "[]", '{"group":"team","heard":"x","number":7}', '{"group":"team","heard":9999,"number":7,"z":1}']
)
def test_no_file_speaks_for_a_member_of_a_group(told: str, tmp_path: Path) -> None:
    (tmp_path / "b.agent").write_bytes(_turn_of(exported(tmp_path), f"group turn {told}"))
    with opened(tmp_path / "store") as memory:
        memory.import_agent(tmp_path / "b.agent")
        memory.agent("b")
        group = memory.group("team", ["a", "b"])
        group.say("Welcome.")
        assert set(group.round(max_tokens=2)) == {"a", "b"}
        assert [one.speaker for one in group.transcript] == [None, "a", "b"]
        assert "Welcome." in group.member("a").messages[-2].content


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "[]",
        '{"kind":"group"}',
        '{"kind":"rule","zz":1}',
        '{"kind":"group","more":{"members":[1],"topology":"round","phases":[]}}',
        '{"kind":"group","more":{"members":["b"],"topology":"round","phases":[[1]]}}',
    ],
)
def test_no_file_is_taken_for_a_groups_log_that_cannot_be_read(told: str, tmp_path: Path) -> None:
    raw = _turn_of(exported(tmp_path), f"group event {told}", is_first=True)
    (tmp_path / "b.agent").write_bytes(raw)
    with opened(tmp_path / "store") as memory:
        agent = memory.import_agent(tmp_path / "b.agent", name="team/")
        memory.agent("b")
        agent.say("hello", max_tokens=2)
        with pytest.raises(ConfigError, match="is no group"):
            memory.group("team", ["b"])


def test_a_store_in_memory_refuses_what_a_store_on_disk_does(tmp_path: Path) -> None:
    """It takes no KV in, and names of pieces that are not there are wrong all the same."""
    resume = Piece({"part": "resume", "piece": [99, 0], "n_rows": 1, "has_state": False, "codec": "exact"}, b"x")
    found = [piece for piece in parts(exported(tmp_path)) if piece.kind in ("agent", "branch", "turn", "model")]
    (tmp_path / "b.agent").write_bytes(sealed([*found, resume]))
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(AgentFileError, match="not there"):
        memory.import_agent(tmp_path / "b.agent")

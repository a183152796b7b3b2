"""Memory(read_only=True): a store that another process writes, looked at and spoken to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    Agent,
    Config,
    ConfigError,
    EchoRunner,
    IncompatibleStoreError,
    Memory,
    ReadOnlyError,
    StoreError,
    ToolResult,
)
from tests.reader.test_view import files

SMALL = Config(chunk_tokens=16, prefill_tokens=64)
BRIEF = "You keep the tools of a village. " * 20


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fill(tmp_path / "store")
    return tmp_path / "store"


def fill(folder: Path) -> None:
    with Memory(EchoRunner(), folder, config=SMALL) as memory:
        for name in ("ann", "bob"):
            memory.agent(name, system=BRIEF).say(f"I am {name}.")
        memory.agent("ann").checkpoint("start")


def reader(folder: Path, runner: EchoRunner | None = None) -> Memory:
    return Memory(runner or EchoRunner(), folder, config=SMALL, read_only=True)


def test_it_lists_shows_explains_and_generates_from_committed_kv_beside_the_writer(store: Path) -> None:
    with Memory(EchoRunner(), store, config=SMALL) as writer:
        before = files(store)
        runner = EchoRunner()
        with reader(store, runner) as memory:
            assert {info.name: info.n_checkpoints for info in memory.agents()} == {"ann": 1, "bob": 0}
            assert writer.agent("ann").info.n_checkpoints == 1
            ann = memory.agent("ann")
            assert [message.role for message in ann.messages] == ["system", "user", "assistant"]
            assert [version.label for version in ann.history()] == ["start"]
            assert ann.at("start").messages == ann.messages
            assert sum(ann.explain().reusable.values()) > 0
            fork = ann.fork("ann, aside", temporary=True)
            reply = fork.say("Who am I?")
            assert (reply.text, reply.usage.tier, reply.usage.exactness) == ("Who am I?", "cold", "exact")
            assert reply.usage.cached_tokens > reply.usage.computed_tokens
            told = [{"role": m.role, "content": m.content} for m in memory.agent("bob").messages]
            plain = memory.generate([*told, {"role": "user", "content": "And I?"}])
            assert plain.usage.cached_tokens > plain.usage.computed_tokens
            assert fork.say("Again.").usage.tier == "hot"
            assert runner.calls.computed < 150
            memory.evict()
            memory.flush()
            assert memory.verify().ok
        assert files(store) == before
        assert len(writer.agent("ann").messages) == 3


def test_it_sees_each_turn_once_that_is_committed(store: Path) -> None:
    with Memory(EchoRunner(), store, config=SMALL) as writer, reader(store) as memory:
        memory.agent("ann").fork("one", temporary=True).say("x")
        writer.agent("ann").say("A longer turn than the others, which fills a chunk or two of the lineage's tail.")
        writer.flush()
        ann = memory.agent("ann")
        assert len(ann.messages) == 5
        usage = ann.fork("two", temporary=True).say("y").usage
        assert usage.cached_tokens > usage.computed_tokens
        assert usage.tier == "cold"
        assert {info.name: info.n_turns for info in memory.agents()}["ann"] == 2
        writer.agent("eve")
        assert "eve" in {info.name for info in memory.agents()}


def test_what_the_writer_has_removed_is_a_miss_and_no_damage(store: Path) -> None:
    with Memory(EchoRunner(), store, config=SMALL) as writer, reader(store) as memory:
        ann = memory.agent("ann")
        with contextlib.suppress(FileNotFoundError):
            for file in (store / "kv").rglob("*.safetensors"):
                file.unlink()  # before the commit that the writer would make first, which is the reader's worst case
        usage = ann.fork("one", temporary=True).say("x").usage
        assert usage.cached_tokens == 0
        assert usage.miss is not None
        assert memory.stats().damage == 0
        writer.delete("ann")
        usage = ann.fork("two", temporary=True).say("x").usage
        assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
        with pytest.raises(ReadOnlyError):
            memory.agent("ann")


def ping() -> str:
    """Answer."""
    return "pong"


def write_calls(memory: Memory, ann: Agent) -> dict[str, Callable[[], Any]]:
    def block() -> None:
        with ann.transaction():
            pass

    return {
        "a new agent": lambda: memory.agent("new"),
        "another setting": lambda: memory.agent("ann", keep_reasoning=True),
        "a turn": lambda: ann.say("x"),
        "a stream": lambda: ann.stream("x"),
        "a turn by name": lambda: memory.generate("x", agent="ann"),
        "a turn of a new agent": lambda: memory.generate("x", agent="new"),
        "a batch": lambda: memory.batch(["x", "y"], agent=[None, "ann"]),
        "the best of some": lambda: memory.best_of("ann", "x", 2, len, temperature=1.0),
        "tools": lambda: memory.run_tools("ann", "x", [ping]),
        "results": lambda: ann.give(ToolResult("1", "x")),
        "a fork that is kept": lambda: ann.fork("kept"),
        "a checkpoint": lambda: ann.checkpoint("now"),
        "a rewind": lambda: ann.rewind(),
        "a transaction": block,
        "pruning": lambda: ann.prune(),
        "compacting": lambda: ann.compact(1),
        "a pin": lambda: ann.pin(),
        "deleting": lambda: ann.delete(),
        "deleting by name": lambda: memory.delete("ann"),
        "a group": lambda: memory.group("g", ["ann", "bob"]),
        "prefilling for a new agent": lambda: memory.prefill("x", agent="new"),
        "remembering": lambda: memory.context.remember("x"),
        "a working set": lambda: memory.context.working_set("x"),
        "forgetting": lambda: memory.context.forget(source="x"),
        "idle work": lambda: memory.context.maintain(),
        "an episode": lambda: memory.episodes.start("x"),
        "forgetting episodes": lambda: memory.episodes.forget(),
        "Anthropic's dialect": lambda: memory.messages.create(
            model="echo", max_tokens=5, agent="ann", messages=[{"role": "user", "content": "x"}]
        ),
    }


def test_every_method_that_writes_raises_before_any_work(store: Path) -> None:
    runner = EchoRunner()
    before = files(store)
    with reader(store, runner) as memory:
        ann = memory.agent("ann")
        messages = ann.messages
        for what, call in write_calls(memory, ann).items():
            print(what)  # shown where the next line fails
            with pytest.raises(ReadOnlyError, match="read_only=True"):
                call()
            assert (runner.calls.computed, ann.messages) == (0, messages), what
        with pytest.raises(ReadOnlyError, match=r"agent\.fork\(name, temporary=True\)"):
            ann.say("x")
        assert len(memory.agents()) == 2
        assert memory.prefill("x", agent="ann").computed_tokens > 0  # in memory alone
    assert {name: facts for name, facts in files(store).items() if not name.endswith("-wal")} == before


def test_an_agent_is_exported_from_a_reader_and_taken_in_by_none(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "ann.agent"
    with reader(store) as memory:
        memory.agent("ann").export(file)
        with pytest.raises(ReadOnlyError, match="read_only=True"):
            memory.import_agent(file, "another")
    with Memory(EchoRunner(), tmp_path / "other", config=SMALL) as memory:
        usage = memory.import_agent(file).say("Who am I?").usage
        assert usage.cached_tokens > usage.computed_tokens


def test_two_readers_and_a_writer_use_one_store_and_a_reader_may_be_first(store: Path) -> None:
    with reader(store) as one, reader(store) as two, Memory(EchoRunner(), store, config=SMALL) as writer:
        writer.agent("ann").say("more")
        writer.flush()
        assert len(one.agent("ann").messages) == len(two.agent("ann").messages) == 5


def test_what_is_no_store_is_refused(tmp_path: Path, store: Path) -> None:
    with pytest.raises(StoreError, match="holds no store"):
        reader(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ConfigError, match="read_only=True needs a store"):
        Memory(EchoRunner(), ":memory:", read_only=True)
    with pytest.raises(ConfigError, match="read_only must be a bool"):
        Memory(EchoRunner(), store, read_only="yes")  # type: ignore[arg-type]
    import sqlite3

    with sqlite3.connect(store / "manifest.sqlite3") as db:
        db.execute("UPDATE meta SET value = '99' WHERE key IN ('read_version', 'write_version')")
    with pytest.raises(IncompatibleStoreError):
        reader(store)


SCRIPT = textwrap.dedent("""
    import json, os, sys
    from pathlib import Path
    from agent_memory import Config, EchoRunner, Memory

    store = sys.argv[1]
    said = []
    WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.truncate", "os.utime", "os.link",
               "os.symlink", "shutil.rmtree", "shutil.move"}

    def hook(event, args):
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            mode, flags = args[1], args[2]
            writes = any(c in mode for c in "wax+") if isinstance(mode, str) else bool(flags & WRITING)
            if writes and os.fsdecode(args[0]).startswith(store):
                said.append(f"{event} {args[0]!r} {mode} {flags}")
        elif event in CHANGES and any(isinstance(a, (str, os.PathLike)) and str(a).startswith(store) for a in args):
            said.append(f"{event} {args}")
        elif event == "sqlite3.connect" and store in str(args[0]) and "mode=ro" not in str(args[0]):
            said.append(f"{event} {args}")

    config = Config(chunk_tokens=16, prefill_tokens=64)
    sys.addaudithook(hook)
    with Memory(EchoRunner(), store, config=config, read_only=True) as memory:
        fork = memory.agent("ann").fork("aside", temporary=True)
        usage = fork.say("one").usage
        memory.generate("two")
        memory.explain("three", agent="ann")
        memory.evict()
        memory.verify()
    print(json.dumps({"said": said, "cached": usage.cached_tokens, "tier": usage.tier}))
""")


@pytest.mark.parametrize("is_open", [True, False])
def test_another_process_reads_without_opening_a_file_to_write(store: Path, is_open: bool) -> None:
    """By Python's audit events, and by sizes and times of change; SQLite opens its files itself, read-only."""
    with Memory(EchoRunner(), store, config=SMALL) if is_open else contextlib.nullcontext():
        before = files(store)
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(store)], capture_output=True, text=True, check=True)
        after = files(store)
    found = json.loads(done.stdout)
    assert found["said"] == []
    assert found["cached"] > 50
    assert found["tier"] == "cold"
    if not is_open:  # SQLite may leave the WAL's file behind, which is empty
        assert after.pop("manifest.sqlite3-wal", (0, 0))[0] == 0
    assert after == before


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
def test_another_process_writes_to_no_file_of_the_store_but_sqlites_index(store: Path, tmp_path: Path) -> None:
    """By the system calls. SQLite opens its WAL as if to write it, and does not."""
    trace = tmp_path / "trace"
    calls = (
        "openat,creat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,truncate,link,linkat,chmod,fchmod,fallocate,"
        "write,pwrite64,writev,pwritev,ftruncate"
    )
    with Memory(EchoRunner(), store, config=SMALL):
        done = subprocess.run(
            ["strace", "-f", "-y", "-o", str(trace), "-e", f"trace={calls}", sys.executable, "-c", SCRIPT, str(store)],
            capture_output=True,
            text=True,
        )
    if "ptrace" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("this machine lets no process be traced")
    assert done.returncode == 0, done.stderr
    lines = [line for line in trace.read_text().splitlines() if str(store) in line and "ENOENT" not in line]
    assert any("manifest.sqlite3" in line for line in lines)
    changing = [line for line in lines if "O_RDONLY" not in line and "manifest.sqlite3-shm" not in line]
    assert [line for line in changing if "openat(" not in line or "manifest.sqlite3-wal" not in line] == []


def _wal_bytes(store: Path) -> int:
    return (store / "manifest.sqlite3-wal").stat().st_size


@pytest.mark.parametrize("n_turns", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_reader_that_stays_open_does_not_make_the_writers_wal_grow(store: Path, n_turns: int) -> None:
    largest = 0
    with Memory(EchoRunner(), store, config=SMALL) as writer, reader(store) as memory:
        for number in range(n_turns):
            writer.agent(f"agent {number % 7}").say(f"turn {number} " * 5)
            writer.flush()
            if number % 10 == 0:
                memory.agent("ann").fork(f"f{number}", temporary=True).say("x")
            if number % 50 == 0:
                assert len(memory.agents()) >= 2
            largest = max(largest, _wal_bytes(store))
    assert 0 < largest < 4 << 20


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A store in a folder of which nothing can be written; as another user where this one is root."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        store = Path(folder, "store")
        fill(store)
        with reader(store) as memory:  # what is imported late is imported now
            memory.agent("ann").fork("aside", temporary=True).say("x")
        for path in (store, *store.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield store
        for path in (store, *store.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_folder_that_takes_no_file_is_read_as_it_is(unwritable: Path) -> None:
    for name in ("manifest.sqlite3-wal", "manifest.sqlite3-shm"):
        (unwritable / name).unlink(missing_ok=True)
    with nobody(), reader(unwritable) as memory:
        usage = memory.agent("ann").fork("aside", temporary=True).say("x").usage
        assert usage.cached_tokens > usage.computed_tokens


def test_a_folder_that_takes_no_file_is_refused_where_changes_are_in_a_wal_without_an_index(unwritable: Path) -> None:
    with Memory(EchoRunner(), unwritable, config=SMALL) as writer:
        writer.agent("ann").say("newer")
        writer.flush()
        wal = (unwritable / "manifest.sqlite3-wal").read_bytes()
        main = (unwritable / "manifest.sqlite3").read_bytes()
    (unwritable / "manifest.sqlite3").write_bytes(main)  # as a process that was killed leaves it
    (unwritable / "manifest.sqlite3-wal").write_bytes(wal)
    (unwritable / "manifest.sqlite3-shm").unlink(missing_ok=True)
    (unwritable / "manifest.sqlite3-wal").chmod(0o444)
    assert len(wal) > 0
    with nobody(), pytest.raises(ReadOnlyError, match="manifest.sqlite3-wal"):
        reader(unwritable)

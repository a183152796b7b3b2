"""Passing faults are not damage: the file stays, what cannot be read is computed meanwhile, and read again later."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.errors import OutOfSpaceError, StoreError, StoreLockedError
from agent_memory.store import losses as losses_module
from agent_memory.store.store import Store
from tests.parts.kvmodel import (
    KINDS,
    SMALL,
    draw,
    is_right,
    kv_files,
    load,
    load_beside,
    opened,
    save,
    segment_files,
)

IDS = draw(np.random.default_rng(0), 300)
PASSING = ("EMFILE", "ENFILE", "EINTR", "ENOMEM", "EACCES", "EIO", "ESTALE")


def fill(path: Path, layout=SMALL, *, crash: bool = False) -> None:
    with opened(path, layout=layout) as store:
        agent = store.create_agent("", "a", system=None, tools="[]").agent_id
        for stop in (100, 180, 300):
            save(store, IDS[:stop], layout=layout, agent_id=agent, snapshots=range(16, stop, 16))
        store.flush()
    if crash:
        (path / "lock").write_text("{}")


class Failing:
    """A call of the system's that fails for KV files with one error."""

    def __init__(self, monkeypatch, call: str, code: int) -> None:
        self.code: int | None = code
        self._real = getattr(os, call)
        self._is_open, self._fds = call == "open", set()
        if not self._is_open:
            self._open = os.open
            monkeypatch.setattr(os, "open", self._noting)
        monkeypatch.setattr(os, call, self)

    def _noting(self, path, *given):
        fd = self._open(path, *given)
        (self._fds.add if str(path).endswith(".safetensors") else self._fds.discard)(fd)
        return fd

    def __call__(self, what, *given):
        is_kv = str(what).endswith(".safetensors") if self._is_open else what in self._fds
        if is_kv and self.code is not None:
            raise OSError(self.code, os.strerror(self.code))
        return self._real(what, *given)


@pytest.fixture
def soon(monkeypatch):
    """What could not be read is tried again at once."""
    monkeypatch.setattr(losses_module, "REREAD_S", 0.0)


@pytest.mark.parametrize("call", ["open", "preadv", "pread", "fstat"])
@pytest.mark.parametrize("name", PASSING)
def test_a_segment_that_cannot_be_read_now_is_read_later(tmp_path, monkeypatch, caplog, call, name, soon):
    fill(tmp_path)
    before = {file: file.read_bytes() for file in kv_files(tmp_path)}
    with opened(tmp_path) as store:
        failing = Failing(monkeypatch, call, getattr(errno, name))
        for _ in range(3):
            match = store.match(IDS)
            assert match.n_tokens
            assert not load(store, match)[1]
        store.flush()
        assert store.stats()["unreadable"] == 1
        assert len([r for r in caplog.records if "cannot be read now" in r.message and r.levelname == "WARNING"]) == 1
        assert store.verify().unread or call == "preadv", "which verify does not use"
        assert not store.verify().damaged
        failing.code = None
        assert is_right(load(store, store.match(IDS))[0], IDS)
        assert store.stats()["damage"] == 0
        assert store.verify().ok
    assert {file: file.read_bytes() for file in kv_files(tmp_path)} == before


def test_what_cannot_be_read_is_not_offered_for_a_while_and_says_why(tmp_path, monkeypatch):
    fill(tmp_path)
    before = segment_files(tmp_path)
    with opened(tmp_path) as store:
        failing = Failing(monkeypatch, "open", errno.EMFILE)
        assert not load(store, store.match(IDS))[1]
        found = store.match(IDS)
        assert (found.n_tokens, found.stopped) == (0, "unreadable"), "the look-up goes on without it"
        save(store, IDS, made=1)
        store.flush()
        assert segment_files(tmp_path) == before, "and it is not written twice"
        failing.code = None
        now = store._catalog.losses.clock()
        store._catalog.losses.clock = lambda: now + losses_module.REREAD_S + 1
        assert store.match(IDS).n_tokens == len(IDS)
        assert store.stats()["unreadable"] == 0


@pytest.mark.parametrize("layout", KINDS.values(), ids=KINDS)
def test_a_side_file_that_cannot_be_read_now_is_read_later(tmp_path, monkeypatch, layout, soon):
    fill(tmp_path, layout)
    n_files = len(kv_files(tmp_path))
    with opened(tmp_path, layout=layout) as store:
        failing = Failing(monkeypatch, "preadv", errno.EIO)
        match = store.match(IDS)
        assert match.n_tokens
        assert not load_beside(store, match, IDS, layout)
        store.prefetch(match)
        store.flush()
        failing.code = None
        assert store.match(IDS).n_tokens == match.n_tokens
        assert load_beside(store, store.match(IDS), IDS, layout)
        assert store.stats()["damage"] == 0
    assert len(kv_files(tmp_path)) == n_files


def test_prefetching_in_a_process_without_free_descriptors_drops_nothing(tmp_path, soon):
    fill(tmp_path)
    with opened(tmp_path) as store:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd" if os.path.isdir("/proc") else "/dev/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, before[0]), before[1]))
        taken = []
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            assert error.errno == errno.EMFILE  # noqa: PT017
        try:
            match = store.match(IDS)
            store.prefetch(match)
            store._io.call(lambda: None)
            assert not load(store, match)[1]
            store.flush()
        finally:
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert highest >= 0
        assert is_right(load(store, store.match(IDS))[0], IDS)
        assert store.stats()["damage"] == 0


def test_missing_files_and_wrong_bytes_are_damage_as_before(tmp_path):
    fill(tmp_path)
    files = segment_files(tmp_path)
    raw = bytearray(files[0].read_bytes())
    raw[-1] ^= 1
    with opened(tmp_path) as store:
        files[0].write_bytes(raw)
        for file in files[1:]:
            file.unlink()
        while (match := store.match(IDS)).n_tokens:
            load(store, match)
        assert store.stats()["damage"] >= 1
        assert store.stats()["unreadable"] == 0


@pytest.mark.parametrize("name", PASSING)
def test_a_folder_that_cannot_be_listed_is_said_at_opening_and_nothing_is_forgotten(tmp_path, monkeypatch, name):
    fill(tmp_path)
    before = {file: file.read_bytes() for file in kv_files(tmp_path)}
    real, code = os.scandir, getattr(errno, name)

    def scandir(path):
        if "kv" in Path(path).parts:
            raise OSError(code, os.strerror(code))
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", scandir)
        with pytest.raises(StoreError, match=os.strerror(code)):
            Store(tmp_path, disk_bytes=None, chunk_tokens=16)
    with opened(tmp_path) as store:
        assert is_right(load(store, store.match(IDS))[0], IDS)
        assert store.stats()["damage"] == 0
    assert {file: file.read_bytes() for file in kv_files(tmp_path)} == before


def test_a_repair_that_cannot_read_the_files_changes_nothing(tmp_path, monkeypatch):
    fill(tmp_path)
    (tmp_path / "manifest.sqlite3").unlink()
    before = {file: file.read_bytes() for file in kv_files(tmp_path)}
    with monkeypatch.context() as patched:
        Failing(patched, "open", errno.EMFILE)
        with pytest.raises(StoreError, match="ulimit -n"):
            Store(tmp_path, disk_bytes=None, chunk_tokens=16)
    assert {file: file.read_bytes() for file in kv_files(tmp_path)} == before
    with opened(tmp_path) as store:
        assert is_right(load(store, store.match(IDS))[0], IDS)


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.ENOLCK, "has no locks"), (errno.EOPNOTSUPP, "has no locks"), (errno.EIO, "system's log")],
)
def test_a_lock_that_the_file_system_refuses_is_not_in_use(tmp_path, monkeypatch, code, advice):
    def flock(fd, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match=advice) as caught:
        Store(tmp_path, disk_bytes=None, chunk_tokens=16)
    assert not isinstance(caught.value, StoreLockedError)
    assert "in use" not in str(caught.value)


@pytest.mark.parametrize("spare", range(8))
def test_a_process_without_free_descriptors_is_told_so_at_opening_and_what_to_do(tmp_path, spare):
    fill(tmp_path)
    script = f"""
import os, resource
from pathlib import Path
from agent_memory.errors import StoreError
from agent_memory.store.store import Store
path = Path({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True: taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError: pass
for _ in range({spare}): os.close(taken.pop())
try:
    Store(path, disk_bytes=None, chunk_tokens=16).close()
except StoreError as error:
    print(type(error).__name__, error)
else:
    print("opened")
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.startswith("opened") or "may (64): close some, or raise its limit (ulimit -n)" in told, told
    assert spare or not told.startswith("opened")
    with opened(tmp_path) as store:
        assert store.match(IDS).n_tokens == len(IDS)
        assert store.verify().ok


FULL = """
import os, sys
from pathlib import Path
os.system("mount -t tmpfs -o size=3m tmpfs " + sys.argv[1]) == 0 or sys.exit(77)
from tests.store.test_passing_faults import fill, IDS
from tests.parts.kvmodel import opened, load, is_right
path = Path(sys.argv[1]) / "store"
fill(path, crash=sys.argv[2] == "killed")
filler = open(path.parent / "filler", "wb", buffering=0)
try:
    while True: filler.write(bytes(4096))
except OSError: pass
with opened(path) as store:
    assert store.load_agent("", "a").name == "a"
    assert is_right(load(store, store.match(IDS))[0], IDS), store.match(IDS)
    assert store.verify().ok
    filler.truncate(0)
    store.create_agent("", "b", system=None, tools="[]")
with opened(path) as store:
    assert [info.name for info in store.list_agents("")] == ["a", "b"]
    assert store.match(IDS).n_tokens == len(IDS)
    assert store.stats()["damage"] == 0
print("well")
"""


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_store_on_a_full_disk_opens_for_reading_and_writes_when_there_is_room(tmp_path, how):
    run = ["unshare", "-rm", sys.executable, "-c", FULL, str(tmp_path), how]
    try:
        found = subprocess.run(run, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    except FileNotFoundError:
        pytest.skip("no unshare")
    if found.returncode == 77 or "unshare" in found.stderr:
        pytest.skip("no right to mount a small file system")
    assert found.stdout.endswith("well\n"), found.stderr


def test_a_new_store_on_a_full_disk_says_that_it_is_full(tmp_path, monkeypatch):
    real = os.open

    def full(path, flags, *mode):
        if str(path).endswith("manifest.sqlite3") and flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OutOfSpaceError, match="No space left on device. Free some space"):
        Store(tmp_path, disk_bytes=None, chunk_tokens=16)


@pytest.mark.parametrize("reread_s", [5.0, 0.0], ids=["hidden for a while", "after so long that it is tried again"])
def test_a_request_that_cannot_read_a_segment_now_says_so_and_calls_it_no_damage(tmp_path, monkeypatch, reread_s):
    monkeypatch.setattr(losses_module, "REREAD_S", reread_s)
    config = Config(chunk_tokens=16, prefill_tokens=16)
    with Memory(EchoRunner(), tmp_path, config=config) as memory:
        memory.agent("ann").say("hello " * 40)
    with Memory(EchoRunner(), tmp_path, config=config) as memory:
        failing = Failing(monkeypatch, "open", errno.EMFILE)
        usage = memory.agent("ann").say("again", timeout_s=60).usage
        assert (usage.miss, usage.cached_tokens) == ("not_stored", 0)
        assert "cannot be read" in usage.miss_detail
        assert memory.stats().damage == 0
        failing.code = None

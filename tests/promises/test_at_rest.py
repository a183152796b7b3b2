"""A store under a key: nothing that was said is in its folder, changes of it are noticed, and one key opens it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_memory import (
    ClosedError,
    Config,
    ConfigError,
    ContextMemory,
    EchoRunner,
    IncompatibleStoreError,
    Memory,
    OutOfSpaceError,
    ReadOnlyError,
    StoreError,
    WrongKeyError,
    open_store,
    rekey,
)
from agent_memory.log.database import view_database
from agent_memory.log.files import KEY_FILE, MANIFEST, SEALED_MANIFEST
from agent_memory.log.schema import check_versions
from agent_memory.recall.database import Database
from agent_memory.recall.schema import STEPS
from agent_memory.requests.rekeying import change_key
from agent_memory.sealing.keys import Keys
from agent_memory.store import folder as store_folder
from agent_memory.store.collecting import collect
from agent_memory.store.store import Store
from tests.parts.breaking import Counted, Dying, Killed, Refusing

KEY, OTHER = b"0123456789abcdef", b"another key of the host's"
WORDS = ("Zanzibar", "quagmire", "persimmon", "alice-the-agent", "workshop-space", "obsidian-label", "kumquat")


def config(key: Any = KEY, **more: Any) -> Config:
    return Config(chunk_tokens=16, prefill_tokens=16, key=key, **more)


def opened(path: Path, key: Any = KEY, **more: Any) -> Memory:
    return Memory(EchoRunner(), path, config=config(key, **more))


def lived(memory: Memory) -> np.ndarray:
    """Do what puts words, names and ids into a folder; return the ids of a conversation."""
    alice = memory.agent("alice-the-agent", system="Talk about Zanzibar. " * 4)
    alice.say("quagmire " * 20)
    alice.checkpoint("obsidian-label")
    alice.say("persimmon " * 20)
    alice.rewind()
    alice.fork("kumquat").say("more persimmon " * 8)
    context = memory.context.workspace("workshop-space")
    context.remember("The persimmon port is 4711, in Zanzibar")
    with memory.episodes.start("repair the quagmire") as episode:
        episode.step("look at the persimmon")
    memory.flush()
    return alice._own.ids


def found_in(folder: Path, ids: np.ndarray) -> dict[str, list[str]]:
    """Return which words, and runs of six ids as u32 in either order of bytes, each file has."""
    runs = [ids[at : at + 6].astype(order).tobytes() for at in range(0, len(ids) - 6, 5) for order in ("<u4", ">u4")]
    found: dict[str, list[str]] = {}
    for file in filter(Path.is_file, folder.rglob("*")):
        raw = file.read_bytes()
        words = [word for word in WORDS for form in ("utf-8", "utf-16-le") if word.encode(form) in raw]
        if words or any(run in raw for run in runs):
            found[file.name] = words or ["ids"]
    return found


def digest(folder: Path) -> str:
    """Return a digest of the names, the bytes and the times of change of every file."""
    told = [
        (str(f.relative_to(folder)), f.stat().st_mtime_ns, f.read_bytes())
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    ]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def test_the_search_finds_what_is_in_a_plain_folder(tmp_path: Path) -> None:
    with opened(tmp_path / "store", None, recorder=tmp_path / "store" / "lines") as memory:
        ids = lived(memory)
        found = found_in(tmp_path / "store", ids)
    assert {word for words in found.values() for word in words} == {*WORDS, "ids"}
    assert "alice-the-agent" in found["lines"]


def test_nothing_that_was_said_is_in_the_folder(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with opened(store, recorder=store / "lines") as memory:
        ids = lived(memory)
        assert found_in(store, ids) == {}
        with pytest.raises(StoreError, match="not encrypted"):
            memory.agent("kumquat").export(store / "kumquat.agent")
        memory.agent("kumquat").export(tmp_path / "kumquat.agent")
    assert found_in(store, ids) == {}
    rekey(store, KEY, OTHER)
    with opened(store, OTHER, recorder=store / "lines") as memory:
        reply = memory.agent("alice-the-agent").say("quagmire again")
        assert (reply.usage.tier, reply.usage.exactness) == ("cold", "exact")
        assert memory.context.workspace("workshop-space").recall("persimmon")[0].item.text.endswith("Zanzibar")
        memory.import_agent(tmp_path / "kumquat.agent", "persimmon")
        assert memory.agent("persimmon").say("go on").usage.tier == "cold"
        memory.flush()
        assert memory.verify().ok
        assert memory.verify().strangers == ("lines",)
        named = {
            line["agent"] for line in map(json.loads, (store / "lines").read_text().splitlines()) if line.get("agent")
        }
        assert len(named) == 3, "each agent by the same digest in every line"
        assert all(re.fullmatch("#[0-9a-f]{16}", name) for name in named)
        with pytest.raises(StoreError, match="it is encrypted"):
            ContextMemory(store / "recall.sqlite3")
        assert found_in(store, ids) == {}
    assert found_in(store, ids) == {}


def test_a_recall_file_that_is_migrated_leaves_no_plain_copy(tmp_path: Path) -> None:
    from agent_memory.sealing.sqlite import FileKey

    key = FileKey.of(Keys(KEY), "recall")
    with_old = Database(tmp_path / "recall", steps=STEPS[:-1], key=key)
    with with_old.write() as db:
        db.workspace("", "workshop-space", 0.0)
    with_old.close()
    now = Database(tmp_path / "recall", key=key)
    assert [one.name for one in now.backups()] == [f"recall.v{len(STEPS) - 1}.backup"]
    now.close()
    assert found_in(tmp_path, np.zeros(0, np.uint32)) == {}


CHILD = """
import sys, time
from pathlib import Path
from tests.promises.test_at_rest import lived, opened
memory = opened(Path(sys.argv[1]), recorder=Path(sys.argv[1]) / "lines")
ids = lived(memory)
print(",".join(map(str, ids)), flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_nothing_to_read_and_the_store_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(store)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    ids = np.array(child.stdout.readline().split(","), np.uint32)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert found_in(store, ids) == {}
    with opened(store) as memory:
        assert memory.agent("alice-the-agent").say("again").usage.tier == "cold"
        assert memory.stats().damage == 0


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("at rest") / "store"
    with opened(path) as memory:
        lived(memory)
    return path


def _refused(path: Path, key: Any) -> None:
    before = digest(path)
    for attempt in (
        lambda: opened(path, key),
        lambda: Memory(EchoRunner(), path, config=config(key), read_only=True),
        lambda: open_store(path, key=key),
        lambda: collect(path, key=None if key is None else Keys(key)),
        lambda: rekey(path, key, b"x" * 16),
    ):
        with pytest.raises(WrongKeyError) as refused:
            attempt()
        assert str(path) in str(refused.value)
        assert digest(path) == before, "something was changed"


@pytest.mark.parametrize("key", [OTHER, None], ids=["another key", "no key"])
def test_a_wrong_key_is_refused_and_changes_nothing(pristine: Path, key: bytes | None) -> None:
    _refused(pristine, key)


def test_a_key_on_a_plain_store_is_refused_and_names_the_way(tmp_path: Path) -> None:
    with opened(tmp_path, None) as memory:
        memory.agent("a").say("hello")
    _refused(tmp_path, KEY)
    with pytest.raises(WrongKeyError, match=r"rekey\(path, None, key\)"):
        opened(tmp_path)


@pytest.mark.parametrize("key", [b"short", 7, "text", lambda: "text", lambda: b"short"])
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, key: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        opened(tmp_path / "store", key)
    assert "short" not in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_a_key_may_be_fetched_and_is_never_shown(tmp_path: Path) -> None:
    asked = []

    def fetch() -> bytes:
        asked.append(1)
        return KEY

    with opened(tmp_path, fetch) as memory:
        memory.agent("a").say("hello")
        assert KEY.decode() not in repr(memory.config) + str(memory.doctor(explain=True)) + repr(memory.stats())
    assert len(asked) == 1
    with opened(tmp_path) as memory:
        assert memory.agent("a").n_tokens
    assert not any(KEY in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.parametrize("key", [KEY, None], ids=["its key", "no key"])
def test_without_its_key_file_nobody_opens_a_store(pristine: Path, tmp_path: Path, key: bytes | None) -> None:
    shutil.copytree(pristine, tmp_path / "store")
    (tmp_path / "store" / KEY_FILE).unlink()
    before = digest(tmp_path / "store")
    with pytest.raises(StoreError, match=rf"{KEY_FILE} is missing"):
        opened(tmp_path / "store", key)
    assert digest(tmp_path / "store") == before


def test_one_damaged_copy_of_the_key_is_written_anew(pristine: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(pristine, store)
    lines = (store / KEY_FILE).read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    assert lines[0] == lines[1]
    for damaged in ([lines[0][:50] + b"?" + lines[0][51:], lines[1]], lines[:1]):
        (store / KEY_FILE).write_bytes(b"".join(damaged))
        opened(store).close()
        whole = (store / KEY_FILE).read_bytes().splitlines()
        assert len(whole) == 2
        assert whole[0] == whole[1]
    (store / KEY_FILE).write_bytes(lines[0][:50] * 2)
    with pytest.raises(StoreError, match="damaged") as refused:
        opened(store)
    assert not isinstance(refused.value, WrongKeyError)


def test_recall_finds_the_same_with_and_without_a_key(tmp_path: Path) -> None:
    draw = random.Random(0)
    words = [f"{a}{b}" for a in ("amber", "cobalt", "zinc", "basalt") for b in ("port", "gate", "mill", "yard", "well")]
    texts = [" ".join(draw.choices(words, k=12)) + f" number {n}" for n in range(100)]
    questions = [" ".join(draw.sample(text.split()[:12], 4)) for text in texts[::10]]
    found = []
    for name, key in (("plain", None), ("sealed", KEY)):
        with opened(tmp_path / name, key) as memory:
            for text in texts:
                memory.context.remember(text, source="a")
            found.append([[hit.item.text for hit in memory.context.recall(question, k=10)] for question in questions])
    assert found[0] == found[1]
    assert any(found[0])


def _flips(pristine: Path, tmp_path: Path, n_rounds: int) -> None:
    """Flip one bit of any file: what is lost is noticed, what is said is right, and no error is another one's."""
    draw, n_noted, n_refused = random.Random(3), 0, 0
    with opened(_copied(pristine, tmp_path)) as memory:
        told = {info.name: memory.agent(info.name).messages for info in memory.agents()}
        said = {name: memory.agent(name).say("and now?", max_tokens=30).text for name in told}
        texts = [hit.item.text for hit in memory.context.workspace("workshop-space").recall("persimmon")]
    for number in range(n_rounds):
        copy = _copied(pristine, tmp_path)
        files = sorted(file for file in copy.rglob("*") if file.is_file() and file.stat().st_size)
        is_top = draw.random() < 0.5
        file = draw.choice([one for one in files if (one.parent == copy) is is_top])
        raw = bytearray(file.read_bytes())
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        file.write_bytes(raw)
        try:
            with opened(copy) as memory:
                for info in memory.agents():
                    agent = memory.agent(info.name)
                    assert agent.messages == told[info.name][: len(agent.messages)], (number, file.name)
                    reply = agent.say("and now?", max_tokens=30)
                    if len(agent.messages) == len(told[info.name]) + 2:
                        assert reply.text == said[info.name], (number, file.name)
                is_whole = len(memory.agents()) == len(told)
                is_noted = bool(memory.stats().damage) or not memory.verify().ok
                assert is_whole or is_noted, (number, file.name)
                n_noted += is_noted
                hits = memory.context.workspace("workshop-space").recall("persimmon")
                assert [hit.item.text for hit in hits] == texts, (number, file.name)
        except WrongKeyError:
            raise
        except StoreError:
            n_refused += 1  # the recall file, say
    assert n_noted > n_rounds // 4
    assert n_noted + n_refused > n_rounds // 2


def _copied(pristine: Path, tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def test_50_flipped_bits_are_misses_or_typed_errors(pristine: Path, tmp_path: Path) -> None:
    _flips(pristine, tmp_path, 50)


@pytest.mark.slow
def test_1000_flipped_bits_are_misses_or_typed_errors(pristine: Path, tmp_path: Path) -> None:
    _flips(pristine, tmp_path, 1000)


def test_exchanged_files_do_not_open(pristine: Path, tmp_path: Path) -> None:
    store = _copied(pristine, tmp_path)
    first, second, *_ = sorted(store.rglob("*.safetensors"), key=lambda file: file.stat().st_size)[::-1]
    first_raw, second_raw = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_raw)
    second.write_bytes(first_raw)
    with opened(store) as memory:
        assert memory.stats().damage or not memory.verify().ok
        assert memory.agent("alice-the-agent").say("again").finish == "stop"


def _kills(
    tmp_path: Path,
    old: bytes | None,
    new: bytes | None,
    points: range,
    cuts: tuple[bool, ...] = (False, True),
    *,
    is_anew: bool,
) -> tuple[int, int]:
    """Kill a rekey before each of some changes of the disk; count the stores that the old key opens, and the new."""
    pristine = tmp_path / "pristine"
    if not pristine.exists():
        with opened(pristine, old) as memory:
            memory.agent("a").say("hello there " * 10)
            memory.context.remember("a persimmon")
    opens = [0, 0]
    for at in points:
        for power_cut in cuts:
            left, work = tmp_path / "left", tmp_path / "work"
            for folder in (left, work):
                shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(pristine, work)
            files = Dying(at)
            with pytest.raises(Killed):
                change_key(work, _keys(old), _keys(new), files, is_anew=is_anew)
            files.leave(work, left, power_cut=power_cut)
            with pytest.raises(WrongKeyError):
                opened(left, OTHER)
            is_new = _opens(left, new)
            opens[is_new] += 1
            assert is_new or _opens(left, old), at
            with opened(left, new if is_new else old) as memory:
                assert memory.agent("a").say("more").usage.tier == "cold", at
                assert memory.context.recall("persimmon"), at
                assert memory.verify().ok
                assert memory.verify().strangers == (), at
            if new is not None and is_new:
                assert not any(b"persimmon" in f.read_bytes() for f in left.rglob("*") if f.is_file()), at
    return opens[0], opens[1]


def _keys(key: bytes | None) -> Keys | None:
    return None if key is None else Keys(key)


def _opens(path: Path, key: bytes | None) -> bool:
    try:
        opened(path, key).close()
    except WrongKeyError:
        return False
    return True


def _calls(tmp_path: Path, old: bytes | None, new: bytes | None, *, is_anew: bool) -> int:
    with opened(tmp_path / "pristine", old) as memory:
        memory.agent("a").say("hello there " * 10)
        memory.context.remember("a persimmon")
    shutil.copytree(tmp_path / "pristine", tmp_path / "whole")
    files = Dying(None)
    change_key(tmp_path / "whole", _keys(old), _keys(new), files, is_anew=is_anew)
    assert _opens(tmp_path / "whole", new)
    return len(files.calls)


CHANGES = [(KEY, b"a newer key, 16+"), (None, KEY), (KEY, None)]
KILLED = [(*change, False) for change in CHANGES] + [(*CHANGES[0], True)]


@pytest.mark.parametrize(("old", "new", "is_anew"), KILLED, ids=["key to key", "none to key", "key to none", "anew"])
def test_a_killed_rekey_leaves_a_store_that_one_of_the_keys_opens(
    tmp_path: Path, old: bytes | None, new: bytes | None, is_anew: bool
) -> None:
    n = _calls(tmp_path, old, new, is_anew=is_anew)
    before, after = _kills(tmp_path, old, new, range(0, n, max(1, n // 5)), (True,), is_anew=is_anew)
    assert before
    assert after


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new", "is_anew"), KILLED, ids=["key to key", "none to key", "key to none", "anew"])
def test_a_rekey_killed_anywhere_leaves_a_store_that_one_of_the_keys_opens(
    tmp_path: Path, old: bytes | None, new: bytes | None, is_anew: bool
) -> None:
    n = _calls(tmp_path, old, new, is_anew=is_anew)
    before, after = _kills(tmp_path, old, new, range(n), is_anew=is_anew)
    assert before
    assert after


def test_rekey_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no store"):
        rekey(tmp_path, None, KEY)
    with pytest.raises(ConfigError, match="no folder"):
        rekey(":memory:", None, KEY)
    with opened(tmp_path, None) as memory:
        memory.agent("a").say("hello")
        with pytest.raises(StoreError, match="in use"):
            rekey(tmp_path, None, KEY)
    with pytest.raises(ConfigError, match="needs a key"):
        rekey(tmp_path, None, None)
    (tmp_path / f"{MANIFEST}.damaged-1").write_text("words in the clear")
    with pytest.raises(StoreError, match="move it out"):
        rekey(tmp_path, None, KEY)
    assert _opens(tmp_path, None)


def test_encrypting_a_store_leaves_no_damaged_manifest_in_the_clear(tmp_path: Path) -> None:
    """The first opening of a rekey repairs it: what that sets aside is in the clear too."""
    store = tmp_path / "store"
    with opened(store, None) as memory:
        memory.agent("a").say("hello")
    raw = bytearray((store / MANIFEST).read_bytes())
    raw[-1000] ^= 1
    (store / MANIFEST).write_bytes(raw)
    with pytest.raises(StoreError, match=r"damaged-1 .* move it out"):
        rekey(store, None, KEY)
    assert (store / f"{MANIFEST}.damaged-1").read_bytes() == raw
    assert _opens(store, None)
    (store / f"{MANIFEST}.damaged-1").unlink()
    rekey(store, None, KEY)
    assert _opens(store, KEY)


@pytest.mark.parametrize(("old", "new"), CHANGES[1:], ids=["none to key", "key to none"])
@pytest.mark.parametrize("call", ["create", "write", "rename"])
def test_a_full_disk_ends_a_rekey_and_costs_no_kv(
    tmp_path: Path, old: bytes | None, new: bytes | None, call: str
) -> None:
    with opened(tmp_path / "store", old) as memory:
        memory.agent("a").say("hello there " * 10)
    shutil.copytree(tmp_path / "store", tmp_path / "whole")
    files = Counted()
    change_key(tmp_path / "whole", _keys(old), _keys(new), files)
    first_of_kv = files.calls.index("create")
    at = files.calls.index(call, first_of_kv)
    with pytest.raises(OutOfSpaceError):
        change_key(tmp_path / "store", _keys(old), _keys(new), Refusing(errno.ENOSPC, at, at + 1))
    with opened(tmp_path / "store", old) as memory:
        assert memory.agent("a").say("more").usage.tier == "cold"
        assert memory.verify().ok


@pytest.mark.parametrize(("old", "new"), CHANGES, ids=["key to key", "none to key", "key to none"])
def test_a_rekey_evicts_nothing_however_much_is_stored(
    tmp_path: Path, old: bytes | None, new: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, old) as memory:
        memory.agent("a").say("hello there " * 10)
    monkeypatch.setattr(store_folder, "_MAX_DEFAULT_BYTES", 1)  # in place of 32 GiB
    rekey(tmp_path, old, new)
    monkeypatch.undo()
    with opened(tmp_path, new) as memory:
        assert memory.agent("a").say("more").usage.tier == "cold"


def test_a_rekey_does_not_hide_damage_of_the_manifest(pristine: Path, tmp_path: Path) -> None:
    store = _copied(pristine, tmp_path)
    raw = bytearray((store / SEALED_MANIFEST).read_bytes())
    raw[-1000] ^= 1
    (store / SEALED_MANIFEST).write_bytes(raw)
    rekey(store, KEY, OTHER)
    with opened(store, OTHER) as memory:
        assert memory.stats().damage
    assert (store / f"{MANIFEST}.damaged-1").exists()


def test_a_release_that_knows_no_key_refuses_an_encrypted_store(pristine: Path, tmp_path: Path) -> None:
    """What such a release does at opening: it looks at the versions of the manifest, where it knows it to be."""
    store = _copied(pristine, tmp_path)
    before = digest(store)
    with pytest.raises(IncompatibleStoreError, match="1000"):
        check_versions(store / MANIFEST)
    with pytest.raises(IncompatibleStoreError, match="1000"):
        view_database(store / MANIFEST)
    assert digest(store) == before
    (store / MANIFEST).unlink()  # it is put there again
    opened(store).close()
    with pytest.raises(IncompatibleStoreError):
        check_versions(store / MANIFEST)


def test_a_plain_manifest_beside_a_key_is_never_overwritten(pristine: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "store", None) as memory:
        memory.agent("a").say("hello")
    shutil.copy(pristine / KEY_FILE, tmp_path / "store" / KEY_FILE)
    with pytest.raises(StoreError, match="take out the one"):
        opened(tmp_path / "store")
    (tmp_path / "store" / KEY_FILE).unlink()
    with opened(tmp_path / "store", None) as memory:
        assert memory.agent("a").messages[0].content == "hello"


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
def test_a_damaged_manifest_that_is_set_aside_keeps_its_bytes_and_its_wal(tmp_path: Path, key: bytes | None) -> None:
    store, killed = tmp_path / "store", tmp_path / "killed"
    with opened(store, key) as memory:
        memory.agent("ann").say("I am ann")
    with opened(store, key) as memory:
        memory.agent("ann").say("x")
        memory.flush()
        shutil.copytree(store, killed)
    name = MANIFEST if key is None else SEALED_MANIFEST
    left = bytearray((killed / name).read_bytes())
    left[: 16 if key is None else 4096] = bytes(16 if key is None else 4096)
    (killed / name).write_bytes(left)
    wal = (killed / f"{name}-wal").read_bytes()
    assert wal
    with opened(killed, key) as memory:
        assert memory.stats().damage
        assert memory.verify().strangers == ()
    assert (killed / f"{MANIFEST}.damaged-1").read_bytes() == left
    assert (killed / f"{MANIFEST}.damaged-1-wal").read_bytes() == wal


def test_a_manifest_without_its_first_page_gives_the_turns_in_its_wal_back(tmp_path: Path) -> None:
    store, killed = tmp_path / "store", tmp_path / "killed"
    with opened(store) as memory:
        memory.agent("ann").say("I am ann")
    with opened(store) as memory:
        memory.agent("ann").say("x")
        memory.flush()
        shutil.copytree(store, killed)
    raw = bytearray((killed / SEALED_MANIFEST).read_bytes())
    raw[1000] ^= 1
    (killed / SEALED_MANIFEST).write_bytes(raw)
    with opened(killed) as memory:
        assert memory.stats().damage
        assert [info.n_turns for info in memory.agents()] == [2]


def test_a_manifest_without_its_first_page_gives_its_logs_back(tmp_path: Path) -> None:
    with opened(tmp_path) as memory:
        for name in ("ann", "bob"):
            memory.agent(name, system="Be brief.").say(f"I am {name}")
            memory.agent(name).say("again")
    raw = bytearray((tmp_path / SEALED_MANIFEST).read_bytes())
    raw[1000] ^= 1
    (tmp_path / SEALED_MANIFEST).write_bytes(raw)
    with opened(tmp_path) as memory:
        assert memory.stats().damage
        assert {info.name: info.n_turns for info in memory.agents()} == {"ann": 2, "bob": 2}
        assert memory.agent("bob").messages[1].content == "I am bob"
        assert memory.agent("bob").say("more").usage.tier == "cold"
    assert found_in(tmp_path, np.zeros(0, np.uint32)) == {}


def _without_first_page(store: Path, key: bytes | None) -> None:
    """Make a store of two agents, whose manifest is damaged."""
    with opened(store, key) as memory:
        for name in ("ann", "bob"):
            memory.agent(name).say(f"I am {name}")
    file = store / (MANIFEST if key is None else SEALED_MANIFEST)
    raw = bytearray(file.read_bytes())
    raw[1000 if key is not None else -1000] ^= 1
    file.write_bytes(raw)


def test_a_full_disk_while_a_manifest_is_mended_is_an_error_and_costs_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy that is read lies in the system's temporary folder: without room there, what is stored is unknown."""
    _without_first_page(tmp_path / "store", KEY)
    before = digest(tmp_path / "store" / "kv")

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agent_memory.log.salvage.shutil.copyfile", full)
        with pytest.raises(OutOfSpaceError, match="No space left"):
            opened(tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.damaged-*"))
    assert digest(tmp_path / "store" / "kv") == before
    with opened(tmp_path / "store") as memory:
        assert {info.name for info in memory.agents()} == {"ann", "bob"}


@pytest.mark.parametrize("key", [KEY, None], ids=["sealed", "plain"])
def test_a_disk_that_refuses_at_any_call_of_a_repair_costs_no_log(tmp_path: Path, key: bytes | None) -> None:
    pristine = tmp_path / "pristine"
    _without_first_page(pristine, key)

    def tried(files: Counted) -> Path:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        shutil.copytree(pristine, tmp_path / "store")
        with contextlib.suppress(StoreError):
            Store(tmp_path / "store", disk_bytes=1 << 30, chunk_tokens=16, files=files, key=_keys(key)).close()
        return tmp_path / "store"

    tried(counted := Counted())
    assert "rename" in counted.calls
    for at in range(len(counted.calls)):
        store = Store(tried(Refusing(errno.EIO, at, at + 1)), disk_bytes=1 << 30, chunk_tokens=16, key=_keys(key))
        assert {info.name for info in store.list_agents("")} == {"ann", "bob"}, (at, counted.calls[at])
        store.close()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO])
def test_a_key_that_cannot_be_removed_is_refused_with_its_cause(tmp_path: Path, code: int) -> None:
    with opened(tmp_path / "store") as memory:
        memory.agent("a").say("hello")
    shutil.copytree(tmp_path / "store", tmp_path / "whole")
    change_key(tmp_path / "whole", _keys(KEY), None, files := Counted())
    at = files.calls.index("remove")
    with pytest.raises(StoreError, match=os.strerror(code)):
        change_key(tmp_path / "store", _keys(KEY), None, Refusing(code, at, at + 1))
    assert _opens(tmp_path / "store", KEY)


NEW = b"a newer key, 16+"


def test_an_open_store_is_put_under_another_key_while_agents_go_on(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as memory:
        asked = memory.agent("ann").stream("a long text " * 40)
        memory.rekey(lambda: NEW)
        asked.result()
        memory.context.remember("a persimmon")  # recall's file is opened under the store's own key, after the change
        memory.agent("ann").say("more")
        memory.flush()
        with open_store(tmp_path / "store", key=NEW) as view:
            assert [info.n_turns for info in view.agents()] == [2]
        with pytest.raises(WrongKeyError):
            open_store(tmp_path / "store", key=KEY)
    _refused(tmp_path / "store", KEY)
    with opened(tmp_path / "store", NEW) as memory:
        assert memory.agent("ann").say("again").usage.tier == "cold"
        assert memory.context.recall("persimmon")
        assert memory.verify().ok
        assert memory.verify().strangers == ()
        memory.rekey(KEY)
    assert _opens(tmp_path / "store", KEY)


def test_an_open_store_refuses_a_key_that_it_cannot_take(tmp_path: Path) -> None:
    with opened(tmp_path / "plain", None) as memory:
        with pytest.raises(WrongKeyError, match="not encrypted"):
            memory.rekey(NEW)
        assert not (tmp_path / "plain" / KEY_FILE).exists()
    with Memory(EchoRunner(), ":memory:", config=config()) as memory, pytest.raises(ConfigError, match="no folder"):
        memory.rekey(NEW)
    with opened(tmp_path / "store") as memory:
        memory.agent("a").say("hello")
        for bad in (None, b"short", "no bytes"):
            with pytest.raises(ConfigError):
                memory.rekey(bad)  # type: ignore[arg-type]
        reader = Memory(EchoRunner(), tmp_path / "store", config=config(), read_only=True)
        with reader, pytest.raises(ReadOnlyError):
            reader.rekey(NEW)
        kept = (tmp_path / "store" / KEY_FILE).read_bytes()
        (tmp_path / "store" / KEY_FILE).unlink()
        with pytest.raises(StoreError, match="is gone"):  # who dropped the key erased the store: it does not come back
            memory.rekey(NEW)
        assert not (tmp_path / "store" / KEY_FILE).exists()
        (tmp_path / "store" / KEY_FILE).write_bytes(kept)
    with pytest.raises(ClosedError):
        memory.rekey(NEW)
    assert _opens(tmp_path / "store", KEY)


@pytest.mark.parametrize("power_cut", [False, True])
def test_a_killed_rekey_of_an_open_store_leaves_one_of_the_keys(
    pristine: Path, tmp_path: Path, power_cut: bool
) -> None:
    opens = [0, 0]
    shutil.copytree(pristine, tmp_path / "whole")
    store = Store(tmp_path / "whole", disk_bytes=1 << 30, chunk_tokens=16, files=(files := Counted()), key=_keys(KEY))
    before = len(files.calls)
    store.rewrap(Keys(NEW))
    calls = range(before, len(files.calls))
    store.close()
    assert len(calls) >= 4
    for at in calls:
        work, left = tmp_path / f"work{at}", tmp_path / f"left{at}"
        shutil.copytree(pristine, work)
        dying = Dying(at)
        store = Store(work, disk_bytes=1 << 30, chunk_tokens=16, files=dying, key=_keys(KEY))
        with pytest.raises(Killed):
            store.rewrap(Keys(NEW))
        dying.leave(work, left, power_cut=power_cut)
        is_new = _opens(left, NEW)
        opens[is_new] += 1
        assert is_new or _opens(left, KEY), at
        with opened(left, NEW if is_new else KEY) as memory:
            assert memory.verify().strangers == (), at
    assert opens[0]
    assert opens[1] or power_cut


def test_a_store_that_is_written_anew_is_closed_to_the_former_key_and_its_file(pristine: Path, tmp_path: Path) -> None:
    """Whoever had the former key and a copy of the folder reads what was said until then, and nothing later."""
    store = tmp_path / "store"
    for is_anew in (False, True):
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(pristine, store)
        before = {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}
        former = (store / KEY_FILE).read_bytes()
        rekey(store, KEY, NEW, anew=is_anew)
        _refused(store, KEY)
        assert found_in(store, np.zeros(0, np.uint32)) == {}
        left = {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}
        kept = {name for name, raw in before.items() if left.get(name) == raw} - {MANIFEST, "lock"}
        assert bool(kept) is not is_anew, kept
        with opened(store, NEW) as memory:
            assert memory.agent("alice-the-agent").say("again").usage.tier == "cold"
            assert memory.context.workspace("workshop-space").recall("persimmon")
            assert memory.verify().ok
            assert memory.verify().strangers == ()
        (store / KEY_FILE).write_bytes(former)  # the leaked copy
        if is_anew:
            with pytest.raises(StoreError):
                open_store(store, key=KEY)
        else:
            with open_store(store, key=KEY) as view:
                assert view.show("alice-the-agent").messages

"""A lost or damaged manifest: logs whose checksums hold and segments that vouch for themselves are found again."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from agent_memory import open_store
from agent_memory.errors import AgentMemoryError, StoreError
from agent_memory.log.files import LOCK, MANIFEST, REPAIRING
from agent_memory.log.turns import Turn
from agent_memory.types import Message
from tests.parts.breaking import Counted, Dying, Killed
from tests.parts.kvmodel import MIXED, SMALL, draw, held_bytes, is_right, kv_files, load, load_beside, opened, save

NAMES = ("ann", "bob", "cid")
N_TURNS = 6
KINDS = {"full attention": SMALL, "windows and states": MIXED}


def text(name: str, number: int) -> str:
    return f"{name} says turn {number}, at some length: " + "believable " * 30


def ids_of(name: str) -> np.ndarray:
    shared = draw(np.random.default_rng(99), 40)
    return np.concatenate([shared, draw(np.random.default_rng(NAMES.index(name)), 90)])


def fill(path: Path, layout, *, crash_to: Path | None = None) -> None:
    """Three agents with a shared beginning; ``crash_to``: a copy of what is there before it is closed."""
    with opened(path, layout=layout, files=Counted()) as store:
        for name in NAMES:
            agent = store.create_agent("", name, system=f"system of {name}", tools="[]").agent_id
            ids = ids_of(name)
            cuts = np.linspace(0, len(ids), N_TURNS + 1).astype(int)
            for number in range(N_TURNS):
                start, stop = int(cuts[number]), int(cuts[number + 1])
                turn = Turn((Message("user", text(name, number)),), start, ids[start:stop], "t", "stop", 0.0, number)
                store.append_turn(agent, number, turn)
                save(store, ids[:stop], layout=layout, agent_id=agent)
        store.flush()
        if crash_to is not None:
            shutil.copytree(path, crash_to, ignore=shutil.ignore_patterns("*-shm"))


@pytest.fixture(scope="module", params=KINDS, ids=str)
def stores(request, tmp_path_factory):
    """A layout, a store that was closed, and one whose process died."""
    folder = tmp_path_factory.mktemp("stores")
    fill(folder / "closed", KINDS[request.param], crash_to=folder / "crashed")
    return KINDS[request.param], folder / "closed", folder / "crashed"


def alter(manifest: Path, statement: str) -> None:
    db = sqlite3.connect(manifest)
    db.execute(statement)
    db.commit()
    db.close()


def sound(store, layout) -> int:
    """How many tokens are served, all of them right."""
    served = 0
    for name in NAMES:
        for _ in range(10):
            match = store.match(ids_of(name))
            if not match.n_tokens:
                break
            if layout is SMALL:
                kv, is_sound = load(store, match)
                assert not is_sound or is_right(kv, ids_of(name)[: match.n_tokens])
            else:
                is_sound = load_beside(store, match, ids_of(name), layout)
            if is_sound:
                break
        else:
            raise AssertionError("a match keeps offering damage")
        served += match.n_tokens
    return served


def logs(store) -> dict[str, int]:
    """Turns of each agent, each of them as it was said."""
    found = {}
    for name in NAMES:
        record = store.load_agent("", name)
        if record is not None:
            for number, message in enumerate(record.messages):
                assert message.content == text(name, number)
            found[name] = len(record.turns)
    return found


def test_a_lost_manifest_costs_the_logs_and_no_kv_and_it_is_said(stores, tmp_path, caplog):
    layout, closed, _ = stores
    path = Path(shutil.copytree(closed, tmp_path / "copy"))
    (path / "manifest.sqlite3").unlink()
    n_files = len(kv_files(path))
    with opened(path, layout=layout) as store:
        assert sound(store, layout) == sum(len(ids_of(name)) for name in NAMES)
        assert logs(store) == {}
        assert store.stats()["damage"] == 1
        report = store.verify()
        assert not report.ok
        assert "is missing" in report.damaged[0]
        assert f"{n_files} of {n_files} KV files" in report.damaged[0]
        assert store.stats()["disk_bytes"] == held_bytes(path)
    assert "is missing" in caplog.text
    with opened(path, layout=layout) as store:
        assert store.verify().ok
        assert store.stats()["damage"] == 0
        assert sound(store, layout) == sum(len(ids_of(name)) for name in NAMES)


@pytest.mark.parametrize("harm", ["not a database", "half of it", "a page of zeros", "no table of turns", "columns"])
def test_a_damaged_manifest_is_kept_aside_and_what_holds_of_it_goes_on(stores, tmp_path, harm):
    layout, closed, _ = stores
    path = Path(shutil.copytree(closed, tmp_path / "copy"))
    manifest = path / "manifest.sqlite3"
    raw = bytearray(manifest.read_bytes())
    if harm == "not a database":
        raw[:] = b"not a database" * 100
    elif harm == "half of it":
        del raw[len(raw) // 2 :]
    elif harm == "a page of zeros":
        raw[8 * 4096 : 9 * 4096] = bytes(4096)
    manifest.write_bytes(raw)
    if harm == "no table of turns":
        alter(manifest, "DROP TABLE turns")
    elif harm == "columns":
        alter(manifest, "ALTER TABLE agents RENAME COLUMN salt TO salu")
    raw = manifest.read_bytes()
    with opened(path, layout=layout) as store:
        assert sound(store, layout) == sum(len(ids_of(name)) for name in NAMES)
        found = logs(store)
        assert set(found.values()) <= set(range(N_TURNS + 1))
        assert "manifest.sqlite3.damaged-1" in store.verify().damaged[0]
        assert (path / "manifest.sqlite3.damaged-1").read_bytes() == raw
        assert f"{len(found)} agents with {sum(found.values())} turns" in store.verify().damaged[0]
        if harm == "no table of turns":
            assert found == dict.fromkeys(NAMES, 0)
        elif harm == "columns":
            assert found == {}
    with opened(path, layout=layout) as store:
        assert store.verify().ok
        assert logs(store) == found


def test_every_turn_is_found_again_where_only_the_list_of_segments_is_damaged(stores, tmp_path):
    layout, closed, _ = stores
    path = Path(shutil.copytree(closed, tmp_path / "copy"))
    alter(path / "manifest.sqlite3", "UPDATE segments SET exactness = 'exactly', n_tokens = 'many'")
    for has_mark in (True, False):
        again = Path(shutil.copytree(path, tmp_path / f"{has_mark}"))
        if not has_mark:
            (again / "lock").write_text("{}")
        with opened(again, layout=layout) as store:
            assert logs(store) == dict.fromkeys(NAMES, N_TURNS)
            assert sound(store, layout) == sum(len(ids_of(name)) for name in NAMES)
            store.delete_agent(store.load_agent("", "ann").agent_id)
            assert store.match(ids_of("ann")).n_tokens <= 40, "what it shared"
            assert store.match(ids_of("bob")).n_tokens == len(ids_of("bob"))
            assert store.verify().damaged[1:] == ()


@pytest.mark.parametrize("harm", ["segments", "agents"])
def test_pinned_agents_that_are_found_again_are_pinned(stores, tmp_path, harm):
    layout, closed, _ = stores
    path = Path(shutil.copytree(closed, tmp_path / "copy"))
    with opened(path, layout=layout, files=Counted()) as store:
        pinned = [store.load_agent("", name).agent_id for name in NAMES[:2]]
        for agent in pinned:
            store.pin(agent, True)
    alter(path / "manifest.sqlite3", "UPDATE segments SET exactness = 'exactly', n_tokens = 'many'")
    if harm == "agents":
        alter(path / "manifest.sqlite3", f"DELETE FROM agents WHERE agent = {pinned[1]}")
    (path / "lock").write_text("{}")
    with opened(path, layout=layout) as store:
        assert store.load_agent("", NAMES[0]).is_pinned
        assert store.pins == {*pinned[: 1 if harm == "agents" else 2]}
        assert store.create_agent("", "dan", system=None, tools="[]").agent_id not in store.pins


def harmed(path: Path, draws: random.Random) -> Path:
    """One bit flipped, or one cut, anywhere in a store; which file."""
    files = [f for f in sorted(path.rglob("*")) if f.is_file() and f.stat().st_size]
    is_manifest = draws.random() < 0.5
    file = draws.choice([f for f in files if (f.parent == path) == is_manifest])
    raw = bytearray(file.read_bytes())
    if draws.random() < 0.8:
        raw[draws.randrange(len(raw))] ^= 1 << draws.randrange(8)
    else:
        del raw[draws.randrange(len(raw)) :]
    file.write_bytes(raw)
    return file


def harm_and_look(stores, tmp_path, n_rounds: int, seed: int) -> None:
    layout, *kinds = stores
    whole = dict.fromkeys(NAMES, N_TURNS)
    draws = random.Random(seed)
    for number in range(n_rounds):
        path = Path(shutil.copytree(kinds[number % 2], tmp_path / "copy"))
        file = harmed(path, draws)
        try:
            with opened(path, layout=layout, files=Counted()) as store:
                found, served = logs(store), sound(store, layout)
                is_less = found != whole or served < sum(len(ids_of(name)) for name in NAMES)
                n_noted, report = store.stats()["damage"], store.verify()
                assert n_noted or not report.ok or not is_less, f"round {number}: {file.name} and nothing was noticed"
        except AgentMemoryError as error:
            assert "version" in str(error), "refused, and untouched"  # noqa: PT017
        shutil.rmtree(path)


def test_one_flip_or_cut_anywhere_is_noticed_or_harmless(stores, tmp_path):
    harm_and_look(stores, tmp_path, 60, 0)


@pytest.mark.slow
def test_600_flips_and_cuts_anywhere_are_noticed_or_harmless(stores, tmp_path):
    harm_and_look(stores, tmp_path, 600, 1)


@pytest.mark.parametrize("harm", ["closed", "crashed", "missing"])
def test_a_repair_that_dies_before_any_change_of_the_disk_begins_anew(stores, tmp_path, harm):
    """Twice in a row, and with a power cut: every turn and all KV is found again in the end."""
    layout, closed, crashed = stores
    left = Path(shutil.copytree(crashed if harm == "crashed" else closed, tmp_path / "left"))
    if harm == "closed":
        alter(left / MANIFEST, "UPDATE segments SET exactness = 'exactly', n_tokens = 'many'")
    elif harm == "crashed":
        (left / LOCK).write_text(json.dumps({"pid": 1, "host": "h", "commits": 10**6}))
    else:
        (left / MANIFEST).unlink()
    raw = {f"1{file.name.removeprefix(MANIFEST)}": file.read_bytes() for file in left.glob(f"{MANIFEST}*")}
    assert raw.keys() == {"closed": {"1"}, "crashed": {"1", "1-wal"}, "missing": set()}[harm]
    has_ended, n_refused, at = False, 0, 0
    while not has_ended:
        path = left
        for number, power_cut in enumerate((False, True)):
            files, place = Dying(at), Path(shutil.copytree(path, tmp_path / f"{at}-{number}"))
            with contextlib.suppress(Killed, AgentMemoryError), opened(place, layout=layout, files=files):
                pass
            has_ended |= not files.is_dead
            path = tmp_path / f"{at}-{number}-left"
            files.leave(place, path, power_cut=power_cut)
            if (path / REPAIRING).exists():
                n_refused += 1
                with pytest.raises(StoreError, match="repair"):
                    open_store(path)
        with opened(path, layout=layout, files=Counted()) as store:
            assert logs(store) == ({} if harm == "missing" else dict.fromkeys(NAMES, N_TURNS))
            assert sound(store, layout) == sum(len(ids_of(name)) for name in NAMES)
            assert store.verify().strangers == ()
        kept = {f.name.removeprefix(f"{MANIFEST}.damaged-"): f.read_bytes() for f in path.glob("*.damaged-*")}
        if harm != "crashed":  # there a death in the lock's write may hide that changes are lost, and folds the WAL
            assert kept == raw
        assert not list(path.glob("*repairing*"))
        at += 1
    assert at > 6
    assert n_refused >= 4

"""Stores of every write version so far are read: logs, hits, side files. A newer one is refused and not touched."""

from __future__ import annotations

import sqlite3
import zipfile
from pathlib import Path

import pytest

from agent_memory import IncompatibleStoreError, Memory, open_store
from agent_memory.log.files import MANIFEST
from agent_memory.log.schema import WRITE_VERSION
from tests.parts.kvmodel import MIXED, load_beside, opened, save
from tests.store.make_fixtures import CONFIG, FOLDER, SAID, ids_beside, main, runner

VERSIONS = sorted(int(path.stem.rpartition("-")[2]) for path in FOLDER.glob("echo-*.zip"))


def unpacked(name: str, version: int, to: Path) -> Path:
    with zipfile.ZipFile(FOLDER / f"{name}-{version}.zip") as zipped:
        zipped.extractall(to)
    return to


def write_version(path: Path) -> str:
    db = sqlite3.connect(path / MANIFEST)
    found = db.execute("SELECT value FROM meta WHERE key = 'write_version'").fetchone()[0]
    db.close()
    return found


def test_there_is_a_fixture_of_this_version_and_of_those_before():
    assert list(range(VERSIONS[0], WRITE_VERSION + 1)) == VERSIONS
    assert all(file.stat().st_size < 20_000 for file in FOLDER.glob("*.zip"))


@pytest.mark.parametrize("version", VERSIONS)
def test_agents_of_an_older_version_go_on_from_what_it_stored(tmp_path, version):
    path = unpacked("echo", version, tmp_path)
    assert write_version(path) == str(version)
    with Memory(runner(), path, config=CONFIG) as memory:
        assert memory.verify().ok
        for name, texts in SAID.items():
            agent = memory.agent(name)
            told = [m.content for m in agent.messages[1:]]
            assert told == [text for said in texts for text in (said, said)]
            before = agent.n_tokens
            reply = agent.say("And now?")
            assert reply.text == "And now?"
            if version == 2:  # the EchoRunner of that time was another model: its rows were floats
                assert reply.usage.miss == "other_model"
            else:
                assert (reply.usage.tier, reply.usage.exactness) == ("cold", "exact")
                assert reply.usage.cached_tokens >= before - 3
        assert memory.stats().damage == 0
        memory.flush()
        assert memory.verify().ok
    assert write_version(path) == str(WRITE_VERSION)


@pytest.mark.parametrize("version", VERSIONS)
def test_side_files_of_an_older_version_are_read_and_joined_by_new_ones(tmp_path, version):
    path, ids = unpacked("sides", version, tmp_path), ids_beside()
    for _ in range(2):
        with opened(path, layout=MIXED) as store:
            agent = store.load_agent("", "ann")
            assert agent.ids.tolist() == ids.tolist()
            assert store.match(ids).n_tokens == 75
            assert load_beside(store, store.match(ids), ids, MIXED)
            save(store, ids, layout=MIXED, agent_id=agent.agent_id, held_from=50)
            store.flush()
            assert store.verify().ok
            assert store.stats()["damage"] == 0


@pytest.mark.parametrize("key", ["read_version", "write_version"])
def test_a_store_of_a_later_version_is_refused_and_not_a_byte_of_it_changes(tmp_path, key):
    path = unpacked("echo", VERSIONS[-1], tmp_path)
    db = sqlite3.connect(path / MANIFEST)
    db.execute("UPDATE meta SET value = '99' WHERE key = ?", (key,))
    db.commit()
    db.close()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(IncompatibleStoreError, match="99"):
        Memory(runner(), path, config=CONFIG)
    (path / "lock").unlink()
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_the_fixtures_are_what_their_script_makes(tmp_path):
    main(tmp_path)
    for name in ("echo", "sides"):
        with zipfile.ZipFile(tmp_path / f"{name}-{WRITE_VERSION}.zip") as made:
            again = sorted(i.file_size for i in made.infolist() if i.filename != MANIFEST)
        with zipfile.ZipFile(FOLDER / f"{name}-{WRITE_VERSION}.zip") as kept:
            assert sorted(i.file_size for i in kept.infolist() if i.filename != MANIFEST) == again


@pytest.mark.parametrize("version", [5, 6, 7])
def test_a_store_is_viewed_as_its_version_left_it(tmp_path, version):
    path = unpacked("echo", version, tmp_path)
    with open_store(path) as view:
        assert sorted(agent.name for agent in view.agents()) == sorted(SAID)
        assert view.verify().ok
        assert view.du().kv_bytes > 0
    assert write_version(path) == str(version)

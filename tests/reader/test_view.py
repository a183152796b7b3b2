"""A store looked at, while another process or this one holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    Config,
    ConfigError,
    EchoRunner,
    IncompatibleStoreError,
    Memory,
    StoreError,
    UnknownAgentError,
    UnsupportedParameterError,
    open_store,
)

BRIEF = "You keep the tools of a village. " * 40


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with Memory(EchoRunner(), tmp_path / "store") as memory:
        for name in ("ann", "bob"):
            memory.agent(name, system=BRIEF).say(f"I am {name}.")
        memory.generate("Nobody asks this.")
    return tmp_path / "store"


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything in a folder but SQLite's shared-memory file."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


def test_a_view_lists_shows_and_verifies_without_changing_a_file(store: Path) -> None:
    before = files(store)
    with open_store(store) as view:
        assert {agent.name for agent in view.agents()} == {"ann", "bob"}
        assert [message.role for message in view.show("ann").messages] == ["system", "user", "assistant"]
        assert view.show("bob").messages[1].content == "I am bob."
        report = view.verify()
    assert report.ok
    assert report.turns == 2
    assert {name: facts for name, facts in files(store).items() if not name.endswith("-wal")} == before


def test_a_view_opens_while_a_memory_holds_the_store_and_sees_each_commit(store: Path) -> None:
    with Memory(EchoRunner(), store) as memory, open_store(store) as view:
        memory.agent("ann").say("Another turn.")
        memory.flush()
        assert view.show("ann").messages[-2].content == "Another turn."
        memory.delete("bob")
        assert [agent.name for agent in view.agents()] == ["ann"]
        with pytest.raises(UnknownAgentError, match="no agent 'bob'"):
            view.show("bob")


def test_what_agents_share_on_disk_is_told_apart_from_their_own(store: Path) -> None:
    with open_store(store) as view:
        uses = view.du()
    on_disk = sum(path.stat().st_size for path in (store / "kv").rglob("*.safetensors"))
    assert uses.kv_bytes == on_disk
    ann, bob = sorted(uses.agents, key=lambda use: use.name)
    assert ann.shared_bytes == bob.shared_bytes > 0
    assert bob.own_bytes > 0
    assert ann.own_bytes == 0, "bob shares the first rows of ann's last chunk"
    assert ann.own_bytes + bob.own_bytes + ann.shared_bytes + uses.anonymous_bytes == on_disk


def test_a_salt_shows_its_own_agents_alone(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path / "s", config=Config(salt="one")) as memory:
        memory.agent("ann").say("hi")
    with open_store(tmp_path / "s") as view:
        assert view.agents() == []
        assert view.du().agents == ()
    with open_store(tmp_path / "s", salt="one") as view:
        assert [agent.name for agent in view.agents()] == ["ann"]


@pytest.fixture
def unwritable(store: Path) -> Iterator[Path]:
    modes = {path: path.stat().st_mode for path in (store, *store.rglob("*"))}
    for path in modes:
        path.chmod(0o500 if path.is_dir() else 0o400)
    yield store
    for path, mode in modes.items():
        path.chmod(mode)


def test_a_folder_that_takes_no_file_is_read_all_the_same(unwritable: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere: the folder's mode stops nobody")
    with open_store(unwritable) as view:
        assert len(view.agents()) == 2


def test_what_is_no_store_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no store"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match="nothing on disk"):
        open_store(":memory:")
    with pytest.raises(ConfigError, match="path must be"):
        open_store(b"bytes")  # type: ignore[arg-type]
    (tmp_path / "manifest.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="cannot read"):
        open_store(tmp_path)


@pytest.mark.parametrize("name", [None, 3, b"ann", ["ann"], "\ud800"], ids=ascii)
def test_what_is_no_name_is_refused(store: Path, name: Any) -> None:
    with open_store(store) as view:
        with pytest.raises(ConfigError, match="an agent's name"):
            view.show(name)
        with pytest.raises(ConfigError, match="an agent's name"):
            view.export(name, store.parent / "ann.agent")
        with pytest.raises(UnsupportedParameterError, match="n_tokens"):
            view.uses(name)


def test_a_store_of_a_newer_release_is_refused(store: Path) -> None:
    import sqlite3

    with sqlite3.connect(store / "manifest.sqlite3") as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'write_version'")
    db.close()
    with pytest.raises(IncompatibleStoreError, match="write version 99"):
        open_store(store)


def test_a_row_that_says_otherwise_than_the_header_of_its_file_is_told(store: Path) -> None:
    import sqlite3

    with sqlite3.connect(store / "manifest.sqlite3") as db:
        db.execute("UPDATE segments SET host = 'another' WHERE segment = 1")
    db.close()
    with open_store(store) as view:
        [line] = view.verify().damaged
    assert "the manifest says otherwise of its host" in line

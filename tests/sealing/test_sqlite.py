"""A connection to an encrypted file is one of ``sqlite3``, but for what is on the disk."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from agent_memory.recall.sqlite_rows import Connection
from agent_memory.sealing.keys import Keys
from agent_memory.sealing.sqlite import PLAIN_HEAD, FileKey, connect, copy

KEY, OTHER = (FileKey.of(Keys(bytes([n]) * 32), "test") for n in (1, 2))
ROWS = [(n, f"said number {n}") for n in range(300)]


def filled(path: Path, key: FileKey | None) -> sqlite3.Connection:
    db = connect(path, key)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE said (number INTEGER PRIMARY KEY, words TEXT)")
    db.executemany("INSERT INTO said VALUES (?, ?)", ROWS)
    return db


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_errors_are_those_of_sqlite3(tmp_path: Path, key: FileKey | None) -> None:
    db = filled(tmp_path / "db", key)
    assert list(db.execute("SELECT * FROM said")) == ROWS
    with pytest.raises(sqlite3.IntegrityError) as full:
        db.execute("INSERT INTO said VALUES (1, '')")
    assert full.value.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CONSTRAINT
    with pytest.raises(sqlite3.OperationalError, match="syntax"):
        db.execute("SELEC")
    with pytest.raises(sqlite3.IntegrityError):
        db.executemany("INSERT INTO said VALUES (?, ?)", ROWS)
    db.set_progress_handler(lambda: True, 1)
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        list(db.execute("SELECT a.number FROM said a, said b"))
    db.set_progress_handler(None, 0)
    db.close()
    with pytest.raises(sqlite3.ProgrammingError):
        db.execute("SELECT 1")


def test_nothing_of_the_rows_is_in_the_file_or_its_wal(tmp_path: Path) -> None:
    db = filled(tmp_path / "db", KEY)
    for name in ("db", "db-wal"):
        assert b"said" not in (tmp_path / name).read_bytes()
    db.close()
    assert not (tmp_path / "db").read_bytes().startswith(PLAIN_HEAD)
    assert "x'" not in repr(KEY)


def test_a_copy_that_sqlite_cannot_open_is_an_error_of_sqlite3(tmp_path: Path) -> None:
    filled(tmp_path / "db", KEY).close()
    folder = tmp_path.joinpath(*["deep" * 50] * 3)  # SQLite takes paths of 512 bytes
    folder.mkdir(parents=True)
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        copy(tmp_path / "db", KEY, folder / "copy", OTHER)


@pytest.mark.parametrize("key", [None, OTHER], ids=["no key", "another key"])
def test_a_wrong_key_is_an_error_and_silent(tmp_path: Path, key: FileKey | None, capfd: pytest.CaptureFixture) -> None:
    filled(tmp_path / "db", KEY).close()
    db = connect(tmp_path / "db", key)
    with pytest.raises(sqlite3.DatabaseError) as wrong:
        db.execute("SELECT * FROM said")
    assert wrong.value.sqlite_errorcode == sqlite3.SQLITE_NOTADB
    db.close()
    assert capfd.readouterr() == ("", "")


def test_one_flipped_bit_loses_its_page_and_no_other(tmp_path: Path) -> None:
    db = filled(tmp_path / "db", KEY)
    db.executemany("INSERT INTO said VALUES (?, ?)", [(n, "x" * 1000) for n in range(1000, 1200)])
    db.close()
    raw = bytearray((tmp_path / "db").read_bytes())
    for at in (5, 40 * 4096 + 7):  # the file's own salt, and a page of rows
        raw[at] ^= 8
    (tmp_path / "db").write_bytes(raw)
    db = connect(tmp_path / "db", KEY)
    with pytest.raises(sqlite3.DatabaseError):
        db.execute("SELECT * FROM said").fetchall()
    assert db.execute("SELECT * FROM said WHERE number < 200").fetchall() == ROWS[:200]
    db.close()


@pytest.mark.parametrize(("old", "new"), [(None, KEY), (KEY, OTHER), (KEY, None)])
def test_a_copy_under_another_key_is_the_same_database(
    tmp_path: Path, old: FileKey | None, new: FileKey | None
) -> None:
    db = filled(tmp_path / "db", old)
    db.execute("CREATE VIRTUAL TABLE words USING fts5 (body, content='')")
    db.execute("INSERT INTO words (rowid, body) VALUES (7, 'zebra crossing')")
    db.execute("PRAGMA user_version=3")
    db.execute("PRAGMA application_id=77")
    schema = db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
    copy(tmp_path / "db", old, tmp_path / "copy", new)  # while the WAL has it all
    db.close()
    found = connect(tmp_path / "copy", new)
    assert found.execute("SELECT * FROM said").fetchall() == ROWS
    assert found.execute("SELECT rowid FROM words WHERE words MATCH 'zebra'").fetchall() == [(7,)]
    assert found.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall() == schema
    facts = [found.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")]
    assert facts == [3, 77]
    found.close()
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_a_connection_has_the_methods_of_its_class(key: FileKey | None) -> None:
    db = connect(":memory:", key, factory=Connection)
    db.execute("CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER)")
    assert [db.next_number("a"), db.next_number("a"), db.searches_vectors] == [1, 2, False]
    db.close()


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_what_is_said_of_a_damaged_schema_may_be_no_utf_8_and_is_an_error_of_sqlite3(
    tmp_path: Path, key: FileKey | None
) -> None:
    db = filled(tmp_path / "db", key)
    db.execute("PRAGMA writable_schema=ON")
    db.execute(
        "UPDATE sqlite_master SET name = CAST(x'736169c464' AS TEXT), sql = 'CREATE TABLE said (' WHERE name = 'said'"
    )
    db.close()
    found = connect(tmp_path / "db", key)
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        found.execute("SELECT count(*) FROM sqlite_master").fetchone()
    found.close()


def test_without_a_key_nothing_of_it_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom agent_memory import EchoRunner, Memory, open_store\n"
        f"with Memory(EchoRunner(), {str(tmp_path)!r}) as memory:\n"
        "    memory.agent('a').say('hello')\n    memory.context.remember('a fact')\n"
        f"open_store({str(tmp_path)!r}).close()\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('cryptography', 'sqlcipher3')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

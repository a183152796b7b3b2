"""The recall file: transactions, migrations, other processes, and bytes that are gone."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent_memory.errors import ClosedError, ConfigError, IncompatibleStoreError, StoreError
from agent_memory.recall.database import Database
from agent_memory.recall.schema import STEPS, Step
from tests.parts.waiting import together


def add(db: Database, word: str) -> None:
    with db.write() as connection:
        connection.execute("INSERT INTO counters VALUES (?, 1)", (word,))


def fail_in_the_middle(db: Database) -> None:
    with db.write() as connection:
        connection.execute("INSERT INTO counters VALUES ('lost', 1)")
        add(db, "lost too")
        _ = 1 / 0


def words(db: Database) -> list[str]:
    with db.read() as connection:
        return [name for (name,) in connection.execute("SELECT name FROM counters ORDER BY name")]


@pytest.mark.parametrize("where", [":memory:", "recall.sqlite"])
def test_what_was_written_is_read_and_an_error_takes_all_of_it_back(where: str, tmp_path: Path) -> None:
    db = Database(where if where == ":memory:" else tmp_path / where)
    add(db, "kept")
    with pytest.raises(ZeroDivisionError):
        fail_in_the_middle(db)
    assert words(db) == ["kept"]
    assert db.check() == ()
    db.close()
    with pytest.raises(ClosedError):
        add(db, "late")


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    db = Database(tmp_path / "deep" / "recall.sqlite")
    add(db, "x")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "deep").iterdir()}
    assert modes["recall.sqlite"] == 0o600
    assert set(modes.values()) == {0o600}
    db.close()


def test_a_reader_sees_one_snapshot_while_another_thread_writes(tmp_path: Path) -> None:
    db = Database(tmp_path / "recall.sqlite")
    add(db, "a")
    with db.read() as connection:
        before = connection.execute("SELECT count(*) FROM counters").fetchone()
        writer = threading.Thread(target=add, args=(db, "b"))
        writer.start()
        writer.join(10)
        assert connection.execute("SELECT count(*) FROM counters").fetchone() == before
    assert words(db) == ["a", "b"]
    db.close()


def test_another_process_reads_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "recall.sqlite"
    db = Database(path)
    add(db, "seen")
    program = (
        "import sys; from agent_memory.recall.database import Database\n"
        "db = Database(sys.argv[1])\n"
        "with db.read() as c: print(c.execute('SELECT name FROM counters').fetchall())\n"
        "with db.write() as c: c.execute(\"INSERT INTO counters VALUES ('from there', 1)\")\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert "seen" in done.stdout
    assert words(db) == ["from there", "seen"]
    db.close()


def test_eight_threads_write_and_read_without_a_lock_error(tmp_path: Path) -> None:
    db = Database(tmp_path / "recall.sqlite")

    def work(number: int) -> None:
        for i in range(20):
            add(db, f"{number}-{i}")
            words(db)

    together(work)
    assert len(words(db)) == 160
    db.close()


def test_a_newer_file_and_a_file_of_another_program_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recall.sqlite"
    Database(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("PRAGMA user_version=99")
    raw.close()
    with pytest.raises(IncompatibleStoreError, match="version 99"):
        Database(path)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as raw:
        raw.execute("CREATE TABLE theirs (x)")
    raw.close()
    with pytest.raises(ConfigError, match="another program"):
        Database(other)
    (tmp_path / "text").write_text("no database at all, but a long enough text " * 40)
    with pytest.raises(StoreError):
        Database(tmp_path / "text")


def test_a_migration_keeps_a_backup_and_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "recall.sqlite"
    db = Database(path)
    add(db, "old")
    db.close()
    more = Step(len(STEPS) + 1, "context", "CREATE TABLE later (x);\nINSERT INTO later VALUES (7);")
    db = Database(path, steps=(*STEPS, more))
    assert words(db) == ["old"]
    [backup] = db.backups()
    assert backup.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(backup) as raw:
        assert raw.execute("SELECT name FROM counters").fetchall() == [("old",)]
        assert raw.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
    raw.close()
    db.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "recall.sqlite"
    db = Database(path)
    add(db, "old")
    db.close()
    broken = Step(len(STEPS) + 1, "context", "CREATE TABLE later (x);\nCREATE TABLE counters (x);")
    with pytest.raises(StoreError):
        Database(path, steps=(*STEPS, broken))
    db = Database(path)
    assert words(db) == ["old"]
    db.close()


def test_scrubbing_removes_deleted_bytes_from_every_file(tmp_path: Path) -> None:
    path = tmp_path / "recall.sqlite"
    Database(path).close()
    more = Step(len(STEPS) + 1, "context", "CREATE TABLE later (x);")
    secrets = [f"zebrafish{n}quartz" for n in range(50)]
    db = Database(path)
    for secret in secrets:
        add(db, secret)
    db.close()
    db = Database(path, steps=(*STEPS, more))  # leaves a backup that holds them too
    words(db)  # and a reader's connection in the pool
    with db.write() as connection:
        connection.execute("DELETE FROM counters")
    db.scrub()
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert [secret for secret in secrets if secret.encode() in left] == []
    db.close()


def test_a_forked_child_is_told_to_open_its_own(tmp_path: Path) -> None:
    db = Database(tmp_path / "recall.sqlite")
    child = os.fork()
    if child == 0:
        try:
            words(db)
        except ClosedError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    db.close()


def test_the_full_text_index_is_among_what_is_checked_and_scrubbed(tmp_path: Path) -> None:
    db = Database(tmp_path / "recall.sqlite")
    assert db._fts_tables() == ["words"]
    with db.write() as connection:
        connection.execute("INSERT INTO words (rowid, body) VALUES (1, 'w1zquartz')")
    with db.write() as connection:
        connection.execute("UPDATE words_data SET block = x'00' WHERE id > 10")
    assert any("words" in line for line in db.check())
    db.close()


def test_a_scrub_that_a_crash_prevented_is_done_when_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "recall.sqlite"
    db = Database(path)
    for n in range(50):
        add(db, f"zebrafish{n}quartz")
    with db.write() as connection:
        connection.execute("DELETE FROM counters WHERE name LIKE 'zebra%'")
        db.owe_scrub(connection)
    assert b"zebrafish7quartz" in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    db.close()  # and no scrub
    db = Database(path)
    assert b"zebrafish7quartz" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    with db.read() as connection:
        assert connection.execute("SELECT count(*) FROM counters WHERE name = 'unscrubbed'").fetchone() == (0,)
    db.close()


def test_idle_work_merges_the_index_in_short_steps_and_loses_no_word(tmp_path: Path) -> None:
    from agent_memory import ContextMemory

    def parts() -> int:
        with sqlite3.connect(tmp_path / "recall.sqlite") as raw:
            return int(raw.execute("SELECT count(DISTINCT segid) FROM words_idx").fetchone()[0])

    with ContextMemory(tmp_path / "recall.sqlite") as memory:
        for n in range(40):
            memory.remember([f"the gull number{n} word{i}" for i in range(20)][n % 20], kind="note")
        memory.remember("zebra " * 3000, kind="note")
        before = parts()
        done = memory.maintain(10_000)
        assert done.n_pages_merged > 0
        assert parts() < before
        assert memory.maintain().n_pages_merged == 0, "nothing is due"
        assert {hit.item.text for hit in memory.recall("number7")} == {"the gull number7 word7"}
        assert memory.check().ok

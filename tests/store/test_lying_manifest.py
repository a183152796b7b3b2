"""A manifest that lies: its schema and its values are checked, nothing in it runs, and what is lost is admitted."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent_memory import Config, EchoRunner, Memory
from agent_memory.errors import AgentMemoryError
from agent_memory.log.blobs import agent_sum
from agent_memory.log.schema import check_schema, connect, migrate
from agent_memory.log.turns import Turn, turn_sum
from agent_memory.store.catalog import Catalog
from agent_memory.types import Message
from tests.parts.breaking import Counted
from tests.parts.kvmodel import (
    IDENTITY,
    MIXED,
    draw,
    load_beside,
    opened,
    save,
)

NAMES = ("ann", "bob", "cid")
N_TURNS = 4
DEEP = "[" * 50_000 + "]" * 50_000
TABLES = ("meta", "identities", "agents", "turns", "lineages", "segments", "sides", "sqlite_sequence")
CONFIG = Config(chunk_tokens=16, prefill_tokens=16)


def ids_of(name: str) -> np.ndarray:
    shared = draw(np.random.default_rng(9), 40)
    return np.concatenate([shared, draw(np.random.default_rng(NAMES.index(name)), 60)])


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("original") / "store"
    with opened(path, layout=MIXED, files=Counted()) as store:
        for name in NAMES:
            agent = store.create_agent("", name, system=f"system of {name}", tools="[]").agent_id
            ids = ids_of(name)
            for number in range(N_TURNS):
                start, stop = number * 25, number * 25 + 25
                message = Message("user", f"{name} {number}")
                store.append_turn(agent, number, Turn((message,), start, ids[start:stop], "t", "stop", 0.0, number))
                save(store, ids[:stop], layout=MIXED, agent_id=agent)
        store.pin(1, True)
        store.flush()
    return path


def alter(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path / "manifest.sqlite3", isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


def is_unsealed(path: Path) -> None:
    """As after a process that died: the lock vouches for nothing."""
    (path / "lock").write_text("{}")


def look(path: Path) -> tuple[dict[str, int], bool, set[str]]:
    """Use a store in every way there is: turns by agent, whether anything was said to be wrong, and what was listed."""
    with opened(path, layout=MIXED, files=Counted()) as store:
        listed = {info.name: info.n_turns for info in store.list_agents("")}
        turns = {}
        for name in NAMES:
            record = store.load_agent("", name)
            if record is None:
                continue
            turns[name] = len(record.turns)
            assert [m.content for m in record.messages] == [f"{name} {n}" for n in range(turns[name])]
            assert listed.get(name) is not None
            for _ in range(20):
                match = store.match(ids_of(name))
                if not match.n_tokens or load_beside(store, match, ids_of(name)[: match.n_tokens], MIXED):
                    break
            else:
                raise AssertionError("a match keeps offering damage")
            number = turns[name]
            more = Turn((Message("user", f"{name} {number}"),), 25 * number, ids_of(name)[:5], "t", "stop", 0.0, number)
            store.append_turn(record.agent_id, number, more)
            save(store, ids_of(name)[:70], layout=MIXED, agent_id=record.agent_id)
        store.recorded("plain")
        store.flush()
        report, damage = store.verify(), store.stats()["damage"]
        if "cid" in turns:
            store.delete_agent(store.load_agent("", "cid").agent_id)
        store.compact()
        store.flush()
        for name in turns:
            if name != "cid":
                assert len(store.load_agent("", name).turns) == turns[name] + 1, "an appended turn stays"
        return turns, bool(report.damaged) or damage > 0, set(listed)


def holds(path: Path) -> None:
    """No other exception than the library's, and never a turn less than is admitted."""
    try:
        turns, is_admitted, listed = look(path)
    except AgentMemoryError:
        return
    is_whole = turns == dict.fromkeys(NAMES, N_TURNS) and listed >= set(NAMES)
    assert is_whole or is_admitted, f"{turns} of {listed}, and nothing was said"


SCHEMAS = {
    "a trigger that deletes turns": [
        "CREATE TRIGGER t AFTER UPDATE ON agents BEGIN DELETE FROM turns WHERE number > 0; END"
    ],
    "a trigger on the counter": ["CREATE TRIGGER t AFTER UPDATE ON meta BEGIN DELETE FROM agents; END"],
    "a view in place of turns": [
        "ALTER TABLE turns RENAME TO u",
        "CREATE VIEW turns AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT u.* FROM u, r",
    ],
    "a view in place of meta": [
        "ALTER TABLE meta RENAME TO m",
        "CREATE VIEW meta AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT m.* FROM m, r",
    ],
    "a view in place of agents": ["ALTER TABLE agents RENAME TO a", "CREATE VIEW agents AS SELECT * FROM a LIMIT 1"],
    "no lineages": ["DROP TABLE lineages"],
    "no index": ["DROP INDEX sides_segment"],
    "nothing": [f"DROP TABLE {table}" for table in TABLES if table != "sqlite_sequence"],
    "a column renamed": ["ALTER TABLE agents RENAME COLUMN used_s TO used"],
    "a column gone": ["ALTER TABLE identities DROP COLUMN facts"],
    "a column more": ["ALTER TABLE turns ADD COLUMN more TEXT"],
    "a column computed": ["ALTER TABLE turns ADD COLUMN more TEXT GENERATED ALWAYS AS (abs(number)) VIRTUAL"],
    "a table more": ["CREATE TABLE notes (text TEXT)"],
    "an index that computes": ["CREATE INDEX i ON turns (abs(number))"],
    "other types": [
        "CREATE TABLE a2 AS SELECT * FROM agents",
        "DROP TABLE agents",
        "ALTER TABLE a2 RENAME TO agents",
    ],
    "rewritten by hand": [
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql = replace(sql, 'INTEGER NOT NULL', 'TEXT') WHERE name = 'turns'",
    ],
}


@pytest.mark.parametrize("is_sealed", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_no_version_writes_sets_the_manifest_aside_and_nothing_in_it_runs(
    original, tmp_path, name, is_sealed
):
    path = Path(shutil.copytree(original, tmp_path / "copy"))
    alter(path, *SCHEMAS[name])
    if not is_sealed:
        is_unsealed(path)
    left = (path / "manifest.sqlite3").read_bytes()
    holds(Path(shutil.copytree(path, tmp_path / "used")))
    with opened(path, layout=MIXED) as store:
        assert "is damaged" in store.verify().damaged[0]
        assert (path / "manifest.sqlite3.damaged-1").read_bytes() == left
        kept = {n: store.load_agent("", n) for n in NAMES}
        if "view" not in name and name not in ("nothing", "a column renamed", "other types"):
            assert all(record is not None for record in kept.values())


def test_a_trigger_that_another_process_adds_while_the_store_is_open_never_runs(original, tmp_path):
    path = Path(shutil.copytree(original, tmp_path / "copy"))
    with opened(path, layout=MIXED) as store:
        db = sqlite3.connect(path / "manifest.sqlite3", isolation_level=None)
        db.execute("CREATE TRIGGER t AFTER UPDATE ON agents BEGIN DELETE FROM turns WHERE number > 0; END")
        db.close()
        agent = store.load_agent("", "ann").agent_id
        store.append_turn(agent, 4, Turn((Message("user", "ann 4"),), 100, ids_of("ann")[:5], "t", "stop", 0.0, 4))
        with pytest.raises(AgentMemoryError):
            store.flush()
        assert {info.n_turns for info in store.list_agents("")} == {N_TURNS}
        db = sqlite3.connect(path / "manifest.sqlite3", isolation_level=None)
        db.execute("DROP TRIGGER t")
        db.close()
        store.stats()  # SQLite sees that the trigger is gone when it next reads
        store.flush()
        assert len(store.load_agent("", "ann").turns) == N_TURNS + 1


def test_the_schema_of_every_version_is_known():
    db = connect(None)
    migrate(db)
    version = int(db.execute("SELECT value FROM meta WHERE key = 'write_version'").fetchone()[0])
    check_schema(db, version)
    check_schema(db, 6)  # 7 allows other names of codecs, in the same tables
    for wrong in range(6):
        with pytest.raises(sqlite3.DatabaseError, match="its schema is not what"):
            check_schema(db, wrong)
    db.close()


VALUES = {
    "tools nested deeply": f"UPDATE agents SET tools = CAST('{DEEP}' AS BLOB)",
    "tools of another kind": "UPDATE agents SET tools = CAST('[[1, 2, 3]]' AS BLOB)",
    "a name that is a number": "UPDATE agents SET name = 1000000000000 WHERE name = CAST('bob' AS BLOB)",
    "times that are text": "UPDATE agents SET created_s = 'x', used_s = 'y'",
    "a time that is none": "UPDATE agents SET used_s = 9e999",
    "facts nested deeply": f"UPDATE identities SET facts = '{DEEP}'",
    "facts that are a list": "UPDATE identities SET facts = '[1]'",
    "facts that are numbers": """UPDATE identities SET facts = '{"model": 3}'""",
    "a layout of text": "UPDATE identities SET layout = '[[1, 2]]'",
    "messages nested deeply": f"UPDATE turns SET messages = '{DEEP}' WHERE number = 2",
    "messages as a blob": "UPDATE turns SET messages = CAST(messages AS BLOB)",
    "text that is no UTF-8": "UPDATE turns SET messages = CAST(x'ff00fe' AS TEXT)",
    "a number below the first": "UPDATE turns SET number = -3 WHERE agent = 1 AND number = 3",
    "a number between two": "UPDATE turns SET number = 0.5 WHERE agent = 1 AND number = 3",
    "a turn of no agent": "UPDATE turns SET agent = 99 WHERE agent = 1 AND number = 3",
    "ids cut": "UPDATE turns SET ids = substr(ids, 1, 7)",
    "ids that are text": "UPDATE turns SET ids = 'four'",
    "numbers that are text": "UPDATE turns SET number = 'n' || number",
    "a turn of nobody": "UPDATE turns SET agent = x'00' WHERE agent = 1 AND number = 3",
    "a head that is a number": "UPDATE OR REPLACE lineages SET head = 7",
    "a file outside": "UPDATE segments SET file = '../../../etc/passwd'",
    "a file outside that ends well": "UPDATE segments SET file = '../x/' || substr(file, 18)",
    "an absolute file": "UPDATE segments SET file = '/etc/passwd'",
    "a side file outside": "UPDATE sides SET file = '../manifest.sqlite3'",
    "sizes that are text": "UPDATE segments SET n_tokens = 'many'",
    "a parent of itself": "UPDATE segments SET parent_segment = segment",
    "the largest number": "UPDATE segments SET segment = 9223372036854775807 WHERE segment = (SELECT max(segment) FROM segments)",  # noqa: E501
    "twice the same pieces": "UPDATE segments SET pieces = (SELECT pieces FROM segments WHERE segment = 1) WHERE n_tokens = (SELECT n_tokens FROM segments WHERE segment = 1)",  # noqa: E501
    "a pin of many digits": f"INSERT INTO meta VALUES ('pinned {'9' * 5000}', '')",
    "the counter as text": "UPDATE meta SET value = 'many' WHERE key = 'commits'",
    "the version as a blob": "UPDATE meta SET value = x'ff' WHERE key = 'write_version'",
    "the last number of all": "UPDATE sqlite_sequence SET seq = 9223372036854775807",
}


@pytest.mark.parametrize("is_sealed", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("name", VALUES)
def test_values_that_no_version_writes_are_damage_and_never_another_exception(original, tmp_path, name, is_sealed):
    path = Path(shutil.copytree(original, tmp_path / "copy"))
    alter(path, VALUES[name])
    if not is_sealed:
        is_unsealed(path)
    holds(path)


@pytest.mark.parametrize("name", VALUES)
def test_values_that_change_while_the_store_is_open_raise_no_other_exception(original, tmp_path, monkeypatch, name):
    monkeypatch.setattr(Catalog, "edited", lambda self: None)  # manifest and memory are out of step, on purpose
    path = Path(shutil.copytree(original, tmp_path / "copy"))
    with opened(path, layout=MIXED) as store:
        db = sqlite3.connect(path / "manifest.sqlite3", isolation_level=None)
        db.execute(VALUES[name])
        db.close()
        for use in (
            lambda: store.list_agents(""),
            lambda: [store.load_agent("", n) for n in NAMES],
            lambda: store.recorded("plain"),
            store.verify,
            store.stats,
            store.flush,
            lambda: store.create_agent("", "dan", system=None, tools="[]"),
            lambda: store.delete_agent(3),
        ):
            with contextlib.suppress(AgentMemoryError):
                use()


def test_a_log_whose_checksum_was_made_anew_for_nonsense_ends_there(original, tmp_path):
    path = Path(shutil.copytree(original, tmp_path / "copy"))
    db = sqlite3.connect(path / "manifest.sqlite3", isolation_level=None)
    nonsense = [(DEEP, 25, 1), ("[{}]", 25, 1), ("[]", -1, 1)]
    for agent, (messages, keep, kept) in enumerate(nonsense, 1):
        ids, where = ids_of("ann")[:5], (agent, 1)
        told = Turn((), keep, ids, "t", "stop", 0.0, kept)
        row = (messages, keep, kept, ids.astype("<u4").tobytes(), turn_sum(*where, told, messages))
        db.execute(
            "UPDATE turns SET messages = ?, keep = ?, n_messages_kept = ?, ids = ?, xxh3 = ? "
            "WHERE agent = ? AND number = ?",
            (*row, *where),
        )
    db.execute(
        "UPDATE agents SET tools = ?, xxh3 = ? WHERE agent = 2",
        (DEEP.encode(), agent_sum("bob", "system of bob", DEEP, 0.0)),
    )
    db.close()
    is_unsealed(path)
    turns, is_admitted, _ = look(path)
    assert turns == dict.fromkeys(NAMES, 1)
    assert is_admitted


def test_a_memory_over_a_lying_manifest_answers_and_lists_and_verifies(tmp_path):
    with Memory(EchoRunner(), tmp_path, config=CONFIG) as memory:
        for name in NAMES:
            memory.agent(name, system="be brief").say("hello " * 10)
    alter(
        tmp_path,
        f"UPDATE agents SET tools = CAST('{DEEP}' AS BLOB)",
        f"UPDATE identities SET facts = '{DEEP}'",
        "CREATE TRIGGER t AFTER UPDATE ON agents BEGIN DELETE FROM turns; END",
    )
    is_unsealed(tmp_path)
    with Memory(EchoRunner(), tmp_path, config=CONFIG) as memory:
        assert [info.n_turns for info in memory.agents()] == [1, 1, 1]
        assert memory.agent("ann").say("again").text == "again"
        assert not memory.verify().ok
    with Memory(EchoRunner(), tmp_path, config=CONFIG) as memory:
        assert {info.name: info.n_turns for info in memory.agents()} == {"ann": 2, "bob": 1, "cid": 1}


def odd(draws: random.Random, old: object) -> object:
    """A value of any type and size."""
    return draws.choice(
        [
            lambda: None,
            lambda: draws.choice([-1, 0, 1, 2**31, 2**53, 2**63 - 1, -(2**63)]),
            lambda: draws.choice([0.5, -1e300, float("inf"), float("nan")]),
            lambda: draws.choice(["", "x", DEEP, "[]", "{}", "null", "../../x", "\0", "9" * 5000, "[[[]]]"]),
            lambda: draws.choice([b"", b"\xff" * 7, bytes(32), bytes(97), DEEP.encode(), b"[]"]),
            lambda: old[:-1] if isinstance(old, (str, bytes)) else old,
            lambda: old + old if isinstance(old, (str, bytes)) else old,
            lambda: -old if isinstance(old, (int, float)) else old,
        ]
    )()


def change_a_value(db: sqlite3.Connection, draws: random.Random) -> str:
    table = draws.choice(TABLES)
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    if db.execute("SELECT type FROM sqlite_master WHERE name = ?", (table,)).fetchone() != ("table",):
        return f"nothing: {table} is no table any more"
    rows = [row for (row,) in db.execute(f"SELECT rowid FROM {table}")]
    if not rows:
        return f"nothing in {table}"
    column, row = draws.choice(columns), draws.choice(rows)
    old = db.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (row,)).fetchone()[0]
    new = odd(draws, old)
    with contextlib.suppress(sqlite3.IntegrityError):
        db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row))
    return f"{table}.{column} of {row}: {str(new)[:30]!r}"


def change_the_schema(db: sqlite3.Connection, draws: random.Random) -> str:
    table = draws.choice([name for name in TABLES if name != "sqlite_sequence"])
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    if not columns:
        return f"nothing: {table} is gone"
    column, other = draws.choice(columns), draws.choice([name for name in TABLES if name != "sqlite_sequence"])
    statement = draws.choice(
        [
            f"DROP TABLE {table}",
            f"ALTER TABLE {table} RENAME COLUMN {column} TO odd",
            f"ALTER TABLE {table} DROP COLUMN {column}",
            f"ALTER TABLE {table} ADD COLUMN odd TEXT DEFAULT 'x'",
            f"CREATE TRIGGER odd AFTER UPDATE ON {table} BEGIN DELETE FROM {other}; END",
            f"CREATE TRIGGER odd BEFORE INSERT ON {table} BEGIN DELETE FROM {other}; END",
            f"CREATE TRIGGER odd AFTER DELETE ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END",
            f"CREATE INDEX odd ON {table} ({column})",
            f"CREATE TABLE odd AS SELECT * FROM {table}",
            f"CREATE VIEW odd AS SELECT * FROM {table}",
            f"CREATE UNIQUE INDEX odd ON {table} (rowid)",
        ]
    )
    try:
        db.execute(statement)
    except sqlite3.Error as error:
        return f"{statement}: {error}"
    if statement.startswith("DROP") and draws.random() < 0.5:
        db.execute(f"CREATE VIEW {table} AS SELECT * FROM {draws.choice(TABLES)}")
    return statement


def mutate(original: Path, tmp_path: Path, n_rounds: int, seed: int) -> None:
    draws = random.Random(seed)
    kinds: list[Callable[[sqlite3.Connection, random.Random], str]] = [change_a_value] * 3 + [change_the_schema]
    for number in range(n_rounds):
        path = Path(shutil.copytree(original, tmp_path / "copy"))
        db = sqlite3.connect(path / "manifest.sqlite3", isolation_level=None)
        done = [draws.choice(kinds)(db, draws) for _ in range(draws.choice([1, 1, 1, 2, 5]))]
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.close()
        if draws.random() < 0.7:
            is_unsealed(path)
        try:
            holds(path)
        except BaseException:
            print(f"round {number} of seed {seed}: {done}", file=sys.stderr)
            raise
        shutil.rmtree(path)


def test_40_random_mutations_of_schema_and_values_are_typed_errors_or_damage(original, tmp_path):
    mutate(original, tmp_path, 40, 0)


@pytest.mark.slow
def test_500_random_mutations_of_schema_and_values_are_typed_errors_or_damage(original, tmp_path):
    mutate(original, tmp_path, 500, 1)


def test_what_is_known_of_the_stores_identity_stands_in_the_fixture(original):
    db = sqlite3.connect(original / "manifest.sqlite3")
    assert json.loads(db.execute("SELECT facts FROM identities").fetchone()[0]) == {"model": "plain"}
    assert [one for (one,) in db.execute("SELECT identity FROM identities")] == [IDENTITY]
    db.close()

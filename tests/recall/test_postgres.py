"""What only PostgreSQL has: row-level security, roles, a server that is lost, errors without the password."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory import (
    ClosedError,
    ConfigError,
    ContextMemory,
    EpisodicMemory,
    IncompatibleStoreError,
    RemoteError,
    StoreError,
)
from tests.parts.postgres import IN_URL, PASSWORD, USER, PostgresServer

pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[2]


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    name = postgres.new_database()
    yield name
    postgres.drop(name)


@pytest.fixture(scope="module")
def shared(postgres: PostgresServer) -> Iterator[ContextMemory]:
    """One memory for all examples of a property."""
    with ContextMemory(postgres.url(postgres.new_database()), redact=None) as memory:
        yield memory


def granted(postgres: PostgresServer, database: str) -> str:
    """The URL of a role that does not own the tables, with the grants that docs/postgres.md names."""
    page = (ROOT / "docs" / "postgres.md").read_text(encoding="utf-8")
    sql = page.split("```sql\n", 1)[1].split("```", 1)[0]
    for statement in sql.replace("app_role", USER).split(";\n"):
        if statement.strip():
            postgres.admin(statement, database=database)
    return postgres.url(database, role=USER)


def test_a_role_that_is_not_the_owner_sees_no_row_without_its_workspace(
    postgres: PostgresServer, database: str
) -> None:
    with ContextMemory(postgres.url(database)) as owner:
        owner.remember("The quagga is striped.", source="zoo")
        owner.pin(owner.remember("We decided to keep the quagga.").ids[0])
        with ContextMemory(granted(postgres, database), workspace="theirs") as theirs:
            theirs.remember("The okapi is striped too.")
            assert [hit.item.text for hit in theirs.recall("striped")] == ["The okapi is striped too."]
            assert theirs.check().ok
            assert theirs.forget("okapi") == 1
            with ContextMemory(theirs._database.of(None)) as same:
                assert len(same.recall("quagga")) == 2, "the same workspace for whoever names it"
    import psycopg

    tables = [name for (name,) in postgres.admin(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = 'agent_memory' "
        "AND column_name = 'workspace'", database=database)]  # fmt: skip
    assert len(tables) >= 15
    with psycopg.connect(postgres.url(database, role=USER), autocommit=True) as raw:
        for table in tables:
            assert raw.execute(f"SELECT * FROM agent_memory.{table}").fetchall() == [], table
        raw.execute("SET agent_memory.workspace = '1'")
        assert len(raw.execute("SELECT * FROM agent_memory.texts").fetchall()) == 2
        raw.execute("SET agent_memory.workspace = '77'")
        assert raw.execute("SELECT * FROM agent_memory.texts").fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            raw.execute("INSERT INTO agent_memory.untold (workspace, item) VALUES (1, 1)")


def test_the_owner_too_is_held_to_its_workspace(postgres: PostgresServer, database: str) -> None:
    with ContextMemory(postgres.url(database)) as memory:
        memory.remember("The quagga is striped.")
        with memory._database.of(None).read() as db:  # type: ignore[attr-defined,unused-ignore]
            for table in ("texts", "items", "audit", "threads", "vectors", "episodes", "episode_events"):
                assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_the_bytes_that_another_role_leaves_are_removed_by_the_owner(postgres: PostgresServer, database: str) -> None:
    with ContextMemory(postgres.url(database)) as owner:
        with ContextMemory(granted(postgres, database)) as other:
            other.remember("The vault opens with bramblewick.")
            assert other.forget("bramblewick") == 1
            assert other.recall("vault") == []
        assert b"bramblewick" in postgres.bytes_of(database)
        owner.maintain()
        assert b"bramblewick" not in postgres.bytes_of(database)


def test_a_restarted_server_is_found_again_and_a_stopped_one_is_a_typed_error() -> None:
    server = PostgresServer()
    try:
        url = server.url(server.new_database())
        with ContextMemory(url) as memory, EpisodicMemory(url) as episodes:
            memory.remember("The ferry is red.")
            server.stop()
            server.start()
            assert memory.recall("ferry")
            assert memory.remember("The cargo is blue.").n_texts == 1
            episode = episodes.start("a task")
            server.stop("immediate")
            for call in (lambda: memory.recall("ferry"), lambda: memory.remember("lost"), lambda: episode.step("a")):
                with pytest.raises(RemoteError, match="the server runs") as caught:
                    call()  # type: ignore[no-untyped-call,unused-ignore]
                assert_no_password(caught.value)
            server.start()
            assert {hit.item.text for hit in memory.recall("ferry cargo")} >= {"The ferry is red."}
            assert episode.step("a") == 1
            assert memory.check().ok
    finally:
        server.close()


def test_a_connection_lost_in_a_transaction_leaves_nothing_of_it(postgres: PostgresServer, database: str) -> None:
    with ContextMemory(postgres.url(database)) as memory:
        memory.remember("The ferry is red.")

        def change() -> None:
            with memory._database.write() as db:
                db.execute("UPDATE texts SET kind = 'log'")
                postgres.admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
                db.execute("UPDATE texts SET role = 'tool'")

        with pytest.raises(RemoteError):
            change()
        [hit] = memory.recall("ferry")
        assert (hit.item.kind, hit.item.role) == ("note", "user")


def assert_no_password(error: BaseException) -> None:
    shown = f"{error!r} {error} {error.__cause__!r} {error.args}"
    assert PASSWORD not in shown
    assert IN_URL not in shown
    assert "sesame" not in shown


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda url: url.replace(IN_URL, "sesame"), RemoteError, "password authentication failed"),
        (lambda url: url.replace("keeper:", "nobody_at_all:"), RemoteError, "authentication failed"),
        (lambda url: url.replace("recall_", "no_such_recall_"), RemoteError, "does not exist"),
        (lambda url: "postgresql://keeper:sesame@127.0.0.1:1/x", RemoteError, "refused"),
        (lambda url: "postgresql://keeper:sesame@/x?host=/no/such/folder", RemoteError, "No such file"),
        (lambda url: "postgresql://keeper:ses%zzame@127.0.0.1/x", ConfigError, "cannot be read"),
        (lambda url: "postgresql://keeper:sesame@127.0.0.1:port/x", ConfigError, "cannot be read"),
        (lambda url: "postgresql://keeper:sesame@127.0.0.1/x?colour=red", ConfigError, "cannot be read"),
    ],
)
def test_an_opening_that_fails_says_why_and_never_the_password(
    postgres: PostgresServer, database: str, change: Callable[[str], str], error: type[Exception], match: str
) -> None:
    for opened in (ContextMemory, EpisodicMemory):
        with pytest.raises(error, match=match) as caught:
            opened(change(postgres.url(database)))
        assert_no_password(caught.value)


def test_no_handle_shows_the_password_nor_a_users_row(postgres: PostgresServer, database: str) -> None:
    with ContextMemory(postgres.url(database)) as memory, EpisodicMemory(postgres.url(database)) as episodes:
        assert PASSWORD not in f"{memory!r}{episodes!r}{memory.stats()!r}"
        assert IN_URL not in f"{memory!r}{episodes!r}"
        assert str(postgres.port) in repr(memory)
        with pytest.raises(StoreError) as caught, memory._database.write() as db:
            db.execute("INSERT INTO texts (number, kind, role, at, last_at, created_s, body, hash) "
                       "VALUES (1, 'note', 'user', 0, 0, 0, 'quokka', NULL)")  # fmt: skip
        assert "quokka" not in f"{caught.value} {caught.value.__cause__}"  # the server's detail shows the row


def test_the_socket_of_a_server_serves_as_well(postgres: PostgresServer, database: str) -> None:
    with ContextMemory(postgres.url(database, on_socket=True)) as memory:
        memory.remember("The ferry is red.")
        assert memory.recall("ferry")


def test_a_closed_and_a_forked_memory_are_refused(postgres: PostgresServer, database: str) -> None:
    memory = ContextMemory(postgres.url(database))
    child = os.fork()
    if child == 0:
        try:
            memory.recall("ferry")
        except ClosedError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert memory.recall("ferry") == []
    memory.close()
    memory.close()
    with pytest.raises(ClosedError, match="Open it again"):
        memory.recall("ferry")


def test_tables_of_a_later_version_are_refused_and_the_same_ones_are_kept(
    postgres: PostgresServer, database: str
) -> None:
    with ContextMemory(postgres.url(database)) as memory:
        memory.remember("The ferry is red.")
    with ContextMemory(postgres.url(database)) as memory:
        assert memory.recall("ferry")
    postgres.admin("INSERT INTO agent_memory.versions (version) VALUES (99)", database=database)
    with pytest.raises(IncompatibleStoreError, match="version 99"):
        ContextMemory(postgres.url(database))


def test_eight_openings_at_once_make_the_tables_once(postgres: PostgresServer, database: str) -> None:
    errors: list[BaseException] = []

    def opening(number: int) -> None:
        try:
            with ContextMemory(postgres.url(database), workspace=f"w{number % 3}") as memory:
                memory.remember(f"Opened by {number}.")
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=opening, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert postgres.admin("SELECT version FROM agent_memory.versions", database=database) == [(1,)]


WORKER = """
import sys
from random import Random
from agent_memory import ContextMemory, EpisodicMemory
url, number, shared, episode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
chance = Random(number)
with ContextMemory(url) as memory, EpisodicMemory(url) as episodes:
    for n in range(8):
        memory.remember(f"Process {number} saw the ferry for the {n}th time.", source=f"process {number % 3}")
        memory.remember("Told by all.")
        memory.remember(f"The master of the harbour is P{number}x{n}.")
        memory.feedback(shared, 0.25)
        assert memory.recall("ferry")
        memory.working_set("ferry", window=f"w{n % 2}")
        act = chance.random()
        if act < 0.3:
            memory.consolidate()
        elif act < 0.5:
            memory.maintain(5)
        elif act < 0.7:
            gone = f"quagga {number} {n}"
            memory.remember(f"The {gone} must go.")
            assert memory.forget(gone) == 1
        with episodes.start(f"task {number} {n}") as own:
            own.step("grep")
            own.complete(chance.random() < 0.7)
        episodes.recommend("task")
        memory.workspace(f"own {number}").remember(f"Mine alone: {n}.")
"""


def test_eight_processes_of_mixed_operations_lose_no_update(postgres: PostgresServer, database: str) -> None:
    url = postgres.url(database)
    with ContextMemory(url) as memory, EpisodicMemory(url) as episodes:
        shared = memory.remember("The ferry is red, says everybody.").ids[0]
        episode = episodes.start("a shared task").id
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, url, str(number), str(shared), str(episode)],
                cwd=ROOT, stderr=subprocess.PIPE, text=True,
            )
            for number in range(8)
        ]  # fmt: skip
        said = [worker.communicate()[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * 8, said
        stats = memory.stats()
        assert stats.n_texts == 1 + 8 * 8 + 1 + 8 * 8
        assert stats.n_duplicates == 8 * 8 - 1
        with memory._database.read() as db:
            assert db.execute("SELECT net_useful FROM items WHERE item = ?", (shared,)).fetchone()[0] == pytest.approx(
                16.0, rel=1e-3
            )
        masters = [hit for hit in memory.recall("who is the master of the harbour", k=50) if hit.item.slot]
        assert len(masters) == 1, "one fact of a slot is valid"
        assert memory.check().damaged == ()
        assert episodes.stats().n_completed == 8 * 8
        assert episodes.check().ok
        for number in range(8):
            assert memory.workspace(f"own {number}").stats().n_texts == 8


def test_a_writer_that_waits_too_long_gets_a_typed_error(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent_memory.recall import postgres_pool

    with ContextMemory(postgres.url(database)) as memory:
        monkeypatch.setattr(postgres_pool, "_SESSION", postgres_pool._SESSION.replace("'10s'", "'300ms'"))
        with ContextMemory(postgres.url(database)) as other, memory._database.write():
            with pytest.raises(StoreError, match="holds the rows"):
                other.remember("The ferry is red.")
            assert other.recall("ferry") == [], "a reader waits for nobody"
        assert memory.remember("The ferry is red.").n_texts == 1


@given(
    st.text(st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from("\0\x01\x02\\'\"%?")), max_size=200)
)
@settings(max_examples=80, deadline=None)
def test_every_text_is_kept_as_it_was_given(shared: ContextMemory, text: str) -> None:
    memory = shared
    if text.strip():
        memory.remember(text, kind="note", source=text[:50])
        with memory._database.read() as db:
            bodies = {body for (body,) in db.execute("SELECT body FROM texts WHERE source = ?", (text[:50],))}
        assert text in bodies


def test_both_stores_recall_the_same_with_the_same_scores(postgres: PostgresServer, database: str) -> None:
    """3,000 passages, some words frequent, some repeated: hit by hit, score by score."""
    chance = random.Random(5)
    rare = [f"rare{n}" for n in range(400)]
    common = [f"common{n}" for n in range(8)]
    with (
        ContextMemory(clock=lambda: 2e9) as one,
        ContextMemory(postgres.url(database), clock=lambda: 2e9) as two,
    ):
        for n in range(30):
            turns = [
                {"role": "user", "content": " ".join([*chance.choices(rare, k=4), *chance.choices(common, k=8)])}
                for _ in range(100)
            ]
            for memory in (one, two):
                memory.remember(turns, source=f"talk {n % 4}", at=1.9e9 + n)
        for n in range(60):
            query = " ".join([*chance.sample(rare, n % 3), *chance.sample(common, 1 + n % 3)])
            mine, other = one.recall(query, k=20), two.recall(query, k=20)
            assert [hit.item.text for hit in mine] == [hit.item.text for hit in other], query
            assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in other], abs=1e-9)

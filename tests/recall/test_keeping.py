"""What is forgotten, merged, exported, counted and maintained."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Iterator

import pytest

from agent_memory import ContextMemory, UnsupportedParameterError
from agent_memory.recall.stem import stem
from tests.parts.stores import Stores

DAY = 86_400.0
NOW = 1_800_000_000.0


@pytest.fixture
def memory(store: Stores) -> Iterator[ContextMemory]:
    with ContextMemory(store("recall.sqlite"), clock=lambda: NOW) as memory:
        yield memory


def left(store: Stores, *words: str) -> list[str]:
    """Those words, or their stems, of which a byte is left in any file."""
    data = store.bytes().lower()
    return [word for word in words if word.encode() in data or stem(word).encode() in data]


def secret_words(n: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices("bcdfghjklmnpqrstvwz", k=9)) for _ in range(n)]


def test_after_forgetting_no_byte_is_left_in_any_file(memory: ContextMemory, store: Stores) -> None:
    gone, kept = secret_words(40, 1), secret_words(40, 2)
    for n in range(40):
        memory.remember(f"We decided that {gone[n]} is the name. My {gone[n]} key is {gone[n]}.", source=f"s-{gone[n]}")
        memory.remember([{"role": "user", "content": f"{kept[n]} is fine", "name": kept[n]}], source="kept")
    memory.consolidate()
    memory.working_set(" ".join(gone[:9]))
    assert left(store, *gone) == gone
    for n in range(0, 40, 2):
        [hit] = memory.recall(gone[n], k=1)
        memory.forget(hit.item.id)
    for n in range(1, 40, 2):
        assert memory.forget(gone[n].upper()) == 1
    assert left(store, *gone) == []
    assert left(store, *kept) == kept
    assert memory.check().damaged == ()
    assert [memory.recall(word) for word in gone] == [[]] * 40
    assert all(memory.recall(word) for word in kept)


def test_a_forgotten_text_does_not_come_back_after_reindexing_and_restart(store: Stores) -> None:
    path = store("recall.sqlite")
    [word] = secret_words(1, 3)
    with ContextMemory(path) as memory:
        memory.remember(f"{word} must go")
        memory.remember("this may stay")
        memory.forget(word)
        with memory._database.write() as db:
            db.words.begin_anew(0)
    with ContextMemory(path) as memory:  # another version of words: indexed anew
        assert memory.recall(word) == []
        assert memory.recall("stay")
        assert memory.check().damaged == ()
        assert left(store, word) == []


def test_forgetting_takes_phrases_sources_items_and_everything(memory: ContextMemory) -> None:
    memory.remember("The ferry is red.", source="a")
    memory.remember("The ferry is not Red.", source="b")
    memory.remember("The cargo is blue.", source="b")
    assert memory.forget("is red") == 1
    assert memory.forget(source="b") == 2
    ids = [memory.remember(text).ids[0] for text in ("one ferry", "two ferries", "three ferries")]
    assert memory.forget(ids[:2]) == 2
    assert memory.forget("nothing like it") == 0
    assert memory.forget(everything=True) == 1
    assert memory.stats().n_texts == 0
    with pytest.raises(UnsupportedParameterError, match="empty phrase"):
        memory.forget(" ")


def test_forgetting_the_newest_fact_makes_the_one_before_valid_again(memory: ContextMemory) -> None:
    memory.remember("The master of the harbour is Ann.", at=1.0)
    memory.remember("The master of the harbour is Bo.", at=2.0)
    memory.forget("is Bo")
    assert [hit.item.value for hit in memory.recall("harbour master")] == ["Ann"]
    assert memory.check().damaged == ()


def test_a_plan_equals_what_is_done_is_undone_and_has_no_second_run(memory: ContextMemory) -> None:
    memory.remember("The old ferry leaves from pier nine at seven in the morning.", at=1.0)
    memory.remember("The old ferry leaves from pier nine, at seven in the morning!", at=2.0)
    memory.remember("The new ferry leaves from pier two at noon.", at=3.0)
    plan = memory.consolidate(dry_run=True)
    assert plan.id == 0
    [change] = plan.changes
    before = [hit.item.id for hit in memory.recall("ferry pier", k=5)]
    done = memory.consolidate()
    assert done.changes == plan.changes
    assert memory.consolidate().changes == ()
    hits = [hit.item.id for hit in memory.recall("ferry pier seven", k=5)]
    assert change.other in hits
    assert change.item not in hits
    memory.undo(done.id)
    memory.undo(done.id)
    assert [hit.item.id for hit in memory.recall("ferry pier", k=5)] == before
    assert memory.consolidate(dry_run=True).changes == plan.changes
    assert memory.stats().n_texts == 3
    with pytest.raises(UnsupportedParameterError, match="plan 99"):
        memory.undo(99)


def test_what_differs_in_a_word_that_matters_is_not_merged(memory: ContextMemory) -> None:
    memory.remember("The ferry leaves at seven.")
    memory.remember("The ferry leaves at eight.")
    memory.remember([{"role": "user", "content": "hello there old friend of mine"}], source="a")
    memory.remember([{"role": "user", "content": "Hello there, old friend of mine!"}], source="b")
    assert memory.consolidate(dry_run=True).changes == ()


def test_an_export_imported_elsewhere_is_exported_equal(memory: ContextMemory) -> None:
    chance = random.Random(4)
    for n in range(40):
        memory.remember(
            [
                {
                    "role": chance.choice(["user", "assistant"]),
                    "content": f"Turn {n}: we decided on {n} and like {n % 7}.",
                }
            ],
            source=f"talk {n % 3}",
            at=NOW - n * DAY,
        )
        memory.remember(f"The master of the harbour is M{n % 5}.", at=NOW - 50 * DAY + n)
    ids = [hit.item.id for hit in memory.recall("decided turn", k=20)]
    memory.feedback(ids[0], True)
    memory.pin(ids[1])
    memory.link(ids[2], ids[3])
    memory.remember("Twice told tales are best of all.")
    memory.remember("twice told tales are best of all!")
    memory.consolidate()
    file = io.StringIO()
    n_lines = memory.export_jsonl(file)
    assert n_lines == len(file.getvalue().splitlines())
    other = memory.workspace("other")
    assert other.import_jsonl(io.StringIO(file.getvalue())) == memory.stats().n_texts
    again = io.StringIO()
    other.export_jsonl(again)
    assert again.getvalue() == file.getvalue()
    for query in ("decided turn 7", "harbour master"):
        mine = [(hit.item.text, round(hit.score, 9)) for hit in memory.recall(query)]
        assert [(hit.item.text, round(hit.score, 9)) for hit in other.recall(query)] == mine
    assert other.import_jsonl(io.StringIO(file.getvalue())) == 0
    assert memory.check().damaged == ()


@pytest.mark.parametrize(
    "line", ["no json", "[]", '{"kind": "note"}', '{"link": "related", "item": [9, 9], "other": [0, 0]}']
)
def test_a_file_that_is_no_export_imports_nothing(memory: ContextMemory, line: str) -> None:
    good = json.dumps({"kind": "note", "role": "user", "speaker": None, "source": None, "at": 1, "last_at": 1,
                       "created_s": 1, "count": 1, "body": "fine"})  # fmt: skip
    with pytest.raises(UnsupportedParameterError, match="Nothing was imported|no export"):
        memory.import_jsonl(['{"format": "agent-memory recall 1"}', good, line])
    with pytest.raises(UnsupportedParameterError, match="no export"):
        memory.import_jsonl([good])
    assert memory.stats().n_texts == 0


def test_a_changed_export_is_refused_by_a_typed_error_or_can_be_used(memory: ContextMemory) -> None:
    """Values that nobody writes were taken in, and raised with the next recall, or raised what nobody expects."""
    memory.remember("The heron vault opens with a word. We decided to use Postgres.", source="s")
    memory.remember("A heron stood by the pond at noon. We decided to feed it.", source="t")
    first, *_, last = memory.recall("heron")
    memory.pin(first.item.id)
    memory.link(first.item.id, last.item.id, "related")
    file = io.StringIO()
    memory.export_jsonl(file)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    odd = [None, -1, 1 << 63, float("inf"), "a", "\ud800", [[0]], {"x": [1] * 5}, {"0": ["a"] * 5}]
    odd.append({"0": [0.0, 0.0, -1, 0.0, None]})  # used less than never
    for number, row in enumerate(lines):
        for key, value in ((key, value) for key in row for value in odd):
            changed = [*lines[:number], {**row, key: value}, *lines[number + 1 :]]
            with ContextMemory(":memory:") as other:
                with contextlib.suppress(UnsupportedParameterError):
                    other.import_jsonl(map(json.dumps, changed))
                assert other.check().ok
                other.recall("heron Postgres")
                other.export_jsonl(io.StringIO())
    deep = '{"kind":' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(UnsupportedParameterError, match="line 2"):
        memory.import_jsonl([json.dumps(lines[0]), deep])


def test_secrets_in_an_import_are_replaced_too(memory: ContextMemory) -> None:
    secret = "ghp_" + "a1B2c3D4e5F6" * 3
    line = json.dumps({"kind": "note", "role": "user", "speaker": None, "source": None, "at": 1, "last_at": 1,
                       "created_s": 1, "count": 1, "body": f"token {secret}"})  # fmt: skip
    memory.import_jsonl(['{"format": "agent-memory recall 1"}', line])
    assert secret not in memory.recall("token")[0].item.text


def test_texts_beyond_their_retention_go_and_pinned_ones_stay(memory: ContextMemory, store: Stores) -> None:
    old, pinned, new = secret_words(3, 5)
    memory.remember(f"{old} is old", at=NOW - 40 * DAY)
    memory.pin(memory.remember(f"{pinned} is old", at=NOW - 40 * DAY).ids[0])
    memory.remember(f"{new} is new", at=NOW - 20 * DAY)
    assert memory.maintain(retain_days=30).n_expired == 1
    assert left(store, old, pinned, new) == [pinned, new]
    assert memory.maintain(retain_days=30).n_expired == 0


def test_the_audit_names_every_change_and_holds_no_text(memory: ContextMemory) -> None:
    [word] = secret_words(1, 6)
    item = memory.remember(f"{word} is here").ids[0]
    memory.feedback(item, 0.5)
    memory.pin(item)
    memory.pin(item, False)
    memory.forget(item)
    rows = memory.audit()
    assert [row.action for row in rows] == ["forget", "unpin", "pin", "feedback", "remember"]
    assert all(word not in repr(row) for row in rows)
    assert len(memory.audit(limit=2)) == 2
    assert memory.audit(since=NOW + 1) == []


def test_figures_are_of_one_workspace_and_grouped(memory: ContextMemory) -> None:
    memory.remember("We decided to go.", at=0.0)
    memory.remember([{"role": "user", "content": "hello"}], at=DAY)
    memory.workspace("other").remember("not mine")
    assert memory.stats(by="day").by == {"1970-01-01": 1, "1970-01-02": 1}
    assert memory.stats(by="kind").by == {"note": 1, "chat": 1}
    assert memory.stats(by="workspace").by == {"default": 2}
    assert memory.stats(since=1.0).n_texts == 1
    assert memory.stats().n_items == {"chat": 1, "decision": 1}
    with pytest.raises(UnsupportedParameterError, match="by is"):
        memory.stats(by="moon")


def test_check_names_what_does_not_agree(memory: ContextMemory) -> None:
    item = memory.remember("The ferry is red.").ids[0]
    memory.remember("The cargo is blue.")
    assert memory.check().ok
    with memory._database.write() as db:
        db.words.remove([(item, 1, "w1zferri")])
        db.execute("INSERT INTO links VALUES (777, 'related', 778, 1)")
        db.execute("UPDATE workspaces SET n_passages = 9")
        db.execute("UPDATE items SET stop = 99 WHERE item = ?", (item,))
    found = memory.check().damaged
    assert len(found) >= 4
    assert any("counts 9 passages" in line for line in found)
    assert any("outside their text" in line for line in found)

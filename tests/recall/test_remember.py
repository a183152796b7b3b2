"""What is remembered, and in which pieces: texts as given, split, counted, found at once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory import ContextMemory, Message, UnsupportedParameterError
from agent_memory.recall import filing
from agent_memory.recall.passages import cut
from agent_memory.recall.told import MAX_TEXT_BYTES, detected, told
from tests.parts.stores import Stores

HOUR = 3600.0
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=400)


@pytest.fixture
def memory(store: Stores) -> Iterator[ContextMemory]:
    with ContextMemory(store(), clock=lambda: 1_800_000_000.0) as memory:
        yield memory


def test_a_note_is_recalled_by_its_words_at_once(memory: ContextMemory) -> None:
    report = memory.remember("We ship on Fridays. Never deploy on Mondays.")
    assert report.n_texts == 1
    [hit] = memory.recall("When do we deploy?")
    assert hit.item.text == "We ship on Fridays. Never deploy on Mondays."
    assert hit.item.id in report.ids
    assert memory.recall("giraffes") == []


def test_the_same_text_is_counted_and_never_stored_twice(memory: ContextMemory) -> None:
    memory.remember("Ann likes tea.", at=10.0)
    report = memory.remember("Ann likes tea.", at=20.0)
    assert (report.n_texts, report.n_duplicates, report.ids) == (0, 1, ())
    memory.remember("Ann likes tea.", at=5.0)
    [hit] = memory.recall("tea")
    assert hit.item.count == 3
    assert memory.stats().n_texts == 1
    assert memory.stats().n_duplicates == 2


def test_messages_of_both_shapes_and_transcripts_become_turns(memory: ContextMemory) -> None:
    memory.remember(
        [
            {"role": "system", "content": "You are a zebra."},
            {"role": "user", "content": [{"type": "text", "text": "Where is the harbour?"}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "name": "map", "arguments": {"q": "dock"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "At the river mouth."},
            Message("assistant", "The harbour is at the river mouth.", reasoning="I look at the map."),
        ],
        source="trip",
    )
    memory.remember("Ann: Shall we sail?\nBo: Yes, at noon.", kind="chat", source="trip")
    assert memory.recall("zebra") == []
    assert memory.stats().n_texts == 6
    [sail] = memory.recall("sail", k=1)
    assert (sail.item.speaker, sail.item.text, sail.item.source) == ("Ann", "Shall we sail?", "trip")
    assert memory.recall("dock")[0].item.text == 'map({"q": "dock"})'


def test_what_a_program_writes_is_known_for_what_it_is() -> None:
    assert detected("diff --git a/x b/x\n@@ -1,2 +1,2 @@\n-a\n+b\n") == "diff"
    assert detected("Traceback (most recent call last):\n  File 'x'\nValueError: bad") == "log"
    assert detected("2026-01-02 10:00:00 INFO up\n2026-01-02 10:00:01 ERROR down") == "log"
    assert detected("Please look at the error of yesterday.") == "note"


def test_bad_input_is_refused_before_any_work(memory: ContextMemory) -> None:
    for wrong in ("", "  \n", 7, b"bytes", [], [{"role": "wizard", "content": "x"}], "lone \ud800 surrogate"):
        with pytest.raises(UnsupportedParameterError):
            memory.remember(wrong)
    with pytest.raises(UnsupportedParameterError, match="known: chat"):
        memory.remember("x", kind="poem")
    with pytest.raises(UnsupportedParameterError, match="16,777,216"):
        memory.remember("x" * (16 * 1024 * 1024 + 1))
    with pytest.raises(UnsupportedParameterError, match="a time"):
        memory.remember("x", at="yesterday")  # type: ignore[arg-type]
    for wrong_k in (0, -1, 1001, True, 2.5):
        with pytest.raises(UnsupportedParameterError, match="k must be"):
            memory.recall("x", k=wrong_k)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedParameterError, match="known: chat"):
        memory.recall("x", kinds=["poem"])
    assert memory.stats().n_texts == 0


def test_a_long_text_is_split_and_nothing_of_it_is_lost(memory: ContextMemory) -> None:
    text = "\n".join(f"line {n} of the long über-report" for n in range(9_000))
    assert len(text.encode()) > 2 * MAX_TEXT_BYTES
    report = memory.remember(text, source="report")
    assert report.n_texts == -(-len(text.encode()) // MAX_TEXT_BYTES)
    with memory._database.read() as db:
        bodies = [body for (body,) in db.execute("SELECT body FROM texts ORDER BY text")]
    assert "".join(bodies) == text
    assert max(len(body.encode()) for body in bodies) <= MAX_TEXT_BYTES
    assert memory.recall("8765 report")[0].item.text.count("8765") == 1


@given(TEXTS, st.sampled_from(["note", "chat", "diff", "log"]))
@settings(max_examples=300, deadline=None)
def test_passages_cover_every_character_but_blanks_in_order(text: str, kind: str) -> None:
    spans = cut(text * 3, kind)
    assert all(a < b for a, b in spans)
    assert all(spans[i][1] <= spans[i + 1][0] for i in range(len(spans) - 1))
    assert "".join("".join(text_of.split()) for text_of in (((text * 3)[a:b]) for a, b in spans)) == "".join(
        (text * 3).split()
    )


def test_a_word_without_end_is_cut_too() -> None:
    spans = cut("啊" * 5_000 + " " + "x" * 9_000, "note")
    assert max(b - a for a, b in spans) <= 720
    assert sum(b - a for a, b in spans) >= 13_999


def test_a_rule_that_fails_costs_its_items_and_never_the_text(
    memory: ContextMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> list[object]:
        raise ValueError("a rule broke")

    monkeypatch.setattr(filing, "find", broken)
    report = memory.remember("We decided to keep the lighthouse.")
    assert report.extraction_error == "ValueError: a rule broke"
    assert memory.recall("lighthouse")[0].item.text == "We decided to keep the lighthouse."


def test_secrets_are_replaced_before_anything_is_written(store: Stores) -> None:
    path = store("recall.sqlite")
    secret = "ghp_" + "a1B2c3D4e5F6" * 3
    with ContextMemory(path) as memory:
        report = memory.remember([{"role": "user", "content": f"my token is {secret}"}], source=f"mail {secret}")
        assert sum(report.redactions.values()) == 2
        [hit] = memory.recall("token")
        assert "[REDACTED:" in hit.item.text
        left = store.bytes()
        assert secret.encode() not in left
        assert secret.lower().encode() not in left
    with ContextMemory(store("open.sqlite"), redact=None) as memory:
        memory.remember(f"my token is {secret}")
        assert secret in memory.recall("token")[0].item.text


def test_it_works_with_sockets_blocked_and_starts_no_thread(monkeypatch: pytest.MonkeyPatch, store: Stores) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    before = threading.active_count()
    with ContextMemory(store()) as memory:
        memory.remember("The harbour opens at six.")
        assert memory.recall("harbour")
        assert memory.working_set("harbour").items
        memory.maintain()
    assert threading.active_count() == before


def test_texts_survive_the_process_and_a_second_one_reads_them(store: Stores) -> None:
    path = store("recall.sqlite")
    with ContextMemory(path) as memory:
        memory.remember("The harbour opens at six.")
        with ContextMemory(path) as other:
            assert other.recall("harbour")
            other.remember("The harbour closes at nine.")
        assert len(memory.recall("harbour")) == 2
    with ContextMemory(path) as memory:
        assert len(memory.recall("harbour")) == 2


@given(st.lists(TEXTS.filter(str.strip), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_every_text_is_kept_as_it_was_given(texts: list[str]) -> None:
    with ContextMemory(redact=None) as memory:
        for text in texts:
            memory.remember(text, kind="note")
        with memory._database.read() as db:
            bodies = [body for (body,) in db.execute("SELECT body FROM texts ORDER BY text")]
        assert bodies == list(dict.fromkeys(texts))
        assert memory.check().damaged == ()


def test_told_leaves_out_what_a_program_was_told() -> None:
    assert [one.body for one in told([Message("system", "be kind"), Message("user", "hello")], None)] == ["hello"]


@pytest.mark.parametrize(
    "text",
    ["a.py::" * 16_000, "-" * 99_000, "2026-01-01T00:00 " + ":" * 90_000, "@@ -1 +1 @@\n" * 8_000, "x" * 99_000,
     "AError: b\n" * 9_000, "the of " * 14_000, "I prefer, a. " * 7_000, "=== " + "= " * 49_000, "[" * 99_000,
     "Ann: " * 19_000, "1. a\n" * 4_000, "a's " * 24_000 + "is b.", "_" * 50_000 + " " + "_" * 49_000],
    ids=lambda text: text[:12],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["note", "chat", "log", "diff"])
def test_no_text_takes_more_than_a_time_in_proportion_to_its_length(text: str, kind: str) -> None:
    """100 KB that rules could stumble over. Time itself is not asserted: a rule that were not linear would not end."""
    with ContextMemory(redact=None) as memory:
        memory.remember(text, kind=kind)
        assert memory.check().damaged == ()

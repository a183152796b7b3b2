"""Words: stems as SQLite's, questions without what only asks, and nothing that the index and a question see apart."""

from __future__ import annotations

import re
import sqlite3
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.recall import words
from agent_memory.recall.dates import read_date
from agent_memory.recall.stem import stem


def test_stems_of_real_words_are_those_of_sqlites_porter() -> None:
    """Every word of the language reference that CPython ships, and all of them in one index."""
    real = sorted(set(re.findall("[a-z]+", " ".join(topics.values()).lower())))
    assert len(real) > 3_000
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE f USING fts5 (body, tokenize='porter ascii')")
    db.execute("CREATE VIRTUAL TABLE v USING fts5vocab (f, instance)")
    db.executemany("INSERT INTO f (rowid, body) VALUES (?, ?)", enumerate(real))
    stems = {real[doc]: term for term, doc in db.execute("SELECT term, doc FROM v")}
    db.close()
    assert {word: stem(word) for word in real if stem(word) != stems[word]} == {}


def test_words_of_code_and_of_scripts_without_blanks_are_found_by_their_parts() -> None:
    assert words.terms("getUserName user_name HTTPServer2") == ["getusernam", "get", "user", "name", "user", "name",
                                                                "httpserver2"]  # fmt: skip
    assert words.terms("東京タワー") == ["東", "京", "タ", "ワ", "ー"]
    assert words.terms("Grüße, naïve Café!") == ["grüße", "naïve", "café"]


def test_a_question_is_asked_by_what_it_is_about() -> None:
    assert words.question_terms("Can you list the order in which I brought up the ferry?") == ["ferri"]
    assert words.question_terms("What did the ferry cost?") == ["ferri", "cost"]
    assert words.question_terms("Tell me more") == ["tell"]  # nothing but asking: asked by what there is
    assert words.question_terms("who is who") == ["who", "is"]
    assert words.question_terms("?!") == []
    assert words.asks_for_course("Give me a summary of it")
    assert not words.asks_for_course("Is it red?")
    assert words.asks_about_replies("What did you recommend?")
    assert not words.asks_about_replies("What did I say?")


@given(st.text(max_size=80))
@settings(max_examples=300, deadline=None)
def test_every_indexed_word_reaches_the_index_whole(text: str) -> None:
    given_words = words.terms(text.encode("utf-8", "replace").decode())
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE f USING fts5 (body, content='', tokenize='ascii')")
    db.execute("CREATE VIRTUAL TABLE v USING fts5vocab (f, row)")
    db.execute("INSERT INTO f (rowid, body) VALUES (1, ?)", (words.indexed(12, True, given_words),))
    found = {term for (term,) in db.execute("SELECT term FROM v")}
    db.close()
    assert found == {f"w12z{word}" for word in given_words}


@pytest.mark.parametrize(
    ("sentence", "day"),
    [
        ("It broke on 2024-02-29.", "2024-02-29"),
        ("We met on 8 May, 2023.", "2023-05-08"),
        ("Her defense is May 6.", "2026-05-06"),
        ("I went there yesterday.", "2026-11-25"),
        ("Two weeks ago it rained.", "2026-11-12"),
        ("Last Friday we sailed.", "2026-11-20"),
        ("Version 3.11 of 31-02.", None),
        ("It broke on 2024-02-31.", None),
    ],
)
def test_dates_are_read_from_the_day_of_telling(sentence: str, day: str | None) -> None:
    told = 1_795_694_400.0  # 2026-11-26 12:00 UTC, a Thursday
    found = read_date(sentence, told)
    from datetime import UTC, datetime

    assert (found and datetime.fromtimestamp(found, UTC).date().isoformat()) == day

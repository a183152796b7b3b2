"""Extraction in idle time: a model's typed items beside the rules', and nothing lost where it fails or dies."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from attrs import define, field

from agent_memory import ContextMemory, UnsupportedParameterError
from agent_memory.recall.extraction import PIECE_CHARS, TRIES
from agent_memory.recall.protocols import Extracted
from tests.parts.stores import Stores

PLAIN = "The wharf crew leans towards copper nails."  #: no rule finds anything in it


@define
class Scripted:
    """An extractor that finds each sentence with a word, or raises what it is told to."""

    word: str = "copper"
    kind: str = "preference"
    name: str = "scripted 1"
    errors: list[BaseException] = field(factory=list)
    read: list[str] = field(factory=list)

    def extract(self, text: str) -> Sequence[Extracted]:
        self.read.append(text)
        if self.errors:
            raise self.errors.pop(0)
        found = re.finditer(r"[^.!?\n]*[.!?]", text)
        return [Extracted(self.kind, m.start(), m.end()) for m in found if self.word in m[0]]


@pytest.fixture
def opened() -> Iterator[Callable[..., ContextMemory]]:
    memories: list[ContextMemory] = []

    def make(extractor: Scripted | None, path: str | Path = ":memory:") -> ContextMemory:
        memories.append(ContextMemory(path, extractor=extractor))
        return memories[-1]

    yield make
    for memory in memories:
        memory.close()


def test_what_a_model_found_is_recalled_by_its_kind_and_cites_its_span(opened: Callable[..., ContextMemory]) -> None:
    memory = opened(Scripted())
    text = f"Good morning. {PLAIN} The tide is low."
    memory.remember(text, kind="note")
    assert memory.recall("copper nails", kinds=["preference"]) == []
    done = memory.maintain()
    assert (done.n_extracted, done.is_done) == (1, True)
    [hit] = memory.recall("copper nails", kinds=["preference"])
    assert text[slice(*hit.item.span)].strip() == hit.item.text.strip() == PLAIN
    assert hit.item.found_by == "scripted 1"
    [passage] = memory.recall("copper nails")
    assert passage.item.found_by is None, "the text itself is nobody's finding"
    assert memory.stats().n_unread == 0
    assert memory.check().ok


def test_an_item_that_a_rule_found_is_not_found_twice(opened: Callable[..., ContextMemory]) -> None:
    memory = opened(Scripted(word="oak", kind="preference"))
    memory.remember("Good morning to all of you here. I prefer oak to pine.", kind="note")
    assert len(memory.recall("oak", kinds=["preference"])) == 1
    assert memory.maintain().n_extracted == 0
    assert [hit.item.found_by for hit in memory.recall("oak", kinds=["preference"])] == [None]


def test_a_failure_loses_nothing_and_is_tried_three_times(opened: Callable[..., ContextMemory]) -> None:
    extractor = Scripted(errors=[ValueError("no JSON")] * TRIES)
    memory = opened(extractor)
    memory.remember(PLAIN, kind="note")
    memory.remember("We decided to tar the roof.", kind="note")
    done = memory.maintain()
    assert done.n_extraction_failures == TRIES
    assert memory.recall("copper nails")[0].item.text == PLAIN
    assert memory.recall("tar the roof", kinds=["decision"])[0].item.found_by is None
    assert memory.maintain().n_extraction_failures == 0
    assert memory.stats().n_unread == 0
    assert memory.check().ok


def test_a_failure_now_and_then_costs_a_second_try_alone(opened: Callable[..., ContextMemory]) -> None:
    memory = opened(Scripted(errors=[ValueError("no JSON")]))
    memory.remember(PLAIN, kind="note")
    done = memory.maintain()
    assert (done.n_extraction_failures, done.n_extracted) == (1, 1)
    assert [row.action for row in memory.audit()][:1] == ["extract"]


def test_an_extractor_that_breaks_its_word_writes_nothing(opened: Callable[..., ContextMemory]) -> None:
    memory = opened(Scripted(kind="rumour"))
    memory.remember(PLAIN, kind="note")
    assert memory.maintain().n_extraction_failures == TRIES
    assert memory.stats().n_items == {"note": 1}
    memory.remember("Copper is dear. copper it is.", kind="note")
    unread = memory.unread()
    assert unread is not None
    for wrong in (Extracted("fact", 0, 10_000), Extracted("fact", 5, 5), Extracted("fact", -1, 5)):
        with pytest.raises(UnsupportedParameterError, match="extractor"):
            memory.keep_found(unread, [wrong], "x")
    assert memory.unread() == unread, "still unread"


def test_what_a_program_wrote_and_what_an_assistant_said_is_not_read(opened: Callable[..., ContextMemory]) -> None:
    extractor = Scripted()
    memory = opened(extractor)
    memory.remember([{"role": "user", "content": "What nails?"}, {"role": "assistant", "content": "The copper ones."}])
    memory.remember("ERROR copper.\nERROR tin.\nERROR lead.", kind="log")
    assert memory.maintain().n_extracted == 0
    assert extractor.read == ["What nails?"]


def test_a_long_text_is_read_in_pieces_of_whole_sentences(opened: Callable[..., ContextMemory]) -> None:
    extractor = Scripted()
    memory = opened(extractor)
    sentences = [f"Crate {n} holds {'copper' if n % 9 == 0 else 'straw'} and {n} more." for n in range(200)]
    memory.remember(" ".join(sentences), kind="note")
    memory.maintain(60_000)
    assert len(extractor.read) > 3
    assert all(len(piece) <= PIECE_CHARS for piece in extractor.read)
    assert "".join(extractor.read).split() == " ".join(sentences).split(), "every word once, none cut"
    found = memory.recall("copper", kinds=["preference"], k=50)
    assert {hit.item.text.strip() for hit in found} == {one for one in sentences if "copper" in one}


def test_a_text_that_is_forgotten_while_it_is_read_stays_forgotten(opened: Callable[..., ContextMemory]) -> None:
    memory = opened(Scripted())
    memory.remember(PLAIN, kind="note")
    unread = memory.unread()
    assert unread is not None
    assert memory.forget("copper") == 1
    assert memory.keep_found(unread, [Extracted("fact", 0, 10)], "x") == ()
    assert memory.recall("copper") == []
    assert (memory.stats().n_unread, memory.unread()) == (0, None)
    assert memory.check().ok


def test_workspaces_read_their_own_texts_alone(opened: Callable[..., ContextMemory]) -> None:
    extractor = Scripted()
    memory = opened(extractor)
    other = memory.workspace("other")
    memory.remember(PLAIN, kind="note")
    assert other.maintain().n_extracted == 0
    assert other.unread() is None
    assert memory.maintain().n_extracted == 1


def test_an_export_carries_what_was_found_and_what_was_learnt_of_it(opened: Callable[..., ContextMemory]) -> None:
    memory = opened(Scripted())
    memory.remember("We decided to tar the roof. The crew met. " + PLAIN + " And so on, for a while.", kind="note")
    memory.maintain()
    memory.pin(memory.recall("copper", kinds=["preference"])[0].item.id)
    memory.feedback(memory.recall("roof", kinds=["decision"])[0].item.id, True)
    first, second = io.StringIO(), io.StringIO()
    memory.export_jsonl(first)
    other = opened(None)
    other.import_jsonl(first.getvalue().splitlines())
    other.export_jsonl(second)
    assert first.getvalue() == second.getvalue()
    assert other.recall("copper", kinds=["preference"])[0].item.found_by == "scripted 1"
    damaged = first.getvalue().replace('"preference", ', '"rumour", ')
    with pytest.raises(UnsupportedParameterError, match="no line of an export"):
        opened(None).import_jsonl(damaged.splitlines())


CHILD = """
import os, sys, time
from agent_memory import ContextMemory
from agent_memory.recall.protocols import Extracted

class Slow:
    name = "slow 1"
    def extract(self, text):
        print("reading", flush=True)
        time.sleep(float(sys.argv[2]))
        return [Extracted("fact", 0, len(text))]

memory = ContextMemory(sys.argv[1], extractor=Slow())
memory.remember("The wharf crew leans towards copper nails of {}.".format(os.getpid()), kind="note")
memory.maintain(60_000)
"""


def test_a_process_that_dies_while_it_reads_leaves_the_text_marked(
    opened: Callable[..., ContextMemory], store: Stores
) -> None:
    path = store("recall.sqlite")
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), "60"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "reading\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    memory = opened(Scripted(), path)
    assert memory.stats().n_unread == 1
    assert memory.recall("copper nails")[0].item.text.startswith("The wharf crew")
    assert memory.maintain().n_extracted == 1
    assert memory.check().ok


def test_what_was_told_without_an_extractor_is_not_read_later(opened: Callable[..., ContextMemory]) -> None:
    memory = opened(None)
    memory.remember(PLAIN, kind="note")
    assert memory.stats().n_unread == 0
    assert memory.maintain().is_done


def test_a_model_needs_more_time_than_idle_work_has(opened: Callable[..., ContextMemory]) -> None:
    extractor = Scripted()
    memory = opened(extractor)
    for n in range(5):
        memory.remember(f"Shed {n} has copper nails.", kind="note")
    assert memory.maintain(extract=False).n_extracted == 0
    first = memory.maintain(0)
    assert (first.n_extracted, first.is_done, len(extractor.read)) == (1, False, 1)
    assert memory.maintain(10_000).n_extracted == 4

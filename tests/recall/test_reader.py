"""A reader recalls what another process remembers, and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent_memory import EchoRunner, IncompatibleStoreError, Memory, ReadOnlyError, Recall
from agent_memory.errors import ItemNotFoundError
from agent_memory.recall.database import Database
from agent_memory.recall.schema import STEPS

#: Remembers the lines that it is given, says so, and lives until its input ends.
WRITER = """
import sys
from agent_memory import EchoRunner, Memory

with Memory(EchoRunner(), sys.argv[1]) as memory:
    ann = memory.agent("ann", recall=True)
    ann.say("hello")
    memory.flush()
    print("ready", flush=True)
    for line in sys.stdin:
        what, _, text = line.strip().partition(" ")
        if what == "remember":
            memory.context.remember(text)
        elif what == "forget":
            memory.context.forget([memory.context.recall(text)[0].item.id])
        elif what == "episode":
            with memory.episodes.start(text) as episode:
                episode.step("make", "build all")
                episode.complete(True)
        print("done", flush=True)
"""


class Writer:
    """Another process that holds the store."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def do(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._read() == "done"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(60) == 0


def texts(memory: Memory, question: str) -> list[str]:
    return [hit.item.text for hit in memory.context.recall(question)]


def test_a_reader_recalls_what_another_process_remembers_meanwhile(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    with Memory(EchoRunner(), tmp_path, read_only=True) as reader:
        assert texts(reader, "gate") == []
        context = reader.context
        writer.do("remember The gate opens at nine.")
        assert texts(reader, "gate") == ["The gate opens at nine."]
        [hit] = context.recall("gate")
        assert reader.context.expand(hit.item.id).text == "The gate opens at nine."
        writer.do("remember The gate is painted green.")
        assert len(texts(reader, "gate")) == 2
        writer.do("forget painted green")
        assert texts(reader, "gate") == ["The gate opens at nine."]
        assert reader.context.stats().n_texts >= 1
        assert reader.context.check().damaged == ()
    writer.close()


def test_agents_in_a_reader_recall_and_do_not_remember(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.do("remember The gate opens at nine.")
    with Memory(EchoRunner(), tmp_path, read_only=True) as reader:
        fork = reader.agent("ann").fork("scratch", temporary=True)
        reply = fork.say("When does the gate open?")
        assert [card.text for card in reply.recalled if "gate opens at nine" in card.text]
        asked = reader.generate("What of the gate?", recall=Recall())
        assert len(asked.recalled) == 1
        assert texts(reader, "When does the gate open?") == ["The gate opens at nine."]
        assert reader.stats().remember_failures == 0
    writer.close()
    with Memory(EchoRunner(), tmp_path) as memory:
        assert not [text for text in texts(memory, "What of the gate?") if "What of" in text]


def test_a_reader_reads_episodes_and_what_they_teach(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    with Memory(EchoRunner(), tmp_path, read_only=True) as reader:
        assert reader.episodes.recall("build the library") == []
        for _ in range(4):
            writer.do("episode build the library")
        assert len(reader.episodes.recall("build the library")) == 4
        assert reader.episodes.patterns() is not None
        assert reader.episodes.recommend("build the library") is not None
        with pytest.raises(ReadOnlyError, match="read_only=True"):
            reader.episodes.start("build")
    writer.close()


def test_a_reader_sees_a_file_that_is_made_after_it_was_opened(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.agent("ann").say("hello")
    with Memory(EchoRunner(), tmp_path, read_only=True) as reader:
        assert texts(reader, "gate") == []
        assert reader.episodes.recall("gate") == []
        with pytest.raises(ReadOnlyError):
            reader.context.remember("nothing is kept")
        with pytest.raises(ItemNotFoundError):
            reader.context.expand(1)
        before = {file.name for file in tmp_path.iterdir()}
        assert "recall.sqlite" not in {name.partition("3")[0] for name in before}
        with Memory(EchoRunner(), tmp_path) as memory:
            memory.context.remember("The gate opens at nine.")
            memory.context.workspace("other").remember("The gate is green.")
            with memory.episodes.start("open the gate") as episode:
                episode.complete(True)
        assert texts(reader, "gate") == ["The gate opens at nine."]
        assert [hit.item.text for hit in reader.context.workspace("other").recall("gate")] == ["The gate is green."]
        assert reader.context.workspace("new").recall("gate") == []
        assert len(reader.episodes.recall("open the gate")) == 1


def test_a_reader_changes_no_byte_of_the_recall_file(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.agent("ann", recall=True).say("hello")
        memory.context.remember("The gate opens at nine.")
    [file] = [one for one in tmp_path.iterdir() if "recall" in one.name and one.suffix != ".backup"]
    before = file.read_bytes()
    with Memory(EchoRunner(), tmp_path, read_only=True) as reader:
        assert texts(reader, "gate") == ["The gate opens at nine."]
        reader.generate("gate", recall=True)
        reader.episodes.patterns()
    assert file.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_takes_no_file_is_read_as_immutable(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.context.remember("The gate opens at nine.")
    tmp_path.chmod(0o500)
    try:
        with Memory(EchoRunner(), tmp_path, read_only=True) as reader:
            assert texts(reader, "gate") == ["The gate opens at nine."]
    finally:
        tmp_path.chmod(0o700)


def test_a_file_of_an_older_version_needs_a_writer_first(tmp_path: Path) -> None:
    Database(tmp_path / "old.sqlite3", steps=STEPS[:1]).close()
    with pytest.raises(IncompatibleStoreError, match="Open it once with a Memory that writes"):
        Database(tmp_path / "old.sqlite3", read_only=True)

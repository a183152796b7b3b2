"""An agent in one file: out of one store, into another, under the same model, another tenant or another model."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from agent_memory import (
    Agent,
    AgentFileError,
    Config,
    ConfigError,
    EchoRunner,
    Memory,
    Message,
    OutOfSpaceError,
    ReadOnlyError,
    Recall,
    UnknownAgentError,
    UnsupportedParameterError,
    open_store,
)
from agent_memory.carry.agent_file import AgentFileReader
from agent_memory.carry.incoming import Model
from agent_memory.errors import StoreError
from agent_memory.log.files import KV_FOLDER
from agent_memory.log.soundness import strangers_json
from tests.parts.scripted import scripted

SYSTEM = "Answer with what you heard. " * 8
SECRET = "sk-ant-api03-" + "a1B2c3D4" * 11


def opened(path: Path | str, *, identity: str = "echo", **settings: Any) -> Memory:
    runner = EchoRunner(identity=identity, layers=1, heads=1, dim=8)
    return Memory(runner, path, config=Config(chunk_tokens=16, prefill_tokens=16, **settings))


def lived(memory: Memory, name: str = "a") -> Agent:
    """An agent with a past: versions, a checkpoint, a fork that shares its turns."""
    agent = memory.agent(name, system=SYSTEM, keep_reasoning=True)
    for text in ("one", "two", "three"):
        agent.say(text)
    agent.checkpoint("three said")
    agent.rewind(2)
    agent.say("other")
    agent.fork("b", at=1).say("of the fork alone")
    return agent


def past(agent: Agent) -> list[Any]:
    return [(version, agent.at(version).messages, agent.at(version).n_tokens) for version in agent.history()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_an_agent_goes_on_in_another_store_as_if_it_had_stayed(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        agent = lived(memory)
        agent.export(tmp_path / "a.agent")
        told, was, n_tokens = agent.messages, past(agent), agent.n_tokens
        stayed = agent.say("And now?")
    with opened(tmp_path / "two") as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        assert (moved.name, moved.messages, moved.n_tokens, past(moved)) == ("a", told, n_tokens, was)
        reply = moved.say("And now?")
        assert (reply.text, reply.token_ids) == (stayed.text, stayed.token_ids)
        assert (reply.usage.tier, reply.usage.exactness, reply.usage.miss) == ("cold", "exact", None)
        assert reply.usage.cached_tokens == stayed.usage.cached_tokens
        moved.rewind(to="three said")
        assert moved.say("more").usage.computed_tokens < 16
        assert memory.verify().ok
    with opened(tmp_path / "two") as memory:
        assert memory.agent("a")._log.facts.keep_reasoning is True
        assert next(v.label for v in memory.agent("a").history()) == "three said"


def test_the_file_depends_on_the_agent_alone(tmp_path: Path) -> None:
    """Twice from one store, from a view of it, and from another tenant's store that imported it: the same bytes."""
    with opened(tmp_path / "one") as memory:
        agent = lived(memory)
        agent.export(tmp_path / "1")
        agent.export(tmp_path / "2")
    with open_store(tmp_path / "one") as view:
        view.export("a", tmp_path / "3")
    with opened(tmp_path / "two", salt="tenant") as memory:
        memory.agent("another").say("so that numbers differ")
        memory.import_agent(tmp_path / "1").export(tmp_path / "4")
    first = (tmp_path / "1").read_bytes()
    assert [(tmp_path / name).read_bytes() == first for name in "234"] == [True] * 3
    assert stat.S_IMODE((tmp_path / "1").stat().st_mode) == 0o600


def test_a_file_has_no_word_of_another_agent_and_nothing_of_the_salt(tmp_path: Path) -> None:
    """The fork's turn lies in a segment that goes on where the agent's own pieces end, and the other way round."""
    with opened(tmp_path / "one", salt="a tenant's secret") as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("first words")
        fork = agent.fork("b")
        agent.say("these are of the parent alone " * 20)
        fork.say("short")
        fork.export(tmp_path / "b.agent")
        identity = memory._asking.identity
        ids = memory._runner.tokenizer.encode(" parent alone these are")
        raw = (tmp_path / "b.agent").read_bytes()
    assert b"parent alone" not in raw
    assert b"".join(id.to_bytes(4, "little") for id in ids[1:-1]) not in raw
    for salted in (b"tenant", identity.encode(), bytes.fromhex(identity)):
        assert salted not in raw


def test_chunks_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        lived(memory).export(tmp_path / "a.agent")
    with opened(tmp_path / "two") as memory:
        memory.import_agent(tmp_path / "a.agent")
        before = memory.stats()
        again = memory.import_agent(tmp_path / "a.agent", name="again")
        after = memory.stats()
        assert (after.segments, after.chunks, after.bytes_written) == (
            before.segments, before.chunks, before.bytes_written,
        )  # fmt: skip
        memory.delete("a")
        assert again.say("And now?").usage.miss is None
        assert memory.verify().ok


def test_a_prefix_that_is_there_leaves_the_rest_to_be_written(tmp_path: Path) -> None:
    """A segment of which the first chunks are stored for others is written from there on."""
    with opened(tmp_path / "one") as memory:
        agent = memory.agent("a", system=SYSTEM * 2)
        agent.say("long " * 60)
        agent.export(tmp_path / "a.agent")
        stayed = agent.say("And now?")
    with opened(tmp_path / "two") as memory:
        memory.agent("other", system=SYSTEM * 2).say("something else")
        memory.flush()
        n_before = memory.stats().chunks
        moved = memory.import_agent(tmp_path / "a.agent")
        n_chunks = sum(1 for _ in range(0, moved.n_tokens, 16))
        assert 0 < memory.stats().chunks - n_before < n_chunks - 10
        reply = moved.say("And now?")
        assert (reply.text, reply.usage.cached_tokens) == (stayed.text, stayed.usage.cached_tokens)
        assert memory.verify().ok


def test_under_another_model_the_messages_come_and_kv_is_computed_anew(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        agent = lived(memory)
        agent.export(tmp_path / "a.agent")
        told, was = agent.messages, [messages for _, messages, _ in past(agent)]
    with opened(tmp_path / "two", identity="another") as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        assert moved.messages == told
        assert [messages for _, messages, _ in past(moved)] == was
        assert memory.stats().segments == 0
        usage = moved.say("And now?").usage
        assert (usage.cached_tokens, usage.miss) == (0, "other_model")
        assert moved.say("more").usage.computed_tokens < 16
        assert memory.verify().ok


def test_under_another_tokenizer_the_ids_are_made_anew(tmp_path: Path) -> None:
    runner = EchoRunner(bos=True)
    with Memory(EchoRunner(), tmp_path / "one") as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("one")
        agent.export(tmp_path / "a.agent")
        told = agent.messages
    with Memory(runner, tmp_path / "two") as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        assert (moved.messages, moved.n_tokens) == (told, 0)
        first = moved.say("two")
        assert first.usage.miss == "other_model"
        assert first.usage.prompt_tokens == memory.count_tokens([*told, Message("user", "two")])


def test_a_log_alone_comes_without_kv_and_is_answered_alike(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        agent = lived(memory)
        agent.export(tmp_path / "a.agent", log_only=True)
        agent.export(tmp_path / "whole.agent")
        stayed = agent.say("And now?")
    assert (tmp_path / "a.agent").stat().st_size < (tmp_path / "whole.agent").stat().st_size / 2
    for path in (tmp_path / "two", ":memory:"):
        with opened(path) as memory:
            moved = memory.import_agent(tmp_path / "a.agent")
            reply = moved.say("And now?")
            assert (reply.text, reply.usage.cached_tokens) == (stayed.text, 0)


def test_a_store_in_memory_takes_in_and_gives_out_the_log(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        agent = lived(memory)
        agent.export(tmp_path / "a.agent")
        agent.export(tmp_path / "log.agent", log_only=True)
    with opened(":memory:") as memory:
        memory.import_agent(tmp_path / "a.agent").export(tmp_path / "again.agent")
    assert (tmp_path / "again.agent").read_bytes() == (tmp_path / "log.agent").read_bytes()


def test_a_taken_name_is_refused_and_another_is_taken(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        lived(memory).export(tmp_path / "a.agent")
        with pytest.raises(ConfigError, match="'a' exists already"):
            memory.import_agent(tmp_path / "a.agent")
        with pytest.raises(ConfigError, match="'b' exists already"):
            memory.import_agent(tmp_path / "a.agent", name="b")
        with pytest.raises(ConfigError, match="non-empty"):
            memory.import_agent(tmp_path / "a.agent", name="")
        moved = memory.import_agent(tmp_path / "a.agent", name="c")
        assert moved.messages == memory.agent("a").messages
        assert memory.agent("c").info.n_turns == moved.info.n_turns
        assert {info.name for info in memory.agents()} == {"a", "b", "c"}


def test_secrets_stay_out_of_a_store_with_a_redactor(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("first")
        agent.say(f"My key is {SECRET}")
        agent.say("last")
        n_tokens, secret_ids = agent.n_tokens, memory._runner.tokenizer.encode(SECRET)
        agent.export(tmp_path / "a.agent")
    with opened(tmp_path / "two", redact="rules") as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        assert len(moved.messages) == 7
        assert not any(SECRET in f"{message.content}{message.source}" for message in moved.messages)
        assert 0 < moved.n_tokens < n_tokens  # ids before the secret are those that were
        moved.say("And now?")
        assert memory.verify().ok
    ids = secret_ids[2:-2]
    for name, raw in contents(tmp_path / "two").items():
        assert SECRET.encode() not in raw, name
        assert b"".join(id.to_bytes(4, "little") for id in ids) not in raw, name


def test_what_is_recalled_stays_in_the_store_that_it_is_of(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        agent = memory.agent("a", recall=True)
        memory.context.remember("The harbour opens at nine.")
        agent.say("When does the harbour open?")
        agent.export(tmp_path / "a.agent")
        shown = [message.recalled for message in agent.messages]
    with opened(tmp_path / "two") as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        assert [message.recalled for message in moved.messages] == shown
        assert any(shown)
        assert moved._log.facts.recall is None


def test_a_card_of_another_store_hides_none_of_this_one(tmp_path: Path) -> None:
    """Both stores call their first item 1."""
    recall, folders = Recall(remember=False), (tmp_path / "from", tmp_path / "to")
    with Memory(scripted("At dusk.", "I see."), folders[0]) as memory:
        memory.context.remember("The lamps of the quay are lit at dusk.")
        assert memory.agent("ann", recall=recall).say("When are the lamps lit?").recalled
        memory.agent("ann").export(tmp_path / "ann.agent")
    with Memory(scripted("On Fridays.", "On Fridays."), folders[1]) as memory:
        memory.context.remember("The ferry to the island sails on Fridays.")
        memory.import_agent(tmp_path / "ann.agent")
        agent = memory.agent("ann", recall=recall)
        [card] = agent.say("When does the ferry sail?").recalled
        assert "on Fridays" in card.text
        assert not agent.say("When does the ferry sail, please?").recalled, "it is shown once"


def test_a_turn_of_many_messages_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on values is one for short texts: a long turn has as many as its text has room for."""
    monkeypatch.setattr("agent_memory.log.soundness._MAX_VALUES", 1_000)
    history = [Message(role, "ok") for role in ("user",) * 800]
    with Memory(EchoRunner(), tmp_path / "from") as memory:
        memory.generate([*history, Message("user", "go on")], agent="ann", max_tokens=2)
        memory.agent("ann").export(tmp_path / "ann.agent")
    with Memory(EchoRunner(), tmp_path / "to") as memory:
        memory.import_agent(tmp_path / "ann.agent")
        assert len(memory.agent("ann").messages) == 802
    with pytest.raises(ValueError, match="too many values"):
        strangers_json(b"[" + b"1," * 1_000 + b"1]")


def test_a_view_exports_what_was_committed_and_only_that(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        agent = lived(memory)
        memory.flush()
        with open_store(tmp_path / "one") as view:
            view.export("a", tmp_path / "a.agent")
            with pytest.raises(UnknownAgentError):
                view.export("nobody", tmp_path / "n.agent")
        assert not (tmp_path / "n.agent").exists()
        told = agent.messages
    with opened(tmp_path / "two") as memory:
        assert memory.import_agent(tmp_path / "a.agent").messages == told


def test_what_cannot_be_exported_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        agent = lived(memory)
        (tmp_path / "folder").mkdir()
        with pytest.raises(StoreError, match="is a folder"):
            agent.export(tmp_path / "folder")
        with pytest.raises(StoreError, match="Give another path"):
            agent.export(tmp_path / "not there" / "a.agent")
        with pytest.raises(UnsupportedParameterError, match="temporary"):
            agent.fork("t", temporary=True).export(tmp_path / "t.agent")
        with pytest.raises(UnsupportedParameterError, match="read-only"):
            agent.at("three said").export(tmp_path / "v.agent")
        with pytest.raises(ConfigError):
            agent.export(7)  # type: ignore[arg-type]
        agent.delete()
        with pytest.raises(LookupError):
            agent.export(tmp_path / "d.agent")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "one"]


def test_an_export_replaces_a_file_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.agent"
    target.write_text("something else")
    with opened(tmp_path / "one") as memory:
        lived(memory).export(target)
    with opened(tmp_path / "two") as memory:
        assert memory.import_agent(target).info.n_turns == 2


def test_damaged_kv_is_left_out_and_the_rest_is_exported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path / "one") as memory:
        agent = memory.agent("a", system=SYSTEM * 4)
        for number in range(4):
            agent.say(f"word {number} " * 20)
        told = agent.messages
    files = sorted((tmp_path / "one" / KV_FOLDER).rglob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
    hit = files[len(files) // 2]
    raw = bytearray(hit.read_bytes())
    raw[-5] ^= 1
    hit.write_bytes(raw)
    with opened(tmp_path / "one") as memory:
        memory.agent("a").export(tmp_path / "a.agent")
        assert "was exported without" in caplog.text
        assert memory.stats().damage == 1
    with opened(tmp_path / "two") as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        assert moved.messages == told
        usage = moved.say("And now?").usage
        assert 0 < usage.cached_tokens < usage.prompt_tokens - 16
        assert memory.verify().ok


def test_kv_that_the_budget_has_no_space_for_stays_out_and_the_log_comes(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        agent = memory.agent("a", system=SYSTEM * 40)
        agent.say("one")
        agent.export(tmp_path / "a.agent")
        told = agent.messages
    with opened(tmp_path / "two", disk_bytes=180_000) as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        assert moved.messages == told
        assert memory.stats().segments == 0
        memory.flush()
        assert memory.stats().disk_bytes <= 180_000


@pytest.mark.parametrize("call", ["create", "write", "sync", "rename", "commit"])
def test_a_disk_that_refuses_in_mid_import_leaves_the_store_as_it_was(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "one") as memory:
        lived(memory).export(tmp_path / "a.agent")
    with opened(tmp_path / "two") as memory:
        memory.agent("other", system=SYSTEM).say("hello")
        memory.flush()
        before, files = memory.stats().segments, memory._store._files
        names = {name for name in contents(tmp_path / "two") if name.startswith(KV_FOLDER)}
        left, real = 2, getattr(files, call)

        def refuse(*given: object) -> object:
            nonlocal left
            left -= call != "commit"
            if left <= 0 or call == "commit":
                raise OSError(errno.ENOSPC, "no space left")
            return real(*given)

        with monkeypatch.context() as patch:
            patch.setattr(files, call, refuse)
            with pytest.raises(OutOfSpaceError):
                memory.import_agent(tmp_path / "a.agent")
        assert [info.name for info in memory.agents()] == ["other"]
        assert memory.stats().segments == before
        assert {name for name in contents(tmp_path / "two") if name.startswith(KV_FOLDER)} == names
        moved = memory.import_agent(tmp_path / "a.agent")
        assert moved.say("And now?").usage.miss is None
        assert memory.verify().ok


def test_a_file_that_changes_after_it_was_checked_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        lived(memory).export(tmp_path / "a.agent")
    raw = (tmp_path / "a.agent").read_bytes()
    with opened(tmp_path / "two") as memory:
        moving, carrier = memory._asking.moving, memory._asking.moving._carrier
        terms = moving.terms()
        model = Model(
            digests=memory._runner.identity,
            identity=memory._asking.identity,
            layout=memory._runner.layout,
            chunk_tokens=16,
            n_vocab=terms.n_vocab,
        )
        for at in range(len(raw) // 3, len(raw) - 400, len(raw) // 5):
            with AgentFileReader(tmp_path / "a.agent") as reader:
                found = carrier.read(reader, terms, model)
                with (tmp_path / "a.agent").open("r+b") as file:
                    file.seek(at)
                    file.write(bytes([raw[at] ^ 1]))
                with pytest.raises(AgentFileError):
                    carrier.take_in(reader, found, terms, "", "a")
            (tmp_path / "a.agent").write_bytes(raw)
        assert memory.agents() == []
        assert memory.stats().segments == 0
        assert memory.import_agent(tmp_path / "a.agent").info.n_turns == 2


def test_agents_are_imported_while_others_answer(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        lived(memory).export(tmp_path / "a.agent")
    with opened(tmp_path / "two") as memory:
        found: list[object] = []

        def work(number: int) -> None:
            try:
                agent = memory.import_agent(tmp_path / "a.agent", name=f"n{number}")
                found.append((agent.say("And now?").usage.miss, agent.info.n_turns))
            except BaseException as error:  # noqa: BLE001 - shown by the assertion below
                found.append(error)

        threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for number in range(5):
            memory.agent("busy", system=SYSTEM).say(f"turn {number}")
        for thread in threads:
            thread.join(60)
        assert found == [(None, 3)] * 4
        assert memory.verify().ok


def test_one_name_imported_by_two_threads_is_one_agent(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        lived(memory).export(tmp_path / "a.agent")
    with opened(tmp_path / "two") as memory:
        found: list[str] = []

        def work() -> None:
            try:
                found.append(memory.import_agent(tmp_path / "a.agent").name)
            except ConfigError as error:
                found.append(type(error).__name__)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(found) == ["ConfigError"] * 3 + ["a"]
        assert [info.name for info in memory.agents()] == ["a"]
        assert memory.verify().ok


def test_what_is_no_file_of_an_agent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello, this is no agent, but it is long enough")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with opened(tmp_path / "one") as memory:
        for name in ("empty", "text", "folder", "fifo", "not there", "nul\0"):
            with pytest.raises((AgentFileError, ConfigError)):
                memory.import_agent(tmp_path / name)
        assert memory.agents() == []


def test_a_memory_that_only_reads_exports_and_imports_nothing(tmp_path: Path) -> None:
    runner = EchoRunner(layers=1, heads=1, dim=8)
    with opened(tmp_path / "one") as memory:
        lived(memory).export(tmp_path / "a.agent")
        memory.flush()
        with Memory(runner, tmp_path / "one", config=memory.config, read_only=True) as reader:
            reader.agent("a").export(tmp_path / "b.agent")
            with pytest.raises(ReadOnlyError):
                reader.import_agent(tmp_path / "a.agent", name="c")
    assert (tmp_path / "b.agent").read_bytes() == (tmp_path / "a.agent").read_bytes()


def test_a_tool_call_and_its_result_move_along(tmp_path: Path) -> None:
    call = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'

    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    with Memory(scripted(call, "3 it is", "and then"), tmp_path / "one") as memory:
        reply = memory.run_tools("a", "What is 1 + 2?", [add])
        assert reply.text == "3 it is"
        agent = memory.agent("a")
        agent.export(tmp_path / "a.agent")
        told = agent.messages
        stayed = memory.run_tools("a", "more", [add])
    with Memory(scripted("and then"), tmp_path / "two") as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        assert moved.messages == told
        usage = memory.run_tools("a", "more", [add]).usage
        assert (usage.cached_tokens, usage.miss) == (stayed.usage.cached_tokens, None)


def test_the_format_page_tells_of_every_kind_of_part(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        lived(memory).export(tmp_path / "a.agent")
    raw = (tmp_path / "a.agent").read_bytes()
    kinds = {kind.decode() for kind in re.findall(rb'\{"part":"([a-z]+)"', raw)}
    heads = [json.loads(head) for head in re.findall(rb'\{"part":"rows"[^}]*\}', raw)]
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    section = page[page.index("## Agent's file") :].split("\n## ")[0]
    assert kinds | {"resume"} == set(re.findall(r"^\| `([a-z]+)` \|", section, re.MULTILINE))
    assert all(f"`{key}`" in section for head in heads for key in head if key != "part")


def test_kv_of_two_models_moves_in_one_file(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as memory:
        agent = memory.agent("a", system=SYSTEM)
        agent.say("one")
        memory.swap_model(EchoRunner(identity="another", layers=1, heads=1, dim=8))
        agent.say("two")
        agent.export(tmp_path / "a.agent")
    for identity in ("echo", "another"):
        with opened(tmp_path / identity, identity=identity) as memory:
            moved = memory.import_agent(tmp_path / "a.agent")
            usage = moved.say("three").usage
            assert usage.cached_tokens > 0
            assert memory.verify().ok


def test_a_reply_that_begins_as_the_one_before_it_moves(tmp_path: Path) -> None:
    """The log shares ids of the reply with the state that it replaced."""
    asked = [{"role": "user", "content": "say it again"}]
    with opened(tmp_path / "one") as memory:
        for _ in range(2):
            memory.generate(asked, agent="a")
        agent = memory.agent("a")
        assert agent._log.turns[-1].n_reply > len(agent._log.turns[-1].ids)
        agent.export(tmp_path / "a.agent")
    with opened(tmp_path / "two") as memory:
        moved = memory.import_agent(tmp_path / "a.agent")
        assert moved.messages[-1].content == "say it again"
        assert moved.say("three").usage.miss is None

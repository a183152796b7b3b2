"""The command line: what each command prints, and with which exit code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from agent_memory import (
    Config,
    ConfigError,
    EchoRunner,
    Memory,
    ModelNotFoundError,
    StoreError,
    StoreLockedError,
    UnknownAgentError,
    WrongKeyError,
)
from agent_memory.cli import app
from agent_memory.cli.printing import as_bytes, print_table
from agent_memory.cli.talking import COMMANDS
from agent_memory.log.files import MANIFEST
from docs.generate import commands, with_commands
from tests.parts.tinydirectory import directory

ROOT = Path(__file__).parents[1]


def run(*arguments: str, told: str | None = None) -> Any:
    """A command's result; ``told``: what is typed into it."""
    return CliRunner().invoke(app, list(arguments), input=told)


@pytest.fixture
def store(tmp_path: Path) -> str:
    with Memory(EchoRunner(), tmp_path / "store") as memory:
        memory.agent("ann", system="Be brief.").say("hello")
        memory.agent("[bold]bob[/bold]").say("one")
        memory.agent("[bold]bob[/bold]").say("two")
    return str(tmp_path / "store")


def test_ls_lists_agents_and_a_name_is_text_and_no_markup(store: str) -> None:
    found = run("ls", "-s", store)
    assert found.exit_code == 0
    assert "[bold]bob[/bold]" in found.stdout
    rows = json.loads(run("ls", "-s", store, "--json").stdout)
    assert {row["name"]: row["n_turns"] for row in rows} == {"ann": 1, "[bold]bob[/bold]": 2}


def test_a_store_is_encrypted_read_and_decrypted_by_commands(store: str, tmp_path: Path) -> None:
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_bytes(b"a key of 16 bytes and more")
    other.write_bytes(b"another one, which is wrong")
    assert run("rekey", "-s", store, "--to", str(key)).exit_code == 0
    for given in ((), ("--key-file", str(other))):
        for command in (("ls",), ("show", "ann"), ("verify",), ("gc", "--dry-run"), ("stats", "-m", "echo")):
            refused = run(*command, "-s", store, *given)
            assert isinstance(refused.exception, WrongKeyError), command
    with pytest.raises(ConfigError, match="cannot be read"):
        raise run("ls", "-s", store, "--key-file", str(tmp_path / "none")).exception  # type: ignore[misc]
    for command in (
        ("show", "ann"),
        ("verify",),
        ("du",),
        ("gc", "--dry-run"),
        ("ask", "three", "-a", "ann", "-m", "echo"),
    ):
        assert run(*command, "-s", store, "--key-file", str(key)).exit_code == 0, command
    assert json.loads(run("rekey", "-s", store, "--key-file", str(key), "--json").stdout) == {"encrypted": False}
    assert "three" in run("show", "ann", "-s", store).stdout
    assert run("rekey", "-s", store).exit_code == 2


def test_show_prints_the_conversation(store: str) -> None:
    assert "[system] Be brief." in run("show", "ann", "-s", store).stdout
    told = json.loads(run("show", "ann", "-s", store, "--json").stdout)
    assert [message["content"] for message in told["messages"]] == ["Be brief.", "hello", "hello"]


def test_ls_and_show_work_while_another_process_holds_the_store(store: str) -> None:
    code = (
        "import sys; from agent_memory import Memory, EchoRunner\n"
        f"with Memory(EchoRunner(), {store!r}):\n    print('open', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "open\n"
        assert run("ls", "-s", store).exit_code == 0
        assert run("du", "-s", store).exit_code == 0
        assert run("explain", "ann", "-m", "echo", "-s", store).exit_code == 0
        assert run("gc", "--free", "1MB", "--dry-run", "-s", store).exit_code == 0
        assert isinstance(run("gc", "--free", "1MB", "-s", store).exception, StoreLockedError)
        refused = subprocess.run(
            [sys.executable, "-m", "agent_memory", "rm", "ann", "-m", "echo", "-s", store],
            capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        assert refused.returncode == 1
        assert refused.stderr.startswith("StoreLockedError: ")
        assert "Traceback" not in refused.stderr
    finally:
        holder.communicate("")


def test_ask_prints_the_reply_and_on_stderr_what_was_reused(store: str) -> None:
    found = run("ask", "again", "-a", "ann", "-m", "echo", "-s", store)
    assert found.stdout == "again\n"
    assert "tokens reused from cold" in found.stderr
    told = json.loads(run("ask", "-", "-m", "echo", "-s", store, "--json", told="from a pipe").stdout)
    assert told["text"] == "from a pipe"
    assert told["usage"]["cached_tokens"] + told["usage"]["computed_tokens"] == told["usage"]["prompt_tokens"]


def test_chat_resumes_takes_turns_back_and_ends(store: str) -> None:
    found = run("chat", "ann", "-m", "echo", "-s", store, told="next\n/info\n/rewind\n/fly\n/quit\n")
    assert found.exit_code == 0
    assert "ann: 1 turn, " in found.stdout
    assert "2 turns, 5 messages" in found.stdout
    assert "taken back; left: 1 turn" in found.stdout
    assert "no such command: /fly" in found.stdout


def test_rm_deletes_and_says_where_there_was_nothing(store: str) -> None:
    assert run("rm", "ann", "-m", "echo", "-s", store).exit_code == 0
    assert run("rm", "ann", "-m", "echo", "-s", store).exit_code == 1
    assert "ann" not in run("ls", "-s", store).stdout


def test_verify_exits_with_3_where_something_is_damaged(store: str) -> None:
    assert run("verify", "-s", store).exit_code == 0
    segment = next(Path(store, "kv").rglob("*.safetensors"))
    raw = bytearray(segment.read_bytes())
    raw[-1] ^= 1
    segment.write_bytes(raw)
    found = run("verify", "-s", store)
    assert found.exit_code == 3
    assert f"damaged: segment {segment.parent.name}/{segment.name}" in found.stdout
    assert json.loads(run("verify", "-s", store, "--json").stdout)["ok"] is False


@pytest.mark.parametrize("command", ["stats", "doctor"])
def test_figures_come_as_a_table_and_as_json(command: str, store: str) -> None:
    assert run(command, "-m", "echo", "-s", store).exit_code == 0
    assert json.loads(run(command, "-m", "echo", "-s", store, "--json").stdout)


def test_doctor_shows_where_each_choice_comes_from_and_on_wish_why(store: str) -> None:
    found = run("doctor", "-m", "echo", "-s", store).stdout
    rows = {line.split()[0]: line.split()[-1] for line in found.splitlines() if line.strip()}
    assert rows["hot_bytes"] == "machine"
    assert rows["max_batch"] == "default"
    assert "to change it" not in found
    told = run("doctor", "-m", "echo", "-s", store, "--explain").stdout
    assert told.count("to change it: Config(") == told.count("      why: ") == len(attrs.fields(Config))


def test_config_and_version_need_no_store() -> None:
    assert json.loads(run("config", "--json").stdout)["chunk_tokens"] == 256
    assert "agent_memory" in run("version").stdout


def test_explain_says_what_the_next_turn_would_reuse(store: str) -> None:
    found = json.loads(run("explain", "ann", "and now?", "-m", "echo", "-s", store, "--json").stdout)
    assert found["cause"] is None
    assert 0 < found["reusable"]["cold"] < found["prompt_tokens"]
    assert "reusable: " in run("explain", "ann", "-m", "echo", "-s", store).stdout
    assert isinstance(run("explain", "nobody", "-m", "echo", "-s", store).exception, UnknownAgentError)
    assert "nobody" not in run("ls", "-s", store).stdout  # asking makes no agent


def test_fork_makes_another_agent_from_a_turn_or_a_checkpoint(store: str) -> None:
    bob = "[bold]bob[/bold]"
    with Memory(EchoRunner(), store) as memory:
        memory.agent(bob).checkpoint("both")
    assert "from turn 2" in run("fork", bob, "whole", "-m", "echo", "-s", store).stdout
    assert (
        json.loads(run("fork", bob, "early", "--at", "1", "-m", "echo", "-s", store, "--json").stdout)["n_turns"] == 1
    )
    assert "from turn 2" in run("fork", bob, "labelled", "--at", "both", "-m", "echo", "-s", store).stdout
    assert isinstance(run("fork", bob, "early", "-m", "echo", "-s", store).exception, ConfigError)


def test_chat_forks_explains_and_takes_several_turns_back(store: str) -> None:
    typed = "one\ntwo\n/fork\n/fork twin\n/fork its twin\n/rewind many\n/rewind 2\n/explain and now?\n/help\n/quit\n"
    found = run("chat", "ann", "-m", "echo", "-s", store, told=typed)
    assert found.exit_code == 0
    assert "/fork needs a name" in found.stdout
    assert "agent-memory chat twin" in found.stdout
    assert "agent-memory chat 'its twin'" in found.stdout
    assert "a number of turns, not 'many'" in found.stdout
    assert "taken back; left: 1 turn" in found.stdout
    assert "reusable: " in found.stdout
    assert all(f"{command} " in found.stdout or f"{command}:" in found.stdout for command in COMMANDS)
    assert {row["name"]: row["n_turns"] for row in json.loads(run("ls", "-s", store, "--json").stdout)}["twin"] == 3


def test_chat_without_a_turn_says_that_there_is_none_to_take_back(store: str) -> None:
    found = run("chat", "new", "-m", "echo", "-s", store, told="/rewind\n")
    assert "agent 'new' has no turn that could be taken back" in found.stdout


def test_what_a_newcomer_types_before_there_is_anything_is_told_what_to_do(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platformdirs.user_data_dir", lambda name: str(tmp_path / name))
    assert "none was yet" in str(run("ls").exception)
    assert "agent-memory ls" in str(run("show", "nobody", "-s", store).exception)
    (tmp_path / "file").write_text("no store")
    assert "a store is a folder" in str(run("ask", "hi", "-m", "echo", "-s", str(tmp_path / "file")).exception)
    checked = run("models", "check", str(tmp_path / "file"))
    assert checked.exit_code == 3
    assert "is a file; a model is" in checked.stdout


@pytest.fixture
def full_store(tmp_path: Path) -> str:
    """Three agents with some 0.4 MB of KV each: one used a day ago, one pinned, one busy."""
    with Memory(EchoRunner(), tmp_path / "full") as memory:
        memory.agent("idle").say("idle " * 300)
    with contextlib.closing(sqlite3.connect(tmp_path / "full" / MANIFEST)) as manifest, manifest:
        manifest.execute("UPDATE segments SET used_s = used_s - 86400")
    with Memory(EchoRunner(), tmp_path / "full") as memory:
        for name in ("pinned", "busy"):
            memory.agent(name).say(f"{name} " * 300)
            memory.flush()
        memory.agent("pinned").pin()
        memory.agent("busy").say("more")
    return str(tmp_path / "full")


def test_gc_says_what_would_go_and_then_evicts_that_and_no_pinned_agent(
    full_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(run("du", "-s", full_store, "--json").stdout)
    planned = json.loads(run("gc", "--free", "300KB", "--dry-run", "-s", full_store, "--json").stdout)
    assert json.loads(run("du", "-s", full_store, "--json").stdout) == before
    assert planned["agents"]
    assert "pinned" not in planned["agents"]
    later_s = time.time() + 60  # a slow machine, or a user who thinks: what is idle is idle for longer
    monkeypatch.setattr(time, "time", lambda: later_s)
    done = json.loads(run("gc", "--free", "300KB", "-s", full_store, "--json").stdout)
    assert done["agents"] == planned["agents"]
    assert done["after_bytes"] <= done["before_bytes"] - 300_000
    everything = json.loads(run("gc", "--to", "0", "-s", full_store, "--json").stdout)
    assert "pinned" not in everything["agents"]
    with Memory(EchoRunner(), full_store) as memory:
        assert memory.agent("pinned").say("still here").usage.tier == "cold"
        assert memory.agent("idle").messages[0].content.startswith("idle idle")  # the log stays
    assert run("verify", "-s", full_store).exit_code == 0


def test_gc_counts_no_segment_as_freed_whose_file_was_gone_before(full_store: str) -> None:
    for segment in Path(full_store, "kv").rglob("*.safetensors"):
        segment.unlink()
    done = json.loads(run("gc", "-s", full_store, "--json").stdout)
    assert done["n_segments"] == 0
    assert done["agents"] == {}


def test_gc_refuses_two_targets_nonsense_and_a_folder_without_a_store(full_store: str, tmp_path: Path) -> None:
    assert run("gc", "--free", "1GB", "--to", "1GB", "-s", full_store).exit_code == 2
    assert run("gc", "--free", "much", "-s", full_store).exit_code == 2
    assert isinstance(run("gc", "-s", str(tmp_path)).exception, StoreError)


def test_gc_removes_files_that_the_store_does_not_name(full_store: str) -> None:
    segment = next(Path(full_store, "kv").rglob("*.safetensors"))
    orphan = segment.with_name(f"{'0' * len(segment.stem)}.safetensors")
    orphan.write_bytes(bytes(8192))
    run("gc", "-s", full_store)
    assert segment.exists()
    assert not orphan.exists()


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("20GB", 20 * 10**9), ("512MiB", 512 << 20), ("1.5 k", 1500), ("2g", 2 * 10**9), ("0", 0)]
)
def test_sizes_are_read_as_people_write_them(text: str, n_bytes: int) -> None:
    assert as_bytes(text) == n_bytes


def test_recall_and_episodes_need_no_model(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    with Memory(EchoRunner(), store) as memory:
        memory.context.remember("The dog is called Rex.")
        memory.context.workspace("other").remember("The dog is called Fido.")
        for task in ("mend the parser", "write the docs"):
            with memory.episodes.start(task) as episode:
                episode.step("grep", "look")
                episode.complete(True)
    found = json.loads(run("recall", "dog", "-s", store, "--json").stdout)
    assert [hit["item"]["text"] for hit in found] == ["The dog is called Rex."]
    assert "Fido" in run("recall", "dog", "--workspace", "other", "-s", store).stdout
    assert [one["task"] for one in json.loads(run("episodes", "-s", store, "--json").stdout)] == [
        "write the docs", "mend the parser",
    ]  # fmt: skip
    assert [one["task"] for one in json.loads(run("episodes", "-k", "1", "-s", store, "--json").stdout)] == [
        "write the docs"
    ]
    like = json.loads(run("episodes", "mend a parser", "-s", store, "--json").stdout)
    assert like[0]["task"] == "mend the parser"
    assert isinstance(run("recall", "dog", "-s", str(tmp_path / "none")).exception, StoreError)
    assert not (tmp_path / "none").exists()


def test_models_lists_folders_and_says_what_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "of_tomorrow"}')
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    found = json.loads(run("models", "--folder", str(tmp_path), "--json").stdout)
    assert found[0]["name"] == "(starter)"
    mine = {Path(one["name"]).name: one for one in found if one["name"].startswith(str(tmp_path))}
    assert mine.keys() == {"odd", "cut.gguf"}
    assert "model*.safetensors" in mine["odd"]["problem"]
    assert not mine["cut.gguf"]["is_supported"]
    assert run("models", "check", str(tmp_path / "odd")).exit_code == 3
    assert isinstance(run("models", "check", "nobody/nothing-of-this-name").exception, ModelNotFoundError)


@pytest.mark.mlx
def test_models_check_tells_the_kinds_of_layers_and_reads_no_weights(tmp_path: Path) -> None:
    folder = directory(tmp_path / "tiny", sliding_window=64)
    found = json.loads(run("models", "check", str(folder), "--json").stdout)
    assert found["is_supported"]
    assert found["layers"] == {"full": 2}
    assert "full attention" in run("models", "check", str(folder)).stdout
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    refused = run("models", "check", str(folder))
    assert refused.exit_code == 3
    assert "supported" in refused.stdout


def test_a_table_keeps_a_row_on_its_line_whatever_stands_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "n"), [("two\nlines\x1b[2J", 1_000), ("見出し", 2)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name               n", "two lines [2J  1,000", "見出し             2"]


def test_a_shell_completes_the_names_of_agents(store: str) -> None:
    words = f"agent-memory show --store {store} a"
    asked = {"_AGENT_MEMORY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
    code = "import sys; sys.argv = ['agent-memory']; from agent_memory.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **asked}
    )
    assert done.stdout.split() == ["ann"]


def test_an_error_is_one_line_and_exit_code_1() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent_memory", "ls", "-s", "no/such/store"], capture_output=True, text=True,
        check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("StoreError: ")
    assert done.stderr.count("\n") == 1


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `agent-memory ([a-z]+(?: [a-z]+)*)", text, re.M)) == {name for name, _ in commands()}


def test_the_help_of_every_command_stands_in_the_docs_as_it_is() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert text == with_commands(text), "python docs/generate.py writes it"


def test_a_command_whose_help_changed_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert with_commands(text.replace("Show an agent's conversation.", "Show it.")) == text


def test_a_sealed_agent_goes_out_and_in_under_a_key_of_its_own(store: str, tmp_path: Path) -> None:
    key, other = tmp_path / "key", tmp_path / "other"
    key.write_bytes(b"k" * 32)
    other.write_bytes(b"o" * 32)
    file = str(tmp_path / "ann.agent")
    done = run("export", "ann", file, "--store", store, "--seal", str(key), "--json")
    assert (done.exit_code, json.loads(done.stdout)["sealed"]) == (0, True)
    there = ["--store", str(tmp_path / "there"), "--model", "echo"]
    for given in ([], ["--seal", str(other)]):
        assert isinstance(run("import", file, *there, *given).exception, WrongKeyError)
    assert run("import", file, *there, "--seal", str(key)).stdout.startswith("ann: 1 turn")


def test_an_encrypted_store_says_that_what_it_exports_is_not(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"k" * 32)
    with Memory(EchoRunner(), tmp_path / "store", config=Config(key=b"k" * 32)) as memory:
        memory.agent("ann").say("hello")
    given = ["export", "ann", str(tmp_path / "ann.agent"), "--store", str(tmp_path / "store"), "--key-file", str(key)]
    assert "--seal" in run(*given).stderr
    assert "--seal" not in run(*given, "--seal", str(key)).stderr


def test_rekey_writes_a_store_anew(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(name.encode() * 16)
    with Memory(EchoRunner(), tmp_path / "store", config=Config(key=b"old" * 16)) as memory:
        memory.agent("ann").say("hello")
    before = {file.name for file in (tmp_path / "store").rglob("*.safetensors")}
    given = ["rekey", "--store", str(tmp_path / "store"), "--key-file", str(tmp_path / "old"), "--to"]
    assert run(*given, str(tmp_path / "new"), "--anew").exit_code == 0
    assert before.isdisjoint(file.name for file in (tmp_path / "store").rglob("*.safetensors"))
    with Memory(EchoRunner(), tmp_path / "store", config=Config(key=b"new" * 16)) as memory:
        assert memory.agent("ann").say("more").usage.tier == "cold"

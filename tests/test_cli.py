"""The command line: what each command prints, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from agent_memory import EchoRunner, Memory
from agent_memory.cli import app

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
    assert "ann: 1 turns" in found.stdout
    assert "2 turns, 5 messages" in found.stdout
    assert "taken back; 1 turns are left" in found.stdout
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


def test_config_and_version_need_no_store() -> None:
    assert json.loads(run("config", "--json").stdout)["chunk_tokens"] == 256
    assert "agent_memory" in run("version").stdout


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    there = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert {line.split("`")[1].split()[0] for line in text.splitlines() if line.startswith("| `")} == there

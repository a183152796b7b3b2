"""Commands that read a store without a model, while another process may hold it: ls, show, du, verify."""

from __future__ import annotations

import json
from typing import Any

import typer

from agent_memory.cli.app import DAMAGE, AsJSON, KeyFile, Name, Salt, Store, view
from agent_memory.cli.printing import plain, print_json, print_table, say
from agent_memory.views.units import ago, count, size


def ls(store: Store = None, salt: Salt = "", key_file: KeyFile = None, as_json: AsJSON = False) -> None:
    """List the agents of a store, newest use first."""
    with view(store, salt, key_file) as found:
        agents = found.agents()
        if as_json:
            print_json([plain(agent) for agent in agents])
            return
    rows = [  # without figures by tier: they would take reading the KV's rows, and longer than all the rest
        (a.name, a.n_turns, a.n_messages, a.n_tokens, "pinned" if a.is_pinned else "", ago(a.used_s)) for a in agents
    ]
    print_table(("agent", "turns", "messages", "tokens", "", "last used"), rows, empty="no agents")


def show(name: Name, store: Store = None, salt: Salt = "", key_file: KeyFile = None, as_json: AsJSON = False) -> None:
    """Show an agent's conversation."""
    with view(store, salt, key_file) as opened:
        found = opened.show(name)
        told = plain(found.info)
    if as_json:
        print_json({**told, "messages": [plain(message) for message in found.messages]})
        return
    info = found.info
    say(
        f"{info.name}: {count(info.n_turns, 'turn')}, {count(info.n_tokens, 'token')}, on disk {_stored(told)}, "
        f"last used {ago(info.used_s)}"
    )
    for message in found.messages:
        say(f"\n[{message.role}] {message.content}")
        for call in message.tool_calls:
            say(f"  calls {call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})")
    if found.damage:
        say(f"\n{found.damage} is damaged: the conversation is shown up to there")


def _stored(agent: dict[str, Any]) -> str:
    """Return how much of an agent's log has its KV on disk."""
    tokens, n_bytes = agent["tier_tokens"].get("cold", 0), agent["tier_bytes"].get("cold", 0)
    return f"{tokens:,} tokens, {size(n_bytes)}"


def du(store: Store = None, salt: Salt = "", key_file: KeyFile = None, as_json: AsJSON = False) -> None:
    """Show what each agent's KV takes on disk, largest first."""
    with view(store, salt, key_file) as found:
        uses = found.du()
    if as_json:
        print_json({**plain(uses), "agents": [plain(use) for use in uses.agents]})
        return
    rows = [(use.name, size(use.own_bytes), size(use.shared_bytes), use.n_files) for use in uses.agents]
    print_table(("agent", "its own", "shared with others", "files"), rows, empty="no agents")
    say(
        f"KV {size(uses.kv_bytes)}, of it {size(uses.anonymous_bytes)} of prompts without an agent; "
        f"logs {size(uses.log_bytes)}"
    )


def verify(store: Store = None, salt: Salt = "", key_file: KeyFile = None, as_json: AsJSON = False) -> None:
    """Read and check every stored byte; exit code 3 where something is damaged."""
    with view(store, salt, key_file) as found:
        report = found.verify()
    if as_json:
        print_json({**plain(report), "ok": report.ok})
    else:
        say(f"{count(report.segments, 'segment')}, {count(report.turns, 'turn')}, {size(report.bytes_read)} read")
        for line in report.damaged:
            say(f"damaged: {line}")
    if not report.ok:
        raise typer.Exit(DAMAGE)

"""Commands that talk to a model: ask and chat, with chat's own commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent_memory.cli.app import AsJSON, KeyFile, MaxTokens, Model, Name, Salt, Store, memory_of
from agent_memory.cli.printing import plain, print_json, say, tell
from agent_memory.errors import AgentMemoryError
from agent_memory.views.units import count

if TYPE_CHECKING:
    from agent_memory.agent import Agent
    from agent_memory.types import Reply


def ask(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    agent: Annotated[str | None, typer.Option("--agent", "-a", help="Continue this agent's conversation.")] = None,
    model: Model = None,
    store: Store = None,
    salt: Salt = "",
    max_tokens: MaxTokens = 512,
    key_file: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """Ask once, print the reply as it comes, and say what was reused."""
    text = sys.stdin.read() if prompt == "-" else prompt
    with memory_of(model, store, salt, key_file) as memory:
        handle = memory.stream(text, agent=agent, max_tokens=max_tokens)
        reply = handle.result() if as_json else _told(handle)
    if as_json:
        print_json({"text": reply.text, "finish": reply.finish, "usage": plain(reply.usage)})


def chat(
    name: Name,
    model: Model = None,
    store: Store = None,
    salt: Salt = "",
    system: Annotated[str | None, typer.Option(help="System prompt of a new agent.")] = None,
    max_tokens: MaxTokens = 512,
    key_file: KeyFile = None,
) -> None:
    """Talk to an agent; it resumes where it stopped. Commands: /fork, /rewind, /explain, /info, /help, /quit."""
    with memory_of(model, store, salt, key_file) as memory:
        agent = memory.agent(name, system=system)
        info = agent.info
        so_far = f"{count(info.n_turns, 'turn')}, {count(info.n_tokens, 'token')}"
        say(f"{name}: {so_far}. /help lists the commands, /quit ends.")
        for line in _lines("> "):
            if line.split()[:1] in (["/quit"], ["/exit"]):
                break
            _answer(agent, line, max_tokens)


def _answer(agent: Agent, line: str, max_tokens: int) -> None:
    command, _, rest = line.strip().partition(" ")
    try:
        if command in COMMANDS:
            COMMANDS[command][1](agent, rest.strip())
        elif command.startswith("/"):
            say(f"no such command: {command}. Known: {', '.join(COMMANDS)}, /quit")
        elif line.strip():
            _told(agent.stream(line, max_tokens=max_tokens))
    except KeyboardInterrupt:
        say("\ncancelled; the conversation is as before")
    except AgentMemoryError as error:
        say(f"{type(error).__name__}: {error}")


def _fork(agent: Agent, name: str) -> None:
    if not name:
        say("/fork needs a name for the new agent")
        return
    agent.fork(name)
    say(f"{name} goes on from here: agent-memory chat {shlex.quote(name)}. You still talk to {agent.name}")


def _rewind(agent: Agent, turns: str) -> None:
    if turns and not turns.isdecimal():
        say(f"/rewind takes a number of turns, not {turns!r}")
        return
    agent.rewind(int(turns or 1))
    say(f"taken back; left: {count(agent.info.n_turns, 'turn')}")


def _explain(agent: Agent, message: str) -> None:
    say(str(agent.explain(message or None)))


def _info(agent: Agent, _: str) -> None:
    info = agent.info
    say(f"{count(info.n_turns, 'turn')}, {count(info.n_messages, 'message')}, {count(info.n_tokens, 'token')}")


def _help(_: Agent, __: str) -> None:
    for name, (said, _work) in COMMANDS.items():
        say(f"{name}{said}")
    say("/quit: end; so does the end of input")


#: Chat's commands: what /help says of each, and what it does with the agent and the rest of the line.
COMMANDS: Mapping[str, tuple[str, Callable[[Agent, str], None]]] = {
    "/fork": (" NAME: make another agent that goes on from here", _fork),
    "/rewind": (" [TURNS]: take the newest turn back, or so many", _rewind),
    "/explain": (" [MESSAGE]: what the next turn would reuse, and why no more", _explain),
    "/info": (": turns, messages and tokens", _info),
    "/help": (": this list", _help),
}


def _told(handle: Any) -> Reply:
    """Print a reply as it comes, and one line on what it reused."""
    for piece in handle.text():
        sys.stdout.write(piece)
        sys.stdout.flush()
    say("")
    reply: Reply = handle.result()
    usage = reply.usage
    where = f" from {usage.tier}" if usage.cached_tokens else ""
    said = (
        f"{count(usage.cached_tokens, 'token')} reused{where}, {usage.computed_tokens:,} computed, {usage.ttft_s:.2f} s"
    )
    tell(f"{said}{'' if usage.miss is None else f', {usage.miss}'}")
    return reply


def _lines(prompt: str) -> Iterator[str]:
    """What a person types, until the end of input."""
    while True:
        try:
            yield input(prompt)
        except EOFError:
            say("")  # the shell goes on on a line of its own
            return
        except KeyboardInterrupt:
            say("")

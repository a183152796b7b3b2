"""Two agents who know what others decided yesterday and what broke last night, and what that costs.

    python examples/recall.py [--store FOLDER]

Needs no account and no settings: the starter model is fetched the first time. The same decisions are remembered by a
second run too; they are counted, and not stored again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from platformdirs import user_data_dir

from agent_memory import Agent, Memory, Recall

DAY_S = 86_400
DECISIONS = [
    "Decision: we ship on Fridays, never on Mondays.",
    "Decision: every deploy needs a green build and a second pair of eyes. Ann signs for the pump service.",
    "Decision: the backup of the pump service runs at four in the morning.",
]
INCIDENT = """2026-11-25 03:58:12 INFO pump-service: backup started
2026-11-25 04:03:40 ERROR pump-service: valve controller timed out after 30 s
2026-11-25 04:03:41 ERROR pump-service: restart failed: port 8441 is in use
2026-11-25 04:11:05 INFO pump-service: recovered after the old process was stopped by hand
"""
TURNS = [
    ("planner", "On which day do we ship, and never on which?"),
    ("oncall", "What failed in the pump service, and on which port?"),
    ("planner", "Who signs for a deploy of the pump service?"),
    ("oncall", "When does the backup of the pump service run?"),
    ("planner", "Say again on which day we never ship."),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(user_data_dir("agent_memory")) / "recall"
    parser.add_argument("--store", type=Path, default=default, help=f"where to keep all of it (default: {default})")
    with Memory(path=parser.parse_args().store) as memory:
        run(memory)


def run(memory: Memory) -> None:
    """Tell what happened yesterday, then ask both agents."""
    yesterday = time.time() - DAY_S
    for decision in DECISIONS:
        memory.context.remember(decision, source="meeting", at=yesterday)
    memory.context.remember(INCIDENT, kind="log", source="incident", at=yesterday)
    # What an agent is asked and answers is remembered as well, for all agents of this store.
    agents = {name: memory.agent(name, recall=Recall(k=2)) for name in ("planner", "oncall")}
    for name, question in TURNS:
        take_turn(agents[name], question)
    stats = memory.context.stats(by="kind")
    print(f"\nRemembered: {stats.n_texts} texts ({', '.join(f'{n} {kind}' for kind, n in stats.by.items())}).")


def take_turn(agent: Agent, question: str) -> None:
    """Ask, and print what was recalled, why, and what was computed."""
    before = agent.n_tokens
    reply = agent.say(question, max_tokens=40)
    print(f"\n{agent.name}: {question}")
    for card in reply.recalled:
        why = " ".join(f"{name} {value:+.2f}" for name, value in card.parts.items() if abs(value) >= 0.01)
        print(f"  recalled {card.score:.2f} ({why})\n    {card.text.strip()}")
    if not reply.recalled:
        print("  recalled nothing new: what answers it is in the conversation already")
    usage = reply.usage
    print(f"  computed {usage.computed_tokens} of {usage.prompt_tokens} tokens; {before} were there before")
    print(f"  {' '.join(reply.text.split())[:100]}")


if __name__ == "__main__":
    main()

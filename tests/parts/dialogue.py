"""Three agents, six turns each, on the starter model: what every turn gave, as JSON. Run as a program for one round.

python tests/parts/dialogue.py STORE FIRST_TURN LAST_TURN [TIER]
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

SYSTEM = (
    "You are the keeper of a small lighthouse. The lamp is lit at dusk and put out at dawn, the lens is wiped every "
    "morning, and the log notes wind, sea and every ship that passes. Strangers may climb the stair on Sundays. You "
    "answer briefly, in plain words, and you never guess: where you do not know, you say so. The harbour lies two "
    "miles to the east; the reef to the west has taken nine ships, the last of them in the winter of the great storm."
)
AGENTS = {
    "ann": SYSTEM + " You are Ann.",
    "bob": SYSTEM + " You are Bob.",
    "cid": "You write very short poems about the sea. " * 22,
}
TURNS = [
    "What do you do at dusk?",
    "Name one thing that you write into the log, and say why it matters to anybody.",
    "Who may climb the stair?",
    "Tell me about the reef: how many ships, and when was the last?",
    "And 12 + 30? Write the number only.",
    "Thank you. Say good night in one line.",
]


def bytes_read() -> int:
    """Return the bytes that this process has read by system calls so far, as the kernel counts them; 0 elsewhere."""
    counts = Path("/proc/self/io")
    return int(counts.read_text().split("rchar:")[1].split()[0]) if counts.exists() else 0


def turns(memory: Any, first: int, last: int, evict: str | None = None) -> list[dict[str, Any]]:
    """Run turns ``[first, last)`` of every agent, each evicted to a tier before; ids, a digest of the first token's
    logits, and the figures.
    """
    rows = []
    for number in range(first, last):
        for name, system in AGENTS.items():
            if evict is not None:
                memory.evict(to=evict)
            logits: list[bytes] = []

            def note(ids: Any, values: Any, seen: list[bytes] = logits) -> Any:
                if not seen:
                    seen.append(values.tobytes())
                return values

            agent = memory.agent(name, system=system)
            before = bytes_read()
            reply = agent.say(TURNS[number], max_tokens=6, logits_processors=[note])
            rows.append(
                {
                    "turn": number,
                    "agent": name,
                    "ids": reply.token_ids,
                    "logits": hashlib.sha256(logits[0]).hexdigest(),
                    "exactness": reply.usage.exactness,
                    "tier": reply.usage.tier,
                    "prompt": reply.usage.prompt_tokens,
                    "cached": reply.usage.cached_tokens,
                    "computed": reply.usage.computed_tokens,
                    "read": bytes_read() - before,
                }
            )
    return rows


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from agent_memory import Memory

    with Memory(path=sys.argv[1]) as opened:
        print(json.dumps(turns(opened, int(sys.argv[2]), int(sys.argv[3]), evict=next(iter(sys.argv[4:]), None))))

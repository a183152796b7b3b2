"""Three agents plan a garden: two rounds, a whisper, a vote, and what each turn cost.

    python examples/group.py [--model NAME_OR_FOLDER] [--rounds 2]

The starter model (135 million parameters) talks, and does not plan; the figures are what this example is for: a turn
computes what its member has not heard yet, and not the conversation again. The vote needs llguidance:

    pip install "llguidance>=1.9.1,<2"
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from agent_memory import Memory, MissingExtraError

MEMBERS = {
    "ann": "You love roses. You speak in one short sentence.",
    "bob": "You want to grow food. You speak in one short sentence.",
    "cem": "You are careful with money. You speak in one short sentence.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=None, help="hub id, mlx-lm folder or .gguf file (default: the starter model)"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with Memory(args.model, path) as memory:
            for name, system in MEMBERS.items():
                memory.agent(name, system=system)
            group = memory.group("garden", list(MEMBERS))
            group.say("We have one small garden and 100 euros. What shall we plant?")
            group.whisper(None, "cem", "In truth there are 200 euros. Tell nobody.")
            print(f"{'round':>5} {'member':8} {'prompt':>7} {'computed':>9}  says")
            for number in range(args.rounds):
                for name, reply in group.round(max_tokens=args.max_tokens).items():
                    usage, text = reply.usage, " ".join(reply.text.split())[:70]
                    print(f"{number + 1:5} {name:8} {usage.prompt_tokens:7,} {usage.computed_tokens:9,}  {text}")
        with Memory(args.model, path) as memory:  # another process would do the same
            group = memory.group("garden")
            print(f"\nOpened again: {len(group.transcript)} lines.")
            try:
                print(f"Vote: {group.vote('What shall we plant?', ['roses', 'potatoes', 'nothing'])}")
            except MissingExtraError as error:
                print(f"No vote: {error}")
            usage = group.round(max_tokens=args.max_tokens)["ann"].usage
            print(f"ann's next turn: {usage.computed_tokens} of {usage.prompt_tokens:,} prompt tokens computed")


if __name__ == "__main__":
    main()

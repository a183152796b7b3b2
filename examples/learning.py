"""An agent fails, finds its way out, and is told its own way out the next time.

    python examples/learning.py [--store FILE]

The agent converts reports. Its tools are small Python functions, and its head is a few lines: it follows advice where
there is some, and otherwise tries what it can in the order in which it thinks of it. No model is needed. With a file as
its store, a second run begins with what the first one learned.
"""

from __future__ import annotations

import argparse

from attrs import define, field

from agent_memory import Episode, EpisodicMemory, TaskContext

#: What the agent thinks of by itself when a tool fails, in that order.
IDEAS = ("wait", "restart", "clear_cache", "ask_colleague", "install_codec")
CONTEXT = TaskContext(language="python", domain="data", tags=("reports",))


class ToolError(Exception):
    """A tool did not do what it was asked to do."""


@define
class Machine:
    """A fresh machine: it cannot write the new format until a codec is installed."""

    job: int
    has_codec: bool = False
    log: list[str] = field(factory=list)

    def run(self, tool: str) -> str:
        self.log.append(tool)
        if tool == "install_codec":
            self.has_codec = True
        if tool == "convert" and not self.has_codec:
            raise ToolError(f"CodecError: no codec 'zstd' for /jobs/{self.job}/report.csv (job {1000 + self.job})")
        return f"{tool}: done"


def use(episode: Episode, machine: Machine, tool: str) -> bool:
    """Run a tool and record it, whether it works or not."""
    try:
        observation, ok = machine.run(tool), True
    except ToolError as error:
        observation, ok = str(error), False
    episode.step(tool, f"{tool} for a report", ok=ok, observation=observation)
    return ok


def convert(memory: EpisodicMemory, job: int) -> tuple[int, str]:
    """Convert one report on a fresh machine; return how many tools it took, and who had the idea."""
    machine, source = Machine(job), "nobody needed one"
    with memory.start(f"convert report {job} to the new format", context=CONTEXT) as episode:
        use(episode, machine, "read")
        while not use(episode, machine, "convert"):
            advised = [tool for advice in episode.recommend() for tool in advice.tools if tool not in machine.log]
            ideas = [tool for tool in IDEAS if tool not in machine.log]
            idea = (advised or ideas)[0]
            source = "its own memory" if advised else "trial and error"
            use(episode, machine, idea)
        use(episode, machine, "publish")
        episode.complete(True)
    return len(machine.log), source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", default=":memory:", help="a file; by default nothing is kept")
    args = parser.parse_args()
    with EpisodicMemory(args.store) as memory:
        for job in range(1, 5):
            n_tools, source = convert(memory, job)
            print(f"report {job}: {n_tools} tools; the way out came from {source}")
        print("\nWhat it learned:")
        for pattern in memory.patterns():
            print(f"- {pattern.text} ({len(pattern.episodes)} episodes, {pattern.effectiveness.value:.0%})")
        print("\nWhat it says of its last episode:")
        for insight in memory.reflection(memory.recall("convert a report", k=1)[0].episode.id):
            print(f"- {insight.text} (steps {', '.join(map(str, insight.steps))})")


if __name__ == "__main__":
    main()

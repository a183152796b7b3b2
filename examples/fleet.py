"""A fleet: workers on Ray, each with a Memory of its own, that share KV and agents through a bucket.

    pip install 'ray>=2.50'
    python examples/fleet.py [--model NAME_OR_FOLDER] [--echo] [--agents 20] [--turns 4] [--kills 3] [--remote URL]

- Each agent has a home: the worker that all its turns go to, where its KV is hot. Without a name, prompts that begin
  alike go to one worker.
- A turn is acknowledged once it is published. A worker is killed with SIGKILL in mid-turn: its agents go on elsewhere,
  on other disks, with every acknowledged turn.
- A turn that was published, and whose answer was lost with its worker, is not run twice: it is in the log.

Ray finds and restarts processes and carries calls. Who may write an agent's log is decided by the bucket, whatever the
router believes. ``--echo`` runs without a model, for the program's own tests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import ray
    from ray.exceptions import RayActorError
except ImportError:
    sys.exit("this example needs Ray: pip install 'ray>=2.50'")

from agent_memory import AgentMovedError, Config, EchoRunner, Memory, UnknownAgentError

PREFIX = 256  #: characters by which prompts without a name find their worker
SYSTEM = "You are one of many assistants in a fleet. Answer in one short sentence. " * 8


def recalling(text: str, ids: tuple[int, ...]) -> str:
    """What the stand-in answers: a digest of its whole prompt, so that one lost or wrong id is seen."""
    return f"{text} {hashlib.sha256(repr(ids).encode()).hexdigest()[:16]}"


def opened(model: str | None, is_echo: bool, folder: str, config: Config) -> Memory:
    """Open a worker's Memory."""
    return Memory(EchoRunner(recalling, delay_s=0.002) if is_echo else model, folder, config=config)


class Worker:
    """One process of the fleet: a Memory on a disk of its own. Several threads call it at once."""

    def __init__(self, model: str | None, is_echo: bool, folder: str, remote: str, key: bytes) -> None:
        self._memory = opened(model, is_echo, folder, Config(remote=remote, remote_key=key))
        self._here: set[str] = set()
        self._lock = threading.Lock()

    def pid(self) -> int:
        """Return the process."""
        return os.getpid()

    def say(self, name: str, number: int, text: str) -> tuple[str, bool]:
        """Take turn ``number`` of an agent, or find it done; return the reply, and whether the turn ran now."""
        self._open(name)
        agent = self._memory.agent(name)
        is_new = agent.info.n_turns == number
        if is_new:
            agent.say(text, max_tokens=32)
        try:
            self._memory.publish(agent)
        except AgentMovedError:  # the router took this worker for dead; it is right by now
            self._here.discard(name)
            raise
        return self._answers(name)[number], is_new

    def replies(self, name: str) -> list[str]:
        """Return what an agent has answered so far, wherever its turns ran."""
        self._open(name)
        return self._answers(name)

    def ask(self, prompt: str) -> tuple[str, int]:
        """Answer a prompt without an agent; return the reply, and how many tokens were not computed."""
        reply = self._memory.generate(prompt, max_tokens=32)
        return reply.text, reply.usage.cached_tokens

    def close(self) -> None:
        """Save and end."""
        self._memory.close()

    def _answers(self, name: str) -> list[str]:
        return [message.content for message in self._memory.agent(name).messages if message.role == "assistant"]

    def _open(self, name: str) -> None:
        with self._lock:
            if name in self._here:
                return
            try:
                self._memory.fetch_agent(name)
            except UnknownAgentError:  # nobody has published a turn of it
                self._memory.agent(name, system=SYSTEM)
            self._here.add(name)


class Fleet:
    """The router: which worker a call goes to, and what happens when that worker is gone. Any thread."""

    def __init__(self, n_workers: int, folder: Path, remote: str, model: str | None, is_echo: bool) -> None:
        self._folder, self._remote, self._model, self._is_echo = folder, remote, model, is_echo
        self._key = secrets.token_bytes(32)  # a real fleet's comes from its secret store, and stays
        self._actor = ray.remote(Worker)
        self._lock = threading.Lock()
        self._n_started = 0
        self.workers: dict[str, Any] = {}
        self.pids: dict[str, int] = {}
        self._homes: dict[str, str] = {}
        self._running: Counter[str] = Counter()  # turns on their way, by worker
        self.n_lost = 0
        for _ in range(n_workers):
            self._start()

    def say(self, name: str, number: int, text: str) -> tuple[str, bool]:
        """Take a turn; return its reply once it is published, whatever happens to workers meanwhile."""
        return self._called(lambda: self.home_of(name), "say", name, number, text)

    def replies(self, name: str) -> list[str]:
        """Return what an agent has answered, as its home knows it: a home that never ran a turn of it fetches it."""
        return self._called(lambda: self.home_of(name), "replies", name)

    def ask(self, prompt: str) -> tuple[str, int]:
        """Answer a prompt without an agent, where prompts that begin alike have been."""
        return self._called(lambda: self._place(prompt[:PREFIX]), "ask", prompt)

    def _called(self, place: Callable[[], str], method: str, *given: Any) -> Any:
        """Call a worker until one answers: dead ones are replaced, and an agent that moved is taken over."""
        while True:
            worker = place()
            self._count(worker, 1)
            try:
                return ray.get(getattr(self.workers[worker], method).remote(*given))
            except AgentMovedError:
                continue  # the worker has let go of the agent, and takes it over again
            except (RayActorError, KeyError):
                self._lose(worker)
            finally:
                self._count(worker, -1)

    def busy(self) -> list[str]:
        """Return the workers that have a turn on its way."""
        with self._lock:
            return [worker for worker, n in self._running.items() if n and worker in self.workers]

    def _count(self, worker: str, n: int) -> None:
        with self._lock:
            self._running[worker] += n

    def home_of(self, name: str) -> str:
        """Return an agent's worker: where it is, else where its name leads among those that live."""
        with self._lock:
            return self._homes.setdefault(name, self._place(name))

    def _place(self, key: str) -> str:
        """Rendezvous hashing: a worker that comes or goes moves only what must move."""
        return max(self.workers, key=lambda worker: hashlib.sha256(f"{worker} {key}".encode()).digest())

    def _lose(self, worker: str) -> None:
        """Forget a dead worker and its disk, and start another one."""
        with self._lock:
            if self.workers.pop(worker, None) is None:
                return
            self.n_lost += 1
            self._homes = {name: home for name, home in self._homes.items() if home != worker}
            self._start()

    def _start(self) -> None:
        name = f"worker{self._n_started}"
        self._n_started += 1
        made = self._actor.options(max_concurrency=32, num_cpus=0).remote(
            self._model, self._is_echo, str(self._folder / name), self._remote, self._key
        )
        self.pids[name] = ray.get(made.pid.remote())
        self.workers[name] = made

    def close(self) -> None:
        """Close every worker; one that is dead has nothing to save that was not published."""
        for closed in [worker.close.remote() for worker in self.workers.values()]:
            with suppress(RayActorError):
                ray.get(closed)


@contextmanager
def ray_here(n_cpus: int) -> Iterator[None]:
    """A Ray of this machine alone, without a dashboard and without reports to anybody."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=n_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


class Run:
    """Conversations of many agents on a fleet, one thread each, and workers that are killed meanwhile."""

    def __init__(self, fleet: Fleet, n_agents: int, n_turns: int, n_kills: int) -> None:
        self._fleet, self._n_turns, self._n_kills = fleet, n_turns, n_kills
        self.names = [f"agent{number:02d}" for number in range(n_agents)]
        self.acknowledged: dict[str, list[str]] = {name: [] for name in self.names}
        self.n_found = 0  #: turns whose first answer was lost with a worker, and which were in the log
        self.n_killed = 0
        self._is_over = threading.Event()

    def go(self) -> float:
        """Run all conversations; return the seconds."""
        started = time.perf_counter()
        killer = threading.Thread(target=self._kill)
        killer.start()
        try:
            with ThreadPoolExecutor(len(self.names)) as threads:
                list(threads.map(self._talk, self.names))
        finally:
            self._is_over.set()
            killer.join()
        return time.perf_counter() - started

    def _talk(self, name: str) -> None:
        for number in range(self._n_turns):
            reply, is_new = self._fleet.say(name, number, said(name, number))
            self.acknowledged[name].append(reply)
            self.n_found += not is_new

    def _kill(self) -> None:
        whole = len(self.names) * self._n_turns
        for number in range(self._n_kills):
            due = whole * (number + 1) // (self._n_kills + 2)
            while sum(map(len, self.acknowledged.values())) < due and not self._is_over.is_set():
                time.sleep(0.001)
            while not self._is_over.is_set():
                if busy := self._fleet.busy():
                    os.kill(self._fleet.pids[busy[number % len(busy)]], signal.SIGKILL)
                    self.n_killed += 1
                    break
                time.sleep(0.001)
            while self._fleet.n_lost < self.n_killed and not self._is_over.is_set():
                time.sleep(0.001)


def said(name: str, number: int) -> str:
    """What is said to an agent in one of its turns."""
    return f"This is message {number} to {name}."


def replayed(model: str | None, is_echo: bool, names: list[str], n_turns: int) -> dict[str, list[str]]:
    """The same conversations in one process that nobody kills."""
    with opened(model, is_echo, ":memory:", Config()) as memory:
        agents = {name: memory.agent(name, system=SYSTEM) for name in names}
        for number in range(n_turns):
            memory.batch([said(name, number) for name in names], agent=list(agents.values()), max_tokens=32)
        return {
            name: [message.content for message in agent.messages if message.role == "assistant"]
            for name, agent in agents.items()
        }


def main() -> None:
    """Measure one worker and two, kill some, and compare every reply with a run in one process."""
    parser = argparse.ArgumentParser(description="A fleet of Memories on Ray that share a bucket.")
    parser.add_argument("--model")
    parser.add_argument("--echo", action="store_true")
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--remote", help="the bucket's URL; a temporary folder if none is given")
    parser.add_argument("--json", type=Path, help="where to write what was said and acknowledged")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet") as root, ray_here(2):
        run, kills = None, [0, 0, given.kills]
        for n_workers, n_kills in zip((1, 2, 2), kills, strict=True):
            home = Path(root) / f"run{n_workers}{n_kills}"
            remote = given.remote or f"file://{home}/bucket"
            place, mark, options = remote.partition("?")
            prefix = f"{place}/{secrets.token_hex(4)}{mark}{options}"  # each run begins with an empty bucket
            fleet = Fleet(n_workers, home, prefix, given.model, given.echo)
            run = Run(fleet, given.agents, given.turns, n_kills)
            seconds = run.go()
            n = given.agents * given.turns
            workers = "1 worker" if n_workers == 1 else f"{n_workers} workers"
            killed = f", {run.n_killed} killed in mid-turn" if n_kills else ""
            print(f"{workers}{killed}: {n} turns in {seconds:.1f} s, {n / seconds:.1f} turns/s", flush=True)
            logged = {name: fleet.replies(name) for name in run.names}
            texts = [fleet.ask(SYSTEM + question)[1] for question in ("Who are you?", "What can you do?")]
            fleet.close()
        assert run is not None
        print(f"without a name: the second prompt of a prefix found {texts[1]} of its tokens computed")
        expected = replayed(given.model, given.echo, run.names, given.turns)
        n_lost = sum(a not in logged[name] for name, replies in run.acknowledged.items() for a in replies)
        n_wrong = sum(replies != expected[name] for name, replies in logged.items())
        print(f"acknowledged turns lost: {n_lost}; agents that differ from one process: {n_wrong}")
        print(f"turns that were found done, their first answer lost with a worker: {run.n_found}")
        if given.json is not None:
            told = {"acknowledged": run.acknowledged, "logged": logged, "killed": run.n_killed, "found": run.n_found}
            given.json.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()

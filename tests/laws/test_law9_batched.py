"""Law 9: what a request computes does not depend on what shares its batch.

Random schedules of agents that join, leave, are cancelled, and start fresh, hot or restored from disk; each request is
compared with its solo run: the same dialogue in another Memory in which nobody else speaks. The rule for equal tokens
under different schedules: logits of every compared step within 1e-3 in float32, and the same greedy tokens except
where the solo run's two best logits are closer than twice the measured gap. Such a flip is an event of the test's
statistics; one at a wider margin fails. A seeded sample has no such excuse.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import numpy as np
import pytest
from attrs import define, field, frozen
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from agent_memory import CancelledError, Config, EchoRunner, Generation, Memory, Sampling
from tests.parts import tiny
from tests.parts.waiting import ENDED, outcome, wait_for

#: Largest difference of logits that counts as rounding.
GAP = 1e-3
LAST_S = 600.0  #: a schedule on a real model and a busy machine may take minutes
N_AGENTS = 8
MOST = 48  #: output tokens of a request, at most
N_PARTS = 4  #: the 200 schedules of a kind run in parts that can be run one by one, by their id
SMALL = Config(chunk_tokens=16, prefill_tokens=64, max_batch=4)
TEXT = (
    "The lamp is lit at dusk and put out at dawn, the lens is wiped every morning, and the log notes wind, sea and "
    "every ship that passes. Strangers may climb the stair on Sundays; they are given tea and asked for news. "
)

# No shrinking: a schedule runs on threads, and each solo run costs as much as the schedule.
quick = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@frozen
class Ask:
    """One request of a schedule."""

    agent: int
    start: int  #: where in TEXT its message starts: few places, so that prefixes are shared
    length: int
    max_tokens: int
    join: int  #: given when the request before it has so many tokens
    cancel: int | None  #: cancelled when it has so many tokens
    seed: int | None  #: None: greedy
    is_watched: bool  #: whether a logits processor looks on; greedy rows without one take another way


asks = st.builds(
    Ask,
    agent=st.integers(0, N_AGENTS - 1),
    start=st.sampled_from([0, 0, 21, 90]),
    length=st.one_of(st.integers(1, 20), st.integers(1, 160)),
    max_tokens=st.sampled_from([40, MOST, 24, 9, 2, 1]),
    join=st.sampled_from([0, 0, 1, 3, 9]),
    cancel=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 20)),
    seed=st.one_of(st.none(), st.none(), st.integers(0, 3)),
    is_watched=st.booleans(),
)
#: What each agent starts from: nothing, or a turn that was had alone and is hot, or is restored from disk.
pasts = st.lists(st.sampled_from(["fresh", "hot", "cold"]), min_size=N_AGENTS, max_size=N_AGENTS)
schedules = st.tuples(pasts, st.lists(asks, min_size=4, max_size=8))


class Watch:
    """A logits processor that changes nothing and keeps what it saw."""

    def __init__(self) -> None:
        self.steps: list[np.ndarray[Any, Any]] = []

    def __call__(self, ids: Any, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.steps.append(logits.copy())
        return logits


@frozen
class Turn:
    """What was asked, and under which settings: all that a solo run depends on."""

    text: str
    max_tokens: int
    seed: int | None = None

    @property
    def sampling(self) -> Sampling:
        """Greedy, or seeded."""
        return Sampling() if self.seed is None else Sampling(temperature=1.0, top_p=0.95, seed=self.seed)


@define
class Solo:
    """Dialogues in a Memory of their own, one at a time."""

    memory: Memory
    numbers: Iterator[int] = field(factory=count)
    known: dict[tuple[Turn, ...], tuple[list[int], list[Any]]] = field(factory=dict)

    def answer(self, *turns: Turn) -> tuple[list[int], list[Any]]:
        """Ids and logits of the answer to the last of ``turns``, nothing reused from anybody else."""
        if turns not in self.known:
            self.memory.evict()
            agent = self.memory.agent(f"solo {next(self.numbers)}")
            for turn in turns[:-1]:
                agent.say(turn.text, max_tokens=turn.max_tokens, sampling=turn.sampling)
            watch, last = Watch(), turns[-1]
            handle = agent.stream(
                last.text, max_tokens=last.max_tokens, sampling=last.sampling, logits_processors=[watch]
            )
            self.known[turns] = (_ids(handle), watch.steps)
            agent.delete()
        return self.known[turns]


def _ids(handle: Generation) -> list[int]:
    """All ids that a handle gives, once it has ended."""
    return [i for delta in handle for i in delta.token_ids]


def _opening(agent: int) -> Turn:
    return Turn(f"I am number {agent}. " + TEXT[: 30 * agent], 5)


def _n_tokens(handle: Generation) -> int:
    return handle.progress[0] if handle.state == "decode" else MOST if handle.state in ENDED else 0


@define
class Stage:
    """A schedule being played."""

    memory: Memory
    name: str  #: of this schedule's agents, in front of their numbers
    scale: int  #: characters per unit of ``Ask.length``
    asks: list[Ask]
    given: list[tuple[Ask, Generation, Watch]] = field(factory=list)

    def play(self, pasts: list[str]) -> None:
        """Have the openings one after another, then all requests at their times; returns when all have ended."""
        agents = {ask.agent for ask in self.asks}
        for past in ("cold", "hot"):
            for agent in sorted(a for a in agents if pasts[a] == past):
                turn = _opening(agent)
                self.memory.agent(self.agent(agent)).say(turn.text, max_tokens=turn.max_tokens)
                if past == "cold":
                    self.memory.evict(self.agent(agent))
        for number, ask in enumerate(self.asks):
            if number:
                before = self.given[-1][1]
                wait_for(lambda: self._is_time(before, ask.join), "its time", LAST_S)  # noqa: B023 - called here
            watch, turn = Watch(), self.turn(ask)
            handle = self.memory.stream(
                turn.text,
                agent=self.agent(ask.agent),
                max_tokens=turn.max_tokens,
                sampling=turn.sampling,
                priority=int(ask.agent == 0),
                logits_processors=[watch] if ask.is_watched else [],
            )
            self.given.append((ask, handle, watch))
        wait_for(lambda: self._is_time(None, 0), "the schedule's end", LAST_S)

    def _is_time(self, before: Generation | None, join: int) -> bool:
        """Cancel what is due; whether ``before`` has ``join`` tokens, or, of None, whether all have ended."""
        for ask, handle, _ in self.given:
            if ask.cancel is not None and handle.state not in ENDED and _n_tokens(handle) >= ask.cancel:
                handle.cancel()
        if before is not None:
            return _n_tokens(before) >= join
        return all(handle.state in ENDED for _, handle, _ in self.given)

    def agent(self, number: int) -> str:
        """An agent's name."""
        return f"{self.name} {number}"

    def turn(self, ask: Ask) -> Turn:
        """What an ask says."""
        text = TEXT * (1 + (ask.start + ask.length * self.scale) // len(TEXT))
        return Turn(text[ask.start : ask.start + ask.length * self.scale], ask.max_tokens, ask.seed)


def _compare(ids: list[int], logits: list[Any], solo: tuple[list[int], list[Any]], is_greedy: bool) -> bool:
    """Assert that ``ids`` are the solo run's first; False after a flip that rounding excuses."""
    wanted, solo_logits = solo
    same = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), len(ids))
    gaps = [float(np.abs(a - b).max()) for a, b in zip(logits, solo_logits[: same + 1], strict=False)]
    assert max(gaps, default=0.0) <= GAP, f"logits differ by {max(gaps)}"
    if same == len(ids):
        return True
    second, first = np.partition(solo_logits[same], -2)[-2:]
    margin, gap = float(first - second), max(gaps) if logits else GAP
    assert is_greedy, f"a seeded sample differs at token {same}"
    assert margin < 2 * gap, f"token {same} is {ids[same]}, alone {wanted[same]}, at a margin of {margin}"
    event("flip within rounding")
    return False


def _check(stage: Stage, pasts: list[str], solo: Solo) -> None:
    """Each request against its solo run; each agent's log against what was acknowledged."""
    said: dict[int, list[Turn]] = {a.agent: [_opening(a.agent)][pasts[a.agent] == "fresh" :] for a in stage.asks}
    flipped: set[int] = set()
    for ask, handle, watch in stage.given:
        turn, found, ids = stage.turn(ask), outcome(handle), _ids(handle)
        if isinstance(found, BaseException):
            assert isinstance(found, CancelledError), repr(found)
            assert ask.cancel is not None
        else:
            usage = found.usage
            assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens
        if ask.agent not in flipped:
            alone = solo.answer(*said[ask.agent], turn)
            if not _compare(ids, watch.steps, alone, ask.seed is None):
                flipped.add(ask.agent)  # its later turns rest on other ids
            elif not isinstance(found, BaseException):
                assert len(ids) == len(alone[0])
        if not isinstance(found, BaseException):
            said[ask.agent].append(turn)
    for agent, turns in said.items():
        log = stage.memory.agent(stage.agent(agent)).messages
        assert [m.content for m in log[::2]] == [turn.text for turn in turns]


def _runner(kind: str) -> Any:
    if kind == "echo":
        return EchoRunner(lambda asked, _: asked * MOST, delay_s=0.0003)
    from tests.parts.tinyrunner import endless

    return endless(kind)


@pytest.fixture(scope="module")
def solos() -> Iterator[Callable[[str], Solo]]:
    """Each kind's Memory in which everything is said alone: one for all schedules."""
    made: dict[str, Solo] = {}
    with ExitStack() as opened:

        def solo(kind: str) -> Solo:
            if kind not in made:
                made[kind] = Solo(opened.enter_context(Memory(_runner(kind), ":memory:", config=SMALL)))
            return made[kind]

        yield solo


def _law(kind: str, schedule: tuple[list[str], list[Ask]], solo: Solo) -> None:
    pasts, asked = schedule
    with tempfile.TemporaryDirectory() as folder, Memory(_runner(kind), folder, config=SMALL) as memory:
        stage = Stage(memory, "agent", 1, asked)
        stage.play(pasts)
        _check(stage, pasts, solo)


KINDS = ["echo", *(pytest.param(kind, marks=pytest.mark.mlx) for kind in tiny.SHAPES)]
#: Plain attention, windows, recurrent layers: one of each in every run, the others behind ``slow``.
FEW = ["echo", *(pytest.param(kind, marks=pytest.mark.mlx) for kind in ("llama", "gemma3_text", "qwen3_next"))]


@pytest.mark.parametrize("kind", FEW)
@given(schedule=schedules)
@settings(quick, max_examples=2)
def test_law_9_batched_equals_alone(kind: str, solos: Any, schedule: Any) -> None:
    _law(kind, schedule, solos(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", range(N_PARTS))
@given(schedule=schedules)
@settings(quick, max_examples=200 // N_PARTS)
def test_law_9_batched_equals_alone_in_200_schedules(part: int, kind: str, solos: Any, schedule: Any) -> None:
    _law(kind, schedule, solos(kind))


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Memory, Solo, Iterator[int]]]:
    """Loading takes seconds: one stage for all schedules, whose agents have other names in each."""
    store = tmp_path_factory.mktemp("starter") / "store"
    with Memory(path=store) as memory, Memory(path=":memory:") as alone:
        yield memory, Solo(alone), count()


@pytest.mark.slow
@pytest.mark.mlx
@pytest.mark.model
@given(schedule=schedules)
@settings(quick, max_examples=20)
def test_law_9_batched_equals_alone_on_the_starter_model(starter: Any, schedule: Any) -> None:
    memory, solo, numbers = starter
    stage = Stage(memory, f"agent {next(numbers)}", 10, schedule[1])
    stage.play(schedule[0])
    _check(stage, schedule[0], solo)

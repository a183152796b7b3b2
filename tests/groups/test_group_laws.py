"""Random schedules, with restarts: no member hears what is not for it, everybody hears all that is, and once."""

from __future__ import annotations

import re
import tempfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory import EchoRunner, Group, Memory, RequestError

NAMES = ("ann", "bob", "cem", "dan")
SECRET = re.compile(r"secret\d+z")

who = st.sampled_from(NAMES)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.one_of(st.none(), who)),
        st.tuples(st.just("whisper"), st.one_of(st.none(), who), who),
        st.tuples(st.just("turn"), who),
        st.tuples(st.just("round")),
        st.tuples(st.just("broadcast"), st.one_of(st.none(), who)),
        st.tuples(st.just("alone"), who),
        st.tuples(st.just("rewind"), who),
        st.tuples(st.just("restart")),
    ),
    max_size=14,
)


class Schedule:
    """A group in a store, what was said to whom, and every prompt that the model has read."""

    def __init__(self, folder: str, topology: Any) -> None:
        self.folder, self.topology = folder, topology
        self.hearers: dict[str, set[str]] = {}
        self.prompts: list[tuple[str, str]] = []
        self.runner = EchoRunner(self.reply)
        self.memory = Memory(self.runner, folder)
        for name in NAMES:
            self.memory.agent(name)
        self.group: Group = self.memory.group("g", NAMES, topology=topology)

    def reply(self, asked: str, ids: tuple[int, ...]) -> str:
        text = self.runner.tokenizer.key(ids)
        self.prompts.append((text.partition("You are ")[2].partition(",")[0], text))
        return "Well."

    def secret(self, *hearers: str) -> str:
        text = f"secret{len(self.hearers)}z"
        self.hearers[text] = set(hearers)
        return text

    def take(self, step: tuple[Any, ...]) -> None:
        kind, *args = step
        group = self.group
        if kind == "say":
            group.say(self.secret(*NAMES), *args)
        elif kind == "whisper" and args[0] != args[1]:
            group.whisper(args[0], args[1], self.secret(*filter(None, args)))
        elif kind == "turn":
            try:
                group.turn(args[0])
            except RequestError:  # it is not this member's turn
                group.interrupt(args[0])
        elif kind == "round":
            group.round()
        elif kind == "broadcast":
            group.broadcast(self.secret(*NAMES), *args)
        elif kind == "alone":
            self.group.member(args[0]).say(f"You are {args[0]}, alone: {self.secret(args[0])}")
        elif kind == "rewind" and group.member(args[0]).info.n_turns:
            group.member(args[0]).rewind()
        elif kind == "restart":
            before = group.transcript
            self.memory.close()
            self.memory = Memory(self.runner, self.folder)
            self.group = self.memory.group("g")
            assert self.group.transcript == before

    def check(self) -> None:
        for member, text in self.prompts:
            for secret in SECRET.findall(text):
                assert member in self.hearers[secret], (member, secret)
                assert text.count(secret) == 1, (member, secret)
        for name in NAMES:  # whatever is for a member has reached it once it has spoken
            self.group.interrupt(name)
            seen = set(SECRET.findall(self.prompts[-1][1]))
            public = {secret for secret in self.hearers if f"alone: {secret}" not in self.alone}
            assert seen >= {secret for secret in public if name in self.hearers[secret]}

    @property
    def alone(self) -> str:
        """What was said to members outside of the group, where it may be taken back."""
        return "".join(text for _, text in self.prompts if "alone: " in text)


def run(steps: list[tuple[Any, ...]], topology: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        schedule = Schedule(folder, topology)
        try:
            for step in steps:
                schedule.take(step)
            schedule.check()
        finally:
            schedule.memory.close()


@settings(max_examples=15)
@given(STEPS, st.sampled_from(["round", "turns", "free"]))
def test_no_member_hears_what_is_not_for_it(steps: list[tuple[Any, ...]], topology: str) -> None:
    run(steps, topology)


@pytest.mark.slow
@settings(max_examples=200)
@given(STEPS, st.sampled_from(["round", "turns", "free"]))
def test_no_member_hears_what_is_not_for_it_in_200_schedules(steps: list[tuple[Any, ...]], topology: str) -> None:
    run(steps, topology)

"""Plays a case of tests/observe/explain_corpus: the request before, what happens between, and the report after."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from agent_memory import CacheReport, Config, EchoRunner, Memory
from tests.parts.damaging import segment_files
from tests.parts.templated import Templated
from tests.parts.templates import Native

CORPUS = Path(__file__).parents[1] / "observe" / "explain_corpus"
_CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_SPECIALS = {
    "chatml": _CHATML,
    "qwen3-think": _CHATML,
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
    "gemma": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "mistral": (
        "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
        "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    ),
}  # fmt: skip
_ENDS = {
    "chatml": "<|im_end|>", "qwen3-think": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>",
    "mistral": "</s>",
}  # fmt: skip
_BEGINS = {"llama3": "<|begin_of_text|>", "gemma": "<bos>", "mistral": "<s>"}
_FORMATS = {"chatml": "json_tools", "qwen3-think": "json_tools", "llama3": "llama3", "mistral": "mistral"}


class Voice(Templated):
    """A tokenizer with one of the corpus's templates."""

    def __init__(self, name: str) -> None:
        template = json.loads((CORPUS / "templates.json").read_text(encoding="utf-8"))[name]
        super().__init__(Native(name, "", template, _SPECIALS[name], (_ENDS[name],), ""))
        if name in _BEGINS:
            self._hf.bos_token = _BEGINS[name]

    @property
    def tool_format(self) -> str | None:
        return _FORMATS.get(self.native.name)

    @property
    def reasoning(self) -> tuple[str, str] | None:
        return ("<think>", "</think>") if self.native.name == "qwen3-think" else None


@cache
def voice(name: str) -> Voice:
    return Voice(name)


def cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((CORPUS / f"{name}.json").read_text(encoding="utf-8"))
    for case in found:
        for side in ("before", "after"):
            _name_calls(case[side]["messages"])
    return found


def lint_cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((CORPUS / "lint.json").read_text(encoding="utf-8"))[name]
    for case in found:
        for prompt in case["prompts"]:
            _name_calls(prompt)
    return found


def _name_calls(messages: list[dict[str, Any]]) -> None:
    """Give calls and results ids where the corpus has none."""
    open_calls: list[str] = []
    for place, message in enumerate(messages):
        for number, call in enumerate(message.get("tool_calls") or ()):
            open_calls.append(call.setdefault("id", f"call_{place}_{number}"))
        if message["role"] == "tool":
            call_id = open_calls.pop(0) if open_calls else f"call_{place}"
            message.setdefault("tool_call_id", call_id)


def runner(name: str, replies: Sequence[str], *, identity: str = "echo", delay_s: float = 0.0) -> EchoRunner:
    """A model that says these, one after another, in the tokenizer's own tokens; then "ok"."""
    said, tokenizer = list(replies), voice(name)

    def say(asked: str, ids: tuple[int, ...]) -> Sequence[int]:
        return [*tokenizer.encode(said.pop(0) if said else "ok"), tokenizer.end_id]

    made = EchoRunner(say, identity=identity, delay_s=delay_s)
    made._tokenizer = tokenizer  # type: ignore[assignment]
    return made


def reply_of(name: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], variables: Any) -> str:
    """What the model must have written for the last of some messages: what the template writes for it."""
    from agent_memory.prompt.messages import normalize
    from agent_memory.prompt.template import render
    from agent_memory.tools import as_tools

    last = messages[-1]
    if not last.get("tool_calls"):
        thought = last.get("reasoning_content")
        space = " " if name == "mistral" else ""  # as its model writes, and its template
        return space + (f"<think>\n{thought}\n</think>\n\n" if thought else "") + last["content"]
    tokenizer, given, offered = voice(name), normalize(list(messages)), as_tools(tools)
    head = render(tokenizer, given[:-1], tools=offered, variables=variables, generation_prompt=True)
    whole = render(tokenizer, given, tools=offered, variables=variables, generation_prompt=False)
    if not whole.startswith(head):
        return str(messages[-1]["content"])
    return whole[len(head) :].split(_ENDS[name])[0]


def asked(case: Mapping[str, Any]) -> tuple[list[Any], str]:
    """The messages of the earlier request, and the reply that it got."""
    before, after, name = case["before"], case["after"], case["template"]
    messages, tools, variables = before["messages"], before["tools"], before["template_vars"] or None
    if messages[-1]["role"] == "assistant":
        return messages[:-1], reply_of(name, messages, tools, variables)
    later = after["messages"]
    n = len(messages)
    if len(later) > n and later[n]["role"] == "assistant":
        return messages, reply_of(name, [*messages, later[n]], tools, variables)
    return messages, "I see."


def play(case: Mapping[str, Any], folder: Path) -> CacheReport:
    """The report on the later request of a case."""
    return _Play(case, folder).report()


class _Play:
    def __init__(self, case: Mapping[str, Any], folder: Path) -> None:
        self.case, self.folder, self.name = case, folder, case["template"]
        between = case["between"]
        self.what = next(iter(between)) if isinstance(between, Mapping) else between
        self.days = (
            [datetime.fromisoformat(day) for day in between["date_change"].values()]
            if self.what == "date_change"
            else None
        )
        self.on_disk = self.what in ("damage", "other_model", "other_tenant", "restart")
        self.messages, self.reply = asked(case)

    def open(self, *, identity: str = "echo", salt: str = "", delay_s: float = 0.0) -> Memory:
        config = Config(chunk_tokens=16, prefill_tokens=16, salt=salt, pin_dates=not self.days)
        made = runner(self.name, [self.reply], identity=identity, delay_s=delay_s)
        return Memory(made, self.folder if self.on_disk else ":memory:", config=config)

    def options(self, side: str, memory: Memory) -> dict[str, Any]:
        one = self.case[side]
        return {"tools": one["tools"], "template": one["template_vars"] or None}

    def report(self) -> CacheReport:
        memory = self.open(delay_s=0.01 if self.what == "cancelled" else 0.0)
        try:
            if self.days:
                memory._asking.clock = lambda: self.days[0]
            self.ask(memory)
            memory = getattr(self, f"_{self.what}")(memory) if self.what else memory
            after = self.case["after"]
            options = self.options("after", memory)
            if self.case["agent"]:
                memory.agent("a")
                return memory.agent("a").explain(after["messages"], **options)
            return memory.explain(after["messages"], **options)
        finally:
            memory.close()

    def ask(self, memory: Memory) -> None:
        agent: Any = "a" if self.case["agent"] else None
        if self.what == "cancelled":
            handle = memory.stream(self.messages, agent=agent, **self.options("before", memory))
            until = time.monotonic() + 10
            while handle.progress[0] < 16 and time.monotonic() < until:
                time.sleep(0.002)
            handle.cancel()
            for _ in handle:
                pass
            return
        if self.what == "forget":
            memory.context.remember(f"Note: {self.messages[-1]['content']}")
            memory.agent("a", recall=True)
        self.recalled = memory.generate(self.messages, agent=agent, **self.options("before", memory)).recalled

    def _date_change(self, memory: Memory) -> Memory:
        assert self.days
        memory._asking.clock = lambda: self.days[1]
        return memory

    def _cancelled(self, memory: Memory) -> Memory:
        return memory

    def _forget(self, memory: Memory) -> Memory:
        memory.context.forget([card.id for card in self.recalled])
        return memory

    def _evict(self, memory: Memory) -> Memory:
        memory.evict("a" if self.case["agent"] else None)
        return memory

    def _reopened(self, memory: Memory, **how: Any) -> Memory:
        memory.close()
        return self.open(**how)

    def _restart(self, memory: Memory) -> Memory:
        return self._reopened(memory)

    def _damage(self, memory: Memory) -> Memory:
        memory.close()
        for file in segment_files(self.folder):
            file.write_bytes(file.read_bytes()[:-64])
        return self.open()

    def _other_model(self, memory: Memory) -> Memory:
        return self._reopened(memory, identity="another model")

    def _other_tenant(self, memory: Memory) -> Memory:
        return self._reopened(memory, salt="another tenant")


Play = Callable[[Mapping[str, Any], Path], CacheReport]


def verdict(case: Mapping[str, Any], report: CacheReport) -> dict[str, bool]:
    """Which of the four things that a case says of a report are right."""
    at = report.diverged_at
    place, text, before = case["message"], case["diverges_at_text"], case["before_text"]
    return {
        "cause": report.cause == case["cause"],
        "message": (text is None and place is None) or (at is not None and at.message == place),
        "here": text is None or report.here.startswith(text),
        "there": before is None or report.there.startswith(before),
    }

"""Typed items that the resident model reads out of what was remembered, while nothing else runs.

The model is shown numbered sentences, and its reply is held to a schema: numbers of these sentences, each with a kind.
So an item's span is a sentence of the text, whatever the model writes, and no reply fails to parse.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agent_memory.errors import AgentMemoryError, UnsupportedParameterError
from agent_memory.generation import Generation
from agent_memory.requests.calling import calling_of
from agent_memory.requests.options import Settings
from agent_memory.requests.prompting import Planner, Rendering
from agent_memory.requests.session import Requests
from agent_memory.types import Message, Reply

if TYPE_CHECKING:
    from agent_memory.recall.context import ContextMemory
    from agent_memory.recall.extraction import Unread
    from agent_memory.recall.protocols import Extracted

logger = logging.getLogger("agent_memory.requests")

_LAST = -(2**31)  #: the priority of what nobody waits for
_TOKENS_A_SENTENCE, _TOKENS_AROUND = 24, 24
_SYSTEM = (
    "You find lasting knowledge in notes. A decision says what was chosen, a task what somebody will do, a preference "
    "what somebody likes, an instruction what must be done from now on, a requirement or constraint what must hold, an "
    "event what happened on a day, a fact what is true. Small talk and questions are none of these. Answer in JSON."
)


class Reader:
    """An ``Extractor`` on the resident model, and one reading that goes on in idle time.

    ``extract`` waits for the reply: any thread but the engine's. ``step`` and ``cancel`` never wait.
    """

    def __init__(self, requests: Requests, model: str) -> None:
        self._requests = requests
        self.read_with(model)
        self._running: tuple[ContextMemory, Unread, Generation] | None = None

    def read_with(self, model: str) -> None:
        """Name the model that reads from now on."""
        self.name = f"{model}, reading 1"

    def extract(self, text: str) -> Sequence[Extracted]:
        """Return the items of a text. Raises RequestError."""
        spans = _sentences(text)
        return _found(spans, self._start(text, spans).result()) if spans else []

    def step(self, contexts: Sequence[ContextMemory]) -> bool:
        """Keep what a reading has found, and begin the next one; True while there is one. Engine thread."""
        if self._running is not None:
            context, unread, handle = self._running
            if handle.state not in ("done", "failed", "cancelled"):
                return True
            self._running = None
            self._keep(context, unread, handle)
        for context in contexts:
            unread_now = context.unread()
            if unread_now is None:
                continue
            if spans := _sentences(unread_now.body):
                self._running = context, unread_now, self._start(unread_now.body, spans)
            else:
                context.keep_found(unread_now, [], self.name)
            return True
        return False

    def cancel(self) -> None:
        """Let somebody's request pass: the piece is read again later, from the KV that is there. Any thread."""
        running = self._running
        if running is not None:
            running[2].cancel()

    def _keep(self, context: ContextMemory, unread: Unread, handle: Generation) -> None:
        if handle.state == "cancelled":
            return
        try:
            found = _found(_sentences(unread.body), handle.result())
        except AgentMemoryError as error:
            logger.warning("a remembered text was not read for typed items: %s", type(error).__name__)
            context.keep_found(unread, None, self.name)
        else:
            context.keep_found(unread, found, self.name)

    def _start(self, text: str, spans: Sequence[tuple[int, int]]) -> Generation:
        settings = Settings(
            schema=_schema(len(spans)),
            max_tokens=_TOKENS_A_SENTENCE * len(spans) + _TOKENS_AROUND,
            priority=_LAST,
        )
        asked = "\n".join(f"{n}. {text[a:b]}" for n, (a, b) in enumerate(spans, 1))
        planner = Planner(
            self._requests.tokenizer, [Message("system", _SYSTEM), Message("user", asked)], None, Rendering()
        )
        calling = calling_of(settings, grammars=self._requests.grammars)
        return self._requests.start(self._requests.make(planner, None, settings, calling))


def _sentences(text: str) -> list[tuple[int, int]]:
    from agent_memory.recall.passages import sentences

    return [(a, b) for a, b in sentences(text) if not text[a:b].endswith("?")]


def _schema(n_sentences: int) -> dict[str, Any]:
    from agent_memory.recall.extraction import KINDS

    item = {
        "type": "object",
        "properties": {"sentence": {"enum": list(range(1, n_sentences + 1))}, "kind": {"enum": list(KINDS)}},
        "required": ["sentence", "kind"],
        "additionalProperties": False,
    }
    items = {"type": "array", "items": item, "maxItems": n_sentences}
    return {"type": "object", "properties": {"items": items}, "required": ["items"], "additionalProperties": False}


def _found(spans: Sequence[tuple[int, int]], reply: Reply) -> list[Extracted]:
    """The items of a reply, the first of each sentence. Raises UnsupportedParameterError where it was cut short."""
    from agent_memory.recall.protocols import Extracted

    if reply.parsed is None:
        raise UnsupportedParameterError(f"the reading was cut short after {reply.usage.output_tokens} tokens")
    kinds: dict[int, str] = {}
    for item in reply.parsed["items"]:
        kinds.setdefault(item["sentence"], item["kind"])
    return [Extracted(kind, *spans[number - 1]) for number, kind in sorted(kinds.items())]

"""OpenAI Agents SDK: a model, its provider and a session, whose conversations keep their KV. Extra ``[openai-agents]``.

The agent of a call is the first of these that is given:

- ``agent`` in the ``extra_args`` of its ``ModelSettings``; None is no agent. Other options of ``Memory.generate`` too.
- the run's ``conversation_id``, as ``agent/conversation`` where the model has an ``agent=``: the runner sends what is
  new, and the agent's log has the rest. Agents that hand such a conversation over need models of one name.
- ``agent=`` of the model, which is a session's id for ``AgentMemorySession.model``, and the name that the provider is
  asked for: ``Agent(model="ann")``.

Refused: ``previous_response_id``, stored prompts, hosted tools, penalties, ``top_logprobs``, an ``output_type`` beside
tools or handoffs, what is not text. Other settings do nothing. A call is streamed whole. Traces hold no text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from agents import Model, ModelProvider, ModelResponse, ModelSettings, ModelTracing, SessionABC, Usage, UserError
from agents import generation_span as span
from agents.models.chatcmpl_converter import Converter

from agent_memory import Generation, Memory, Message
from agent_memory.integrations.openai_items import events_of, identity_of, items_of, output_of, usage_of
from agent_memory.integrations.shapes import choice_of, key_of

_SAME = ("max_tokens", "temperature", "top_p", "parallel_tool_calls")  #: settings and options
_REFUSED = ("frequency_penalty", "presence_penalty", "top_logprobs")


class AgentMemoryModel(Model):
    """A model on a ``Memory``, which the caller opens and closes; any number of models may share one."""

    def __init__(self, memory: Memory, *, agent: str | None = None) -> None:
        self.memory, self.agent = memory, agent

    async def get_response(
        self, system_instructions: str | None, input: Any, model_settings: ModelSettings, tools: list[Any],
        output_schema: Any, handoffs: list[Any], tracing: ModelTracing, **where: Any,
    ) -> ModelResponse:  # fmt: skip
        """Generate a reply; cancelled with its task."""
        with span(model=self.memory.model_name, disabled=tracing.is_disabled()) as traced:
            asked = (system_instructions, input, model_settings, tools, output_schema, handoffs)
            generation = self._start(*asked, **where)
            reply = await generation
            counted = usage_of(reply)
            usage = Usage(requests=1, **dict(counted))
            traced.span_data.usage = counted.model_dump()
            return ModelResponse(output_of(generation.id, reply), usage, None, raw_usage=reply.usage.to_dict())

    async def stream_response(
        self, system_instructions: str | None, input: Any, model_settings: ModelSettings, tools: list[Any],
        output_schema: Any, handoffs: list[Any], tracing: ModelTracing, **where: Any,
    ) -> AsyncIterator[Any]:  # fmt: skip
        """Generate a reply, event by event; left early, it is cancelled."""
        with span(model=self.memory.model_name, disabled=tracing.is_disabled()) as traced:
            asked = (system_instructions, input, model_settings, tools, output_schema, handoffs)
            with self._start(*asked, **where) as generation:
                async for event in events_of(generation, self.memory.model_name):
                    yield event
                traced.span_data.usage = usage_of(await generation).model_dump()

    def _start(
        self, system: str | None, input: Any, settings: ModelSettings, tools: list[Any], schema: Any,
        handoffs: list[Any], previous_response_id: str | None = None, conversation_id: str | None = None,
        prompt: Any = None,
    ) -> Generation:  # fmt: skip
        given = {"previous_response_id": previous_response_id, "prompt": prompt}
        given |= {name: getattr(settings, name) for name in _REFUSED}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise UserError(f"{wrong[0]} is not supported by a local model; leave it out")
        offered = [*map(Converter.tool_to_openai, tools), *map(Converter.convert_handoff_tool, handoffs)]
        options: dict[str, Any] = {"agent": key_of(self.agent, conversation_id), "timeout_s": settings.timeout}
        options |= {name: value for name in _SAME if (value := getattr(settings, name)) is not None}
        if offered:  # held to their schemas where those can be: the SDK's tools ask for that unless told not to
            options["tools"] = [{**one["function"], "strict": False, "type": "function"} for one in offered]
            options["tool_choice"] = choice_of(settings.tool_choice)
        if schema is not None and not schema.is_plain_text():
            options["schema"] = schema.json_schema()
        options |= settings.extra_args or {}
        said = _messages(input, self.memory.model_name)
        if conversation_id is not None and options["agent"] is not None:
            said = [*self.memory.agent(options["agent"]).messages, *said]  # the runner sends only what is new
        if system:
            said = [{"role": "system", "content": system}, *(one for one in said if _role(one) != "system")]
        return self.memory.stream(said, **options)


class AgentMemoryProvider(ModelProvider):
    """The models of a ``Memory``, by name: each name is an agent's."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def get_model(self, model_name: str | None) -> Model:
        """Return the model with this name as its ``agent=``."""
        return AgentMemoryModel(self.memory, agent=model_name)


class AgentMemorySession(SessionABC):
    """A session that is an agent's log: run it with its ``model``, ``RunConfig(model=session.model)``.

    What the runner adds is in the log once the model has read it; until then, and where it never does, it is kept here,
    for this object's life. One run at a time.
    """

    def __init__(self, memory: Memory, session_id: str) -> None:
        self.memory, self.session_id = memory, session_id
        self.model = AgentMemoryModel(memory, agent=session_id)
        self._waiting: list[Any] = []  #: added, and not in the log yet
        self._n_known = len(self._logged())  #: items of the log that were added, or there before

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """Return the newest ``limit`` items, or all, oldest first; the system prompt is the agent's, and is none."""
        items = [*self._logged(), *self._still_waiting()]
        return items if limit is None else items[max(len(items) - limit, 0) :]

    async def add_items(self, items: list[Any]) -> None:
        """Keep items that the log has not."""
        self._waiting += [one for one in items if identity_of(one) is not None]
        self._still_waiting()

    async def pop_item(self) -> Any:
        """Remove the newest item and return it; the rest of its turn waits for the model to read it again."""
        if not self._still_waiting():
            before = self._logged()
            if not before:
                return None
            self.memory.agent(self.session_id).rewind()
            self._n_known = len(self._logged())
            self._waiting = before[self._n_known :]
        return self._waiting.pop()

    async def clear_session(self) -> None:
        """Delete the agent."""
        self.memory.delete(self.session_id)
        self._waiting, self._n_known = [], 0

    def _logged(self) -> list[Any]:
        return [item for message in self.memory.agent(self.session_id).messages for item in items_of(message)]

    def _still_waiting(self) -> list[Any]:
        """Return what was added and is not in the log, and forget what came there meanwhile."""
        known = [identity_of(one) for one in self._logged()]
        while self._waiting and (added := identity_of(self._waiting[0])) in known[self._n_known :]:
            self._n_known = known.index(added, self._n_known) + 1
            del self._waiting[0]
        return self._waiting


def _messages(input: Any, model: str) -> list[Any]:
    """Items in OpenAI's chat shape, by the SDK's own converter; reasoning of earlier replies comes along."""
    return list(Converter.items_to_messages(input, model=model, should_replay_reasoning_content=lambda _: True))


def _role(message: Any) -> str:
    return message.role if isinstance(message, Message) else message["role"]

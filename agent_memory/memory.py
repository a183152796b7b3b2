"""Memory: the facade. It opens the model and the store, owns the engine, and answers plain method calls."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any

from agent_memory.agent import Agent
from agent_memory.config import Config, memory_budgets
from agent_memory.dialects.anthropic import AnthropicMessages
from agent_memory.dialects.openai import OpenAIChat
from agent_memory.errors import ClosedError, ConfigError, UnsupportedParameterError
from agent_memory.generation import Generation
from agent_memory.log.log import Log
from agent_memory.observe import doctor as checkup
from agent_memory.observe.codec_quality import measure
from agent_memory.prefix.chunks import identity_of
from agent_memory.prompt import messages as shapes
from agent_memory.prompt.results import paired
from agent_memory.prompt.template import prompt_ids
from agent_memory.prompt.tokens import check_stop
from agent_memory.protocols import LogitsProcessor, ModelRunner
from agent_memory.requests.arguments import check_settings, runner_for, store_for
from agent_memory.requests.calling import Calling, calling_of
from agent_memory.requests.prompting import Planner
from agent_memory.requests.registry import Agents
from agent_memory.requests.session import Requests, Settings
from agent_memory.requests.tool_loop import run_rounds
from agent_memory.scheduler.callables import checked
from agent_memory.scheduler.engine import Engine, shut
from agent_memory.scheduler.request import Request
from agent_memory.tools import as_tools
from agent_memory.types import AgentInfo, CodecReport, Doctor, Reply, Sampling, Stats, Tier, Usage, VerifyReport


class Memory:
    """Agents that share one local model and never compute their context twice.

    ``model``: hub id, mlx-lm directory, ``.gguf`` file, ``MLXRunner(model, tokenizer)``, ``EchoRunner()``, or None for
    the starter model. ``path``: the store's folder; None for the user's data folder; ":memory:" for no disk tier.
    Loads the model before it returns. Thread-safe; one process at a time holds a store.

    Raises ConfigError, ModelError, BackendMissingError, StoreLockedError, IncompatibleStoreError or StoreError.
    """

    def __init__(
        self,
        model: str | PathLike[str] | ModelRunner | None = None,
        path: str | PathLike[str] | None = None,
        *,
        config: Config = Config(),
        adapter: str | PathLike[str] | None = None,
    ) -> None:
        if not isinstance(config, Config):
            raise ConfigError(f"config must be a Config, got {type(config).__name__}")
        self._config = config
        self._runner = runner_for(model, config, adapter)
        self._model = self._runner.name
        self._closed = False
        self._identity = ""
        hot_bytes, warm_bytes = memory_budgets(config)
        self._store = store_for(path, config, warm_bytes)
        self._engine = Engine(self._runner, self._store, hot_bytes=hot_bytes, config=config)
        self._agents = Agents(self._store, self._engine, config.salt)
        self._requests = Requests(self._runner, self._store, self._engine, config.callable_timeout_s)
        try:
            self._engine.open(self._store.recorded(self._model), self._attach)
        except BaseException:
            self._store.close()
            raise
        # A Memory that nobody closed still saves and ends its threads when it is collected or the interpreter exits.
        self._finalizer = weakref.finalize(self, shut, self._engine, self._store)

    @property
    def messages(self) -> AnthropicMessages:
        """Anthropic's Messages API, in process."""
        return AnthropicMessages(self, self._runner.name)

    @property
    def chat(self) -> OpenAIChat:
        """OpenAI's Chat Completions API, in process: ``memory.chat.completions.create``."""
        return OpenAIChat(self, self._runner.name)

    def __repr__(self) -> str:
        return f"Memory({self._runner.name!r}{', closed' if self._closed else ''})"

    def generate(
        self,
        prompt: object,
        *,
        agent: str | Agent | None = None,
        tools: Sequence[Any] = (),
        tool_choice: str | Mapping[str, str] = "auto",
        parallel_tool_calls: bool = True,
        schema: Any = None,
        sampling: Sampling = Sampling(),
        max_tokens: int = 512,
        stop: str | Sequence[str] = (),
        logits_processors: Sequence[LogitsProcessor] = (),
        template: Mapping[str, Any] | None = None,
        raw: bool = False,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Reply:
        """The reply to ``prompt``: a str is one user turn, a list of messages a whole history.

        With ``agent``, a str continues that agent's conversation and a list replaces it, reusing what is equal.
        ``raw``: no chat template. ``template``: variables for it, of JSON's types. Interrupted (Ctrl-C), the request
        is cancelled. Raises RequestError's kinds; the agent's log is as before the turn after each of them.
        """
        handle = self.stream(
            prompt,
            agent=agent,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            schema=schema,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            logits_processors=logits_processors,
            template=template,
            raw=raw,
            priority=priority,
            timeout_s=timeout_s,
        )
        with handle:
            return handle.result()

    def stream(
        self,
        prompt: object,
        *,
        agent: str | Agent | None = None,
        tools: Sequence[Any] = (),
        tool_choice: str | Mapping[str, str] = "auto",
        parallel_tool_calls: bool = True,
        schema: Any = None,
        sampling: Sampling = Sampling(),
        max_tokens: int = 512,
        stop: str | Sequence[str] = (),
        logits_processors: Sequence[LogitsProcessor] = (),
        template: Mapping[str, Any] | None = None,
        raw: bool = False,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Generation:
        """The same as a handle, at once: iterate it, await it, cancel it. Bad input raises here, before any work."""
        asked = agent, tools, tool_choice, parallel_tool_calls, schema, template, raw
        how = sampling, max_tokens, stop, logits_processors, priority, timeout_s
        return self._requests.start(self._request(prompt, *asked, *how))

    def batch(
        self,
        prompts: Sequence[object],
        *,
        agent: str | Agent | None = None,
        tools: Sequence[Any] = (),
        tool_choice: str | Mapping[str, str] = "auto",
        parallel_tool_calls: bool = True,
        schema: Any = None,
        sampling: Sampling = Sampling(),
        max_tokens: int = 512,
        stop: str | Sequence[str] = (),
        logits_processors: Sequence[LogitsProcessor] = (),
        template: Mapping[str, Any] | None = None,
        raw: bool = False,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> list[Reply]:
        """Replies to several prompts, decoded together, in order. The first error cancels the rest and is raised.

        What is wrong with any of them raises before work on the first.
        """
        if isinstance(prompts, (str, bytes, Mapping)):
            raise UnsupportedParameterError(f"prompts must be a list of prompts, got {type(prompts).__name__}")
        asked = agent, tools, tool_choice, parallel_tool_calls, schema, template, raw
        how = sampling, max_tokens, stop, checked(logits_processors), priority, timeout_s
        prompts = list(prompts)
        planned = [self._planned(prompt, *asked, *how) for prompt in prompts]  # what is wrong with one ends all
        requests = [
            request if self._keep(request, log) else self._request(prompt, *asked, *how)
            for prompt, (request, log) in zip(prompts, planned, strict=True)
        ]
        handles: list[Generation] = []
        try:
            handles.extend(map(self._requests.start, requests))
            return [handle.result() for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()

    def prefill(self, prompt: object, *, agent: str | Agent | None = None, tools: Sequence[Any] = ()) -> Usage:
        """Compute a prefix ahead of need, e.g. a shared system prompt; nothing is generated or logged."""
        log = self._log_of(agent)
        offered = as_tools(tools) or (log.tools if log else ())
        planner = Planner(self._tokenizer(), prompt, log, tools=offered, generation_prompt=False)
        request = self._requests.make(planner, None, Settings(max_tokens=0), Calling())
        if log is not None:
            self._agents.keep(log)
        return self._requests.start(request).result().usage

    def count_tokens(self, prompt: object, *, tools: Sequence[Any] = ()) -> int:
        """Tokens that ``prompt`` would cost through the chat template, the reply's opening included."""
        messages = paired(shapes.normalize(prompt), may_end_open=True)
        return len(prompt_ids(self._tokenizer(), messages, tools=as_tools(tools)))

    def agent(self, name: str, *, system: str | None = None, tools: Sequence[Any] = ()) -> Agent:
        """Open an agent, or create it. Any non-empty str is a name; ``system=None`` keeps what the agent has.

        ``tools`` are stored with the agent and offered in each of its turns; none given keeps those it has. Raises
        ConfigError for an empty name, or when the agent exists with another system prompt or other tools.
        """
        self._tokenizer()
        return Agent(self, self._agents.open(name, system, tools, identity=self._identity))

    def run_tools(
        self,
        agent: str | Agent,
        message: object,
        functions: Sequence[Callable[..., Any]],
        *,
        max_rounds: int = 8,
        sampling: Sampling = Sampling(),
        max_tokens: int = 512,
        timeout_s: float | None = None,
    ) -> Reply:
        """A turn of ``agent`` in which the model may call typed Python ``functions``; they run here, one by one.

        What a call raises, or arguments of the wrong type, goes to the model as an error. Ends with the first reply
        that calls nothing, or after ``max_rounds`` of them with open calls. ``timeout_s``: of each reply.
        """
        if agent is None:
            raise UnsupportedParameterError("run_tools needs an agent, whose log holds the calls")
        return run_rounds(
            partial(self.generate, agent=agent),
            lambda *results, **how: (agent if isinstance(agent, Agent) else self.agent(agent)).give(*results, **how),
            message,
            functions,
            max_rounds,
            dict(sampling=sampling, max_tokens=max_tokens, timeout_s=timeout_s),
        )

    def agents(self) -> list[AgentInfo]:
        """Every agent in the store, newest use first."""
        self._tokenizer()
        return self._agents.infos()

    def delete(self, name: str) -> bool:
        """Delete an agent: log and KV, in all tiers; True when it existed. What others share stays.

        Handles of it are dead then, as ``Agent.delete`` says. Raises RequestError while a turn of it runs.
        """
        self._tokenizer()
        log = self._agents.find(name, identity=self._identity) if isinstance(name, str) else None
        return log is not None and self._agents.delete(log)

    def evict(self, agent: str | None = None, *, to: str = "cold") -> None:
        """Free the memory of one idle agent, or of all idle KV; saved first, where that is worth a write.

        ``to``: "warm" keeps what fits there, encoded; "cold" leaves nothing of it in memory but what others share.
        """
        if to not in ("warm", "cold"):
            raise UnsupportedParameterError(f"to must be 'warm' or 'cold', got {to!r}")
        if to == "warm" and not self._store.warm.is_on:
            raise UnsupportedParameterError("to='warm' needs a warm tier: give Config a warm_bytes above 0")
        if not (agent is None or isinstance(agent, str)):
            raise UnsupportedParameterError(f"agent must be a name or None, got {agent!r}")
        tier: Tier = "warm" if to == "warm" else "cold"
        agent_id = None if agent is None else self._agents.agent_id(agent)
        self.flush()
        self._engine.call(lambda: self._engine.evict(agent, agent_id, to=tier))
        self._store.flush()

    def stats(self) -> Stats:
        """Counters since this Memory was opened, and bytes now."""
        held = self._engine.call(self._engine.memory_figures)
        return self._engine.counters.stats(held, self._store.stats())

    def verify(self) -> VerifyReport:
        """Read and check every stored byte against its checksum, logs included. Minutes for a large store."""
        self.flush()
        return self._store.verify()

    def doctor(self) -> Doctor:
        """What was found on this machine, and what would make it faster."""
        self._tokenizer()
        return checkup.examine(self._runner, self._config)

    def measure_codec(self, name: str, texts: Sequence[str]) -> CodecReport:
        """What codec ``name`` costs on this model and these texts: the first 3/4 of each stands in encoded KV, and what
        the model says of the rest is compared. Others wait while a text is computed, which takes its KV twice.

        Raises UnsupportedParameterError, or PromptTooLongError for a text longer than the model's context.
        """
        self._tokenizer()
        return measure(self._engine, self._runner, self._config.chunk_tokens, name, texts)

    def flush(self) -> None:
        """Return when every finished turn is on disk, fsynced and committed. Raises OutOfSpaceError or StoreError."""
        while not self._engine.call(self._engine.hand_over):
            self._store.wait_ready()
        self._store.flush()

    def close(self) -> None:
        """Fail what still runs with ClosedError, save the rest, free the model; idempotent, and each call waits for it.

        Only on the library's own threads, in a logits processor say, it returns at once: another thread closes.
        """
        self._closed = True
        shut(self._engine, self._store)
        self._finalizer.detach()

    async def aclose(self) -> None:
        """``close()`` without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Memory:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _attach(self) -> None:
        """Tell the store whose KV this is; engine thread, after the model is loaded."""
        identity = identity_of(self._runner.identity, self._config.salt, self._config.chunk_tokens)
        grid = str(self._config.prefill_tokens or self._runner.prefill_tokens)
        facts = {"model": self._model, "grid": grid, **self._runner.identity, **self._runner.choices}
        self._identity = identity
        self._store.attach(identity, self._runner.layout, self._runner.host, facts)

    def _request(self, *asked: Any) -> Request:
        """A request, and its agent where there is none of that name yet."""
        request, log = self._planned(*asked)
        return request if self._keep(request, log) else self._request(*asked)  # it was made meanwhile: from that

    def _keep(self, request: Request, log: Log | None) -> bool:
        """Store the agent of a request where it is a new one; False where it was made meanwhile, with another log."""
        if log is None:
            return True
        is_kept = self._agents.keep(log)
        request.agent_id = log.agent_id
        return is_kept

    def _planned(
        self,
        prompt: object,
        agent: str | Agent | None,
        tools: Sequence[Any],
        tool_choice: str | Mapping[str, str],
        parallel_tool_calls: bool,
        schema: Any,
        template: Mapping[str, Any] | None,
        raw: bool,
        *how: Any,
    ) -> tuple[Request, Log | None]:
        """Raises what is wrong with a request, of which nothing is left then, not even a new agent."""
        settings = self._settings(*how)
        log = self._log_of(agent)
        kept, tokenizer = log.tools if log else (), self._tokenizer()
        grammars = self._requests.grammars
        calling = calling_of(tools, tool_choice, parallel_tool_calls, schema, grammars=grammars, kept=kept, raw=raw)
        planner = Planner(tokenizer, prompt, log, tools=calling.offered, raw=raw, variables=template)
        return self._requests.make(planner, log, settings, calling), log

    def _log_of(self, agent: str | Agent | None) -> Log | None:
        """The log of an agent; a new one, of no agent yet, where there is none of that name."""
        self._tokenizer()
        if not isinstance(agent, Agent):
            return None if agent is None else self._agents.find_or_blank(agent, identity=self._identity)
        if agent._memory is not self:
            raise UnsupportedParameterError(f"{agent!r} is an agent of another Memory; give its name, or ask that one")
        return agent._live

    def _settings(
        self, sampling: Sampling, max_tokens: int, stop: Any, processors: Any, priority: int, timeout_s: float | None
    ) -> Settings:
        check_settings(sampling, max_tokens, priority, timeout_s)
        return Settings(sampling, max_tokens, check_stop(stop), checked(processors), priority, timeout_s)

    def _tokenizer(self) -> Any:
        self._engine.ensure_ours()
        if not self._closed:
            return self._runner.tokenizer
        raise ClosedError("this Memory is closed; open it again")

"""Memory: the facade. It opens the model and the store, owns the engine, and answers plain method calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from agent_memory.agent import Agent, delete, ensure_of, log_of
from agent_memory.config import Config, memory_budgets
from agent_memory.dialects.anthropic import AnthropicMessages
from agent_memory.dialects.openai import OpenAIChat
from agent_memory.errors import UnknownAgentError, UnsupportedParameterError, repr_of
from agent_memory.generation import Generation
from agent_memory.groups.group import Group
from agent_memory.groups.opening import Groups
from agent_memory.groups.phases import Phase, Topology
from agent_memory.log.log import Log
from agent_memory.observe.agents import AgentList
from agent_memory.observe.explain import CacheReport
from agent_memory.observe.lint import LintReport
from agent_memory.observe.observing import Observing
from agent_memory.observe.reports import Reporting, Reports
from agent_memory.progress import bar
from agent_memory.prompt import messages as shapes
from agent_memory.prompt.results import paired
from agent_memory.prompt.template import prompt_ids
from agent_memory.protocols import ModelRunner
from agent_memory.reader.shared import ensure_writable
from agent_memory.requests.asking import Asking
from agent_memory.requests.batching import outcomes, replies, with_agents
from agent_memory.requests.best_of import best_of
from agent_memory.requests.cleaning import cleaned, of_tools
from agent_memory.requests.evicting import evict, expect, flush
from agent_memory.requests.explaining import linted
from agent_memory.requests.opening import Opening, check_config, check_drain, runner_for, store_path, tiers_for
from agent_memory.requests.options import Options, Settings, takes_options, unknown_option
from agent_memory.requests.registry import AgentSpec
from agent_memory.requests.swapping import Models
from agent_memory.requests.tool_loop import ToolRun, ToolTurn
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.resident import Resident
from agent_memory.scheduler.shutting import shut, until_shut
from agent_memory.tools import as_tools
from agent_memory.types import (
    AgentInfo,
    Prompt,
    Recall,
    Reply,
    ToolLike,
    ToolResult,
    Usage,
    VerifyReport,
)

if TYPE_CHECKING:
    from agent_memory.recall.context import ContextMemory
    from agent_memory.recall.episode_types import StepRecorder
    from agent_memory.recall.episodes import EpisodicMemory


class Memory(Reporting):
    """Agents that share one local model and never compute their context twice.

    ``model``: hub id, mlx-lm directory, ``.gguf`` file, ``MLXRunner(model, tokenizer)``, ``EchoRunner()``, or None for
    the starter model. ``path``: the store's folder; None for the user's data folder; ":memory:" for no disk tier.
    Loads the model before it returns. Thread-safe; one process at a time holds a store. ``read_only``: reads one that
    another process may hold, and writes nothing; new KV stays in memory, and what would change the store raises
    ReadOnlyError.

    Raises ConfigError, ModelError, BackendMissingError, StoreLockedError, IncompatibleStoreError or StoreError.
    """

    def __init__(
        self,
        model: str | PathLike[str] | ModelRunner | None = None,
        path: str | PathLike[str] | None = None,
        *,
        config: Config = Config(),
        adapter: str | PathLike[str] | None = None,
        read_only: bool = False,
    ) -> None:
        check_config(config)
        self._config = config
        self._runner = Resident(runner_for(model, config, adapter))
        hot_bytes, warm_bytes = memory_budgets(config)
        self._path = store_path(path)
        self._tiers = tiers_for(self._path, config, warm_bytes, is_read_only=read_only)
        self._store = self._tiers.store
        try:
            observing = Observing(config, self._store.parts.manifest.database.keys)
            self._engine = Engine(self._runner, self._tiers, hot_bytes=hot_bytes, config=config, observer=observing)
            remote = None if self._tiers.exchange is None else self._tiers.exchange.remote
            self._asking = Asking(self._runner, self._store, self._engine, config, observing, self._path, remote)
            self._groups = Groups(self._asking)
            self._models = Models(self._runner, self._tiers, self._engine, self._asking, config)
            self._models.open()
        except BaseException:  # also Ctrl-C: nobody else releases the store's lock
            self._store.close()
            raise
        self._reports = Reports(
            self._runner, self._store, self._engine, observing, config, self._asking, self._models, self._path
        )
        # A Memory that nobody closed saves and ends its threads when it and its agents are collected, or at exit.
        self._finalizer = weakref.finalize(self._asking, shut, self._engine, self._store)

    @classmethod
    def aopen(
        cls,
        model: str | PathLike[str] | ModelRunner | None = None,
        path: str | PathLike[str] | None = None,
        *,
        config: Config = Config(),
        adapter: str | PathLike[str] | None = None,
        read_only: bool = False,
    ) -> Opening[Memory]:
        """Open a Memory without blocking the event loop: ``await`` it, or use it with ``async with``.

        Paths are made absolute, and a wrong model is refused, at once; what else ``Memory`` raises comes when awaited.
        """
        check_config(config)
        folder = store_path(path)
        runner = runner_for(model, config, adapter)
        where = ":memory:" if folder is None else folder
        return Opening(partial(cls, runner, where, config=config, read_only=read_only))

    @property
    def model_name(self) -> str:
        """The model's name, as replies of the two APIs give it."""
        return self._runner.name

    @property
    def path(self) -> Path | None:
        """The store's folder, absolute; None without a disk tier."""
        return self._path

    @property
    def config(self) -> Config:
        """The settings that this Memory was opened with."""
        return self._config

    @property
    def context_tokens(self) -> int | None:
        """The model's context length in tokens; None where the model names none."""
        return self._runner.context_tokens

    @property
    def is_closed(self) -> bool:
        """True after ``close()``, and while it closes."""
        return self._asking.is_closed

    @property
    def messages(self) -> AnthropicMessages:
        """Anthropic's Messages API, in process."""
        return AnthropicMessages(self.stream, self.count_tokens, self._runner.name)

    @property
    def chat(self) -> OpenAIChat:
        """OpenAI's Chat Completions API, in process: ``memory.chat.completions.create``."""
        return OpenAIChat(self.stream, self._runner.name)

    @property
    def context(self) -> ContextMemory:
        """Context memory for all agents of this salt; a file in the store's folder, opened here. Raises StoreError."""
        self._asking.ensure_open()
        return self._asking.longterm.context()

    @property
    def episodes(self) -> EpisodicMemory:
        """Episodes and what they teach, in the same file. Raises StoreError."""
        self._asking.ensure_open()
        return self._asking.longterm.episodes()

    def __repr__(self) -> str:
        return f"Memory({self._runner.name!r}{', closed' if self._asking.is_closed else ''})"

    @takes_options()
    def generate(self, prompt: Prompt, *, agent: str | Agent | None = None, **options: Unpack[Options]) -> Reply:
        """Return the reply to ``prompt``: a str is one user turn, a list of messages a whole history.

        With ``agent``, a str continues that agent's conversation and a list replaces it, reusing what is equal.
        Interrupted (Ctrl-C), the request is cancelled. Raises RequestError's kinds; the agent's log is as before the
        turn after each of them.
        """
        with self._start(prompt, agent, Settings.of(Memory.generate, options)) as handle:
            return handle.result()

    @takes_options()
    def stream(self, prompt: Prompt, *, agent: str | Agent | None = None, **options: Unpack[Options]) -> Generation:
        """Start a request and return its handle: iterate it, await it, cancel it. Bad input raises before any work."""
        return self._start(prompt, agent, Settings.of(Memory.stream, options))

    @overload
    def batch(
        self,
        prompts: Sequence[Prompt],
        *,
        agent: str | Agent | Sequence[str | Agent | None] | None = None,
        return_errors: Literal[False] = False,
        **options: Unpack[Options],
    ) -> list[Reply]: ...
    @overload
    def batch(
        self,
        prompts: Sequence[Prompt],
        *,
        agent: str | Agent | Sequence[str | Agent | None] | None = None,
        return_errors: bool,
        **options: Unpack[Options],
    ) -> list[Reply | BaseException]: ...
    @takes_options()
    def batch(
        self,
        prompts: Sequence[Prompt],
        *,
        agent: str | Agent | Sequence[str | Agent | None] | None = None,
        return_errors: bool = False,
        **options: Unpack[Options],
    ) -> list[Reply] | list[Reply | BaseException]:
        """Return replies to several prompts, decoded together, in order. ``agent``: one for all, or a list.

        The first error cancels the rest and is raised; what is wrong with any prompt raises before work on the first.
        With ``return_errors`` an error stands in its reply's place instead, and ends no other request.
        """
        settings = Settings.of(Memory.batch, options)
        asked = with_agents(prompts, agent)
        if return_errors:
            return outcomes([partial(self._start, prompt, one, settings) for prompt, one in asked])
        return replies(self._asking.start_all([(prompt, self._log_of(one), settings) for prompt, one in asked]))

    def prefill(self, prompt: Prompt, *, agent: str | Agent | None = None, tools: Sequence[ToolLike] = ()) -> Usage:
        """Compute a prefix ahead of need, e.g. a shared system prompt; nothing is generated or logged."""
        return self._asking.prefill(prompt, self._log_of(agent), tools)

    @takes_options()
    def explain(self, prompt: Prompt, *, agent: str | Agent | None = None, **options: Unpack[Options]) -> CacheReport:
        """Explain what a request would reuse now, and why no more; computes and changes nothing.

        Arguments as in ``generate``. Raises UnknownAgentError for a name that no agent has.
        """
        self._asking.ensure_open()
        log = None if agent is None else self._known_log(agent)
        return self._asking.explaining.explain(prompt, log, Settings.of(Memory.explain, options))

    def lint(self, prompts: Sequence[Prompt]) -> LintReport:
        """Find text that makes each of some prompts miss the cache: what differs by itself, such as a clock.

        Give prompts of one kind, as they are sent on several occasions. Compares texts; nothing is computed.
        """
        self._asking.ensure_open()
        return linted(prompts)

    def count_tokens(self, prompt: Prompt, *, tools: Sequence[ToolLike] = ()) -> int:
        """Return how many tokens ``prompt`` costs through the chat template, the reply's opening included."""
        clean = self._asking.longterm.clean
        messages = paired(cleaned(shapes.normalize(prompt), (), clean), may_end_open=True)
        return len(prompt_ids(self._asking.ensure_open(), messages, tools=of_tools(as_tools(tools), clean)))

    def agent(
        self,
        name: str | Agent,
        *,
        system: str | None = None,
        tools: Sequence[ToolLike] = (),
        messages: Prompt | None = None,
        keep_reasoning: bool | None = None,
        recall: bool | Recall | None = None,
    ) -> Agent:
        """Open an agent, or create it. Any non-empty str is a name; ``system=None`` keeps what the agent has.

        ``tools`` are stored with the agent and offered in each of its turns; none given keeps those it has.
        ``messages``: a history for a new agent to begin with; nothing is generated. ``keep_reasoning``: whether earlier
        replies keep their reasoning, for each turn that does not say; stored, and None keeps it. ``recall``: what each
        turn recalls before it, and whether it is remembered; stored likewise, and False ends it. Raises ConfigError for
        an empty name, or when the agent exists with another system prompt, other tools or another history.
        """
        tokenizer = self._asking.ensure_open()
        name = self._name_of(name)
        clean, identity = self._asking.longterm.clean, self._asking.identity
        spec = AgentSpec.of(system, tools, messages, keep_reasoning, recall, clean)
        return Agent(self._asking, self._asking.agents.open(name, spec, identity=identity, tokenizer=tokenizer.digest))

    def import_agent(
        self,
        file: str | PathLike[str],
        name: str | None = None,
        *,
        key: bytes | Callable[[], bytes] | None = None,
    ) -> Agent:
        """Store the agent of a file that ``agent.export`` wrote, in one commit, and return it. ``name``: another name.

        The whole file is checked before the store is touched; chunks that are stored are not written again. Under
        another model its KV is left out: the first turn computes the conversation anew (``usage.miss``
        "other_model"). ``key``: of a sealed file. Raises AgentFileError, WrongKeyError, StoreError,
        OutOfSpaceError, ConfigError where the name is taken.
        """
        self._asking.ensure_open()
        return Agent(self._asking, self._asking.moving.take_in(file, name, key))

    def publish(self, agent: str | Agent) -> int:
        """Publish an agent's turns that are not on the remote yet; return how many are there now. Needs Config.remote.

        When it returns, any host with the same ``remote`` and ``remote_key`` can take the agent over with `fetch_agent`
        and has every one of these turns. One create on the remote; flushes first. Raises AgentMovedError where another
        host took the agent or published that turn first, RemoteError, ConfigError, UnknownAgentError.
        """
        self._asking.ensure_open()
        return self._asking.publishing.publish(self._known_log(agent))

    def fetch_agent(self, name: str) -> Agent:
        """Take an agent over from the host that published it last, and return it. Needs Config.remote.

        From here on this store alone may publish it: the other host's next `publish` raises AgentMovedError. Turns of
        this store that were never published stay: as they are, or as a version where others were published instead. Its
        KV comes from the remote too, where it is there, or is computed at the next turn. Raises UnknownAgentError,
        RemoteError, ConfigError, RequestError while a turn of it runs here.
        """
        self._asking.ensure_open()
        return Agent(self._asking, self._asking.publishing.fetch(name))

    @takes_options()
    def best_of(
        self, agent: str | Agent, message: Prompt, n: int, key: Callable[[Reply], Any], **options: Unpack[Options]
    ) -> Reply:
        """Draw ``n`` replies at once, with the seeds ``seed + i``, and keep the one that ``key`` is largest for.

        The prompt is computed once. That reply's turn is the agent's; the others leave nothing. Raises ConfigError for
        greedy sampling with ``n`` above 1, UnknownAgentError, StaleVersionError where the agent went on meanwhile.
        """
        settings = Settings.of(Memory.best_of, options)
        return best_of(self._asking, self._known_log(agent), message, n, key, settings)

    def group(
        self,
        name: str,
        members: Sequence[str | Agent] = (),
        *,
        topology: Topology | None = None,
        phases: Sequence[Phase] = (),
    ) -> Group:
        """Open a conversation of several agents, or make it. Each takes part as a fork of its own.

        ``members``: agents that exist, in the order in which they speak; needed for a new group. ``topology``: "round"
        (the default: all at once, on the same state), "turns" (one after another) or "free". ``phases``: parts of the
        conversation. Raises ConfigError where the group is another one, UnknownAgentError.
        """
        ensure_writable(self._store, "open a group")
        return self._groups.open(name, members, topology, phases)

    @takes_options(without=["tools"])
    def run_tools(
        self,
        agent: str | Agent,
        message: Prompt | None = None,
        functions: Sequence[Callable[..., Any]] = (),
        *,
        results: Sequence[ToolResult] = (),
        max_rounds: int = 8,
        tool_timeout_s: float | None = None,
        concurrent: bool = False,
        episode: StepRecorder | None = None,
        **options: Unpack[Options],
    ) -> Reply:
        """Run a turn of ``agent`` in which the model may call typed Python ``functions``, async ones too.

        What a call raises, or arguments of the wrong type, goes to the model as an error. Ends with the first reply
        that calls nothing, after ``max_rounds`` of them with open calls, or where a function raises ``Pause``: then
        ``Reply.paused`` is set. Without a message the open calls go on: with ``results``, and by running the others.
        ``tool_timeout_s``: of a call, which is given up then. ``concurrent``: the calls of a reply run side by side.
        ``episode``: records each call as a step (``memory.episodes.start``); what it raises ends the turn.
        """
        if "tools" in options:
            raise unknown_option(Memory.run_tools, "tools")
        settings = Settings.of(Memory.run_tools, options)
        asked = ToolRun(
            functions=functions, max_rounds=max_rounds, tool_timeout_s=tool_timeout_s, concurrent=concurrent,
            episode=episode,
        )  # fmt: skip
        return ToolTurn(self._asking, partial(self._log_of, agent), asked, settings).run(message, results)

    def agents(self) -> list[AgentInfo]:
        """Return every agent in the store, newest use first."""
        return AgentList(self._asking.infos())

    def delete(self, name: str | Agent) -> bool:
        """Delete an agent: log and KV, in all tiers; True if it existed. What others share stays.

        Handles of it are dead then, as ``Agent.delete`` says. Raises RequestError while a turn of it runs.
        """
        self._asking.ensure_open()
        if isinstance(name, Agent):
            ensure_of(name, self._asking)
            return name.delete()
        log = self._asking.agents.find(name, identity=self._asking.identity) if isinstance(name, str) else None
        return log is not None and delete(self._asking, log)

    def evict(self, agent: str | Agent | None = None, *, to: Literal["warm", "cold"] = "cold") -> None:
        """Free the memory of one idle agent, or of all idle KV; saved first, where that is worth a write.

        ``to``: "warm" keeps what fits there, encoded; "cold" leaves nothing of it in memory but what others share.
        Raises UnknownAgentError.
        """
        if not (agent is None or isinstance(agent, (str, Agent))):
            raise UnsupportedParameterError(f"agent must be a name, an Agent or None, got {repr_of(agent)}")
        self._asking.ensure_open()
        evict(self._engine, self._tiers, None if agent is None else self._known_log(agent), to=to)

    def expect(self, agents: Sequence[str | Agent]) -> None:
        """Say whose turns come next, in order: their KV stays in hot, or is restored there while others decode.

        Replaces what was said before; an empty list ends it. Each turn takes its agent, and those before it, off the
        list; turns of others do not count, but a list that they overtake is dropped. Returns at once: nothing waits for
        a restore, and a wrong list costs no reply. Does nothing with ``Config(foresight="off")``. Raises
        UnknownAgentError.
        """
        if isinstance(agents, str) or not isinstance(agents, Sequence):
            raise UnsupportedParameterError(f"agents must be a list of names or Agents, got {repr_of(agents)}")
        tokenizer = self._asking.ensure_open()
        expect(self._engine, tokenizer, [self._known_log(agent) for agent in agents])

    def swap_model(
        self,
        model: str | PathLike[str] | ModelRunner | None,
        *,
        adapter: str | PathLike[str] | None = None,
        drain: bool = True,
    ) -> None:
        """Load another model in place of this one, which is freed first; agents keep their logs, and their KV of each.

        Requests in work end first; with ``drain=False`` they are cancelled. Requests made meanwhile wait. If the new
        model cannot be loaded, the old one is loaded again and the error is raised. Blocks; seconds for a large model.
        Raises ConfigError, ModelError or BackendMissingError; RequestError on the library's own threads.
        """
        self._models.swap(runner_for(model, self._config, adapter), drain=drain)

    def verify(self) -> VerifyReport:
        """Read and check every stored byte against its checksum, logs included. Minutes for a large store."""
        self.flush()
        with bar(self._config.progress, "verify", "files") as report:
            return self._store.verify(report)

    def flush(self) -> None:
        """Return when every finished turn is on disk, fsynced and committed. Raises OutOfSpaceError or StoreError."""
        flush(self._engine, self._store)

    def rekey(self, new_key: bytes | Callable[[], bytes]) -> None:
        """Put the open, encrypted store under another key: ``new_key`` opens it from now on, the former one does not.

        Agents go on meanwhile. The store's own key stays and is wrapped anew, in one small file: whoever kept the
        former key and a copy of the former ``wrapped.key`` can still read. `agent_memory.rekey` on the closed store
        writes it anew. Killed meanwhile, one of the two keys opens the store. Raises ConfigError for a bad key,
        WrongKeyError where the store is not encrypted, StoreError, OutOfSpaceError.
        """
        from agent_memory.requests.rekeying import rekey_open

        self._asking.ensure_open()
        rekey_open(self._store, new_key)

    def close(self, drain_s: float = 0.0) -> None:
        """Let requests end for up to ``drain_s``, fail the rest with ClosedError, save, free the model; idempotent.

        Each call waits for it, but not on the library's own threads. Ctrl-C, or a plain ``close()``, ends the draining.
        """
        check_drain(drain_s)
        self._asking.is_closed = True
        shut(self._engine, self._store, drain_s)
        self._asking.longterm.close()
        self._finalizer.detach()

    async def aclose(self, drain_s: float = 0.0) -> None:
        """``close()`` without blocking the event loop; cancelled, it ends the draining and closes behind."""
        await until_shut(self._engine, partial(self.close, drain_s))

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

    def _name_of(self, agent: str | Agent) -> str:
        """The name of an agent, which may be given by it. Raises as ``log_of`` does for an Agent."""
        if isinstance(agent, Agent):
            log_of(agent, self._asking)
            return agent.name
        return agent

    def _known_log(self, agent: str | Agent) -> Log:
        """The log of an agent that exists. Raises UnknownAgentError."""
        name = self._name_of(agent)
        log = self._asking.agents.find(name, identity=self._asking.identity) if isinstance(name, str) else None
        if log is None:
            raise UnknownAgentError(name)
        return log

    def _start(self, prompt: Prompt, agent: str | Agent | None, settings: Settings) -> Generation:
        return self._asking.start(prompt, self._log_of(agent), settings)

    def _log_of(self, agent: str | Agent | None) -> Log | None:
        return log_of(agent, self._asking)

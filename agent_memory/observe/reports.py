"""What a Memory says of itself: ``stats``, ``health``, the metrics, the trace, ``doctor`` and ``measure_codec``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from agent_memory.config import Config, auto_budget, memory_budgets
from agent_memory.errors import RequestError, UnsupportedParameterError, repr_of
from agent_memory.figures import Doctor, Health, Stats
from agent_memory.observe import doctor as checkup
from agent_memory.observe.choices import Circumstances
from agent_memory.observe.codec_choice import CodecChoice, choose
from agent_memory.observe.codec_quality import CodecReport, checked_texts, measure
from agent_memory.observe.fit import MOST_TOKENS, Fit, fit
from agent_memory.observe.meters import Tap
from agent_memory.observe.metrics import AgentFigures, Figures
from agent_memory.observe.observing import Observing
from agent_memory.observe.own_texts import own_ids
from agent_memory.observe.plot import Plot, draw, usages
from agent_memory.observe.prometheus import exposition
from agent_memory.observe.trace import Trace, trace_of
from agent_memory.observe.tuning import Tuning, tune
from agent_memory.progress import bar
from agent_memory.protocols import ModelRunner
from agent_memory.reader.shared import ensure_writable
from agent_memory.scheduler.engine import Engine
from agent_memory.store.store import Store
from agent_memory.views.page import Note, Page, Shown, Table
from agent_memory.views.units import count

#: Agents that ``to_prometheus`` shows by name, unless asked for others.
TOP_AGENTS = 10


class _LongTerm(Protocol):
    n_failed: int


class _Models(Protocol):
    @property
    def recorded(self) -> Mapping[str, str]: ...


class _Asking(Protocol):
    is_closed: bool
    n_tools_abandoned: int

    @property
    def identity(self) -> str: ...
    @property
    def longterm(self) -> _LongTerm: ...
    def ensure_open(self) -> Any: ...


class Reports:
    """Reads the state of one Memory. Any thread; changes nothing.

    ``models``: knows what the store had recorded of the model before it was opened.
    """

    def __init__(
        self,
        runner: ModelRunner,
        store: Store,
        engine: Engine,
        observing: Observing,
        config: Config,
        asking: _Asking,
        models: _Models,
        path: Path | None,
    ) -> None:
        self.runner, self.engine, self.observing, self.config = runner, engine, observing, config
        self._store, self._asking, self._models = store, asking, models
        self.ensure_open, self.path = asking.ensure_open, path

    def _stored(self) -> dict[str, Any]:
        asked = {"remember_failures": self._asking.longterm.n_failed, "tools_abandoned": self._asking.n_tools_abandoned}
        return {**self._store.stats(), **asked}

    def stats(self) -> Stats:
        """Waits until the engine is between two steps. Raises ClosedError."""
        counted = self.engine.stats(self._stored)
        hot_bytes, warm_bytes = memory_budgets(self.config)
        meters, hook, recorder = self.observing.meters, self.observing.hook, self.observing.recorder
        return attrs.evolve(
            counted,
            ended=meters.by_state(),
            times=meters.times(),
            faults=meters.faults,
            budgets={"hot": hot_bytes, "warm": warm_bytes, **counted.budgets},
            hook_failures=0 if hook is None else hook.n_failed,
            recorder_failures=0 if recorder is None else recorder.n_failed,
        )

    def health(self) -> Health:
        """Never waits: neither for the engine nor for the disk."""
        pulse, fault, disk = self.engine.pulse, self.observing.fault, self._store.health.state
        reasons = []
        if self._asking.is_closed:
            reasons.append("this Memory is closed, or is closing; open it again")
        elif not pulse.is_live:
            reasons.append("the engine's thread does not run in this process; open another Memory")
        if fault is not None:
            kind, at = fault
            ago = time.perf_counter() - at
            reasons.append(f"the engine faulted {ago:,.0f} s ago ({kind}), and no request has been answered since")
        if pulse.lacks_bytes:
            hot_bytes, _ = memory_budgets(self.config)
            reasons.append(
                f"no bytes: {pulse.n_waiting} requests wait, {pulse.n_running} run, and what the next one may need is "
                f"not free of {hot_bytes:,} bytes. Raise Config.hot_bytes, or lower max_tokens"
            )
        if disk != "ok":
            reasons.append(f"the disk is {disk}: replies go on, new KV stays in memory, logs wait to be written")
        return Health(
            live=pulse.is_live,
            ready=pulse.is_live and not reasons,
            reasons=tuple(reasons),
            started_s=self.observing.started_s,
        )

    def figures(self, n_agents: int, *, hash_names: bool) -> Figures:
        """All figures of this moment, with those of the agents that had most tokens computed."""
        shown = self.observing.meters.agents(n_agents)
        agents: Mapping[str, AgentFigures] = (
            {self._pseudonym(name): sums for name, sums in shown.items()} if hash_names else shown
        )
        return Figures(stats=self.stats(), health=self.health(), agents=agents)

    def tap(self) -> Tap:
        """Values of histograms from now on."""
        return self.observing.meters.tap()

    def trace(self) -> Trace:
        """The ring as a trace."""
        entries, now = self.observing.ring.entries(), time.perf_counter()
        return trace_of(entries, title=f"agent_memory {self.runner.name}", zero=self.observing.zero, now=now)

    def doctor(self, *, explain: bool) -> Doctor:
        """What was found, what was chosen."""
        disk_bytes, recorded = self._store.stats()["disk_budget_bytes"], self._models.recorded
        wanted = self.config.cold_codec
        codec = wanted if auto_budget(wanted) is None else self._store.codec
        at = Circumstances(
            runner=self.runner,
            config=self.config,
            recorded=recorded,
            disk_bytes=disk_bytes,
            remote=self.engine.pulse.remote,
            cold_codec=codec,
        )
        return checkup.examine(at, explain=explain)

    def choose_codec(self, kl: object, texts: Sequence[str] | None) -> CodecChoice:
        """Choose, and record what was chosen."""
        ensure_writable(self._store, "record a codec")
        identity, tokenizer = self._asking.identity, self.runner.tokenizer
        if texts is None:
            ids = own_ids(self._store, self.config.salt, tokenizer.digest)
        else:
            ids = [tokenizer.encode(text, bos=True) for text in checked_texts(texts)]
        with bar(self.config.progress, "choose", "tensors") as report:
            found = choose(self.engine, self.runner, self.config.chunk_tokens, kl, ids, report)

        def record() -> None:
            if self._asking.identity != identity:
                raise RequestError("the model was swapped while its KV was measured: nothing was recorded; call again")
            self._store.choose_codec(identity, found.setting, found.codec)

        self.engine.call(record)
        return found

    def tune(self, n_tokens: object) -> Tuning:
        """Measure this machine."""
        with bar(self.config.progress, "tune", "parts") as report:
            return tune(self.engine, self.runner, self.config, n_tokens, report)

    def fit(self, n_agents: int, n_tokens: int) -> Fit:
        """How many agents fit."""
        disk_bytes = self._store.stats()["disk_budget_bytes"] if self._store.has_disk else None
        return fit(self.runner, self.config, disk_bytes, n_agents, n_tokens)

    def plot(self) -> Plot:
        """The newest replies and the tiers, drawn."""
        stats = self.stats()
        tiers = {"hot": stats.hot_bytes, "warm": stats.warm_bytes, "cold": stats.disk_bytes}
        return draw(f"Memory of {self.runner.name}", usages(self.observing.ring.entries(), None), tiers)

    def page(self) -> Page:
        """The Memory at a glance."""
        where = "in memory alone" if self.path is None else str(self.path)
        if self._asking.is_closed:
            return Page(f"Memory of {self.runner.name}, closed", [Note(where)])
        stats = self.stats()
        rows = [
            ("agents", f"{stats.agents:,}"),
            ("requests", f"{stats.requests:,}"),
            ("reused", f"{stats.cached_tokens:,} of {count(stats.prompt_tokens, 'prompt token')}"),
            *(("now", f"{n:,} {what}") for n, what in ((stats.running, "run"), (stats.waiting, "wait")) if n),
        ]
        health = [Note(reason) for reason in self.health().reasons]
        return Page(f"Memory of {self.runner.name}", [Note(where), *health, *stats.tiers, Table(rows)])

    def _pseudonym(self, name: str) -> str:
        """The same for a name and a salt in every process; whoever does not know the salt cannot test a guess."""
        key = hashlib.blake2b(self.config.salt.encode(errors="surrogatepass")).digest()
        return hashlib.blake2b(name.encode(), key=key, digest_size=8).hexdigest()


class Reporting(Shown):
    """What a Memory says of itself; ``Memory`` has these methods."""

    _reports: Reports

    def _page(self) -> Page:
        return self._reports.page()

    def stats(self) -> Stats:
        """Return counters since this Memory was opened, and bytes now. Raises ClosedError."""
        return self._reports.stats()

    def health(self) -> Health:
        """Return whether this Memory serves, and why not. Never waits or raises; also after ``close()``."""
        return self._reports.health()

    def to_prometheus(self, *, top_agents: int = TOP_AGENTS, hash_names: bool = False) -> str:
        """Return every metric in Prometheus' text format; docs/operations.md lists them.

        ``top_agents``: so many agents are shown by name, those with most computed tokens. ``hash_names``: under a
        pseudonym. Raises ClosedError or UnsupportedParameterError.
        """
        if not isinstance(top_agents, int) or isinstance(top_agents, bool) or top_agents < 0:
            raise UnsupportedParameterError(f"top_agents must be an int of 0 or more, got {repr_of(top_agents)}")
        return exposition(self._reports.figures(top_agents, hash_names=hash_names))

    def to_opentelemetry(
        self, meter_provider: Any = None, *, top_agents: int = TOP_AGENTS, hash_names: bool = False
    ) -> None:
        """Give every metric to a meter provider of OpenTelemetry; None: the process's own. Needs the extra ``otel``.

        Its readers collect them until this Memory is closed. Raises MissingExtraError.
        """
        from agent_memory.observe.otel import bridge

        bridge(self._reports, meter_provider, top_agents, hash_names=hash_names)

    def trace(self) -> Trace:
        """Return what the engine did lately, for ui.perfetto.dev: ``memory.trace().save("trace.json")``."""
        return self._reports.trace()

    def plot(self) -> Plot:
        """Draw the newest replies (time to the first token, tokens by origin) and the tiers' bytes. Needs ``[plot]``.

        Raises ClosedError or MissingExtraError.
        """
        self._reports.ensure_open()
        return self._reports.plot()

    def doctor(self, *, explain: bool = False) -> Doctor:
        """Return what was found on this machine, what was chosen and where from, and what would make it faster.

        ``explain``: its text says of each choice why, and what would change it. Raises ClosedError.
        """
        self._reports.ensure_open()
        return self._reports.doctor(explain=explain)

    def fit(self, n_agents: int, n_tokens: int) -> Fit:
        """Predict the bytes that agents of ``n_tokens`` each take in every tier, and how many of them fit.

        Computes nothing with the model. Raises ClosedError or UnsupportedParameterError.
        """
        for name, value in (("n_agents", n_agents), ("n_tokens", n_tokens)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UnsupportedParameterError(f"{name} must be an int of 1 or more, got {repr_of(value)}")
        if n_tokens > MOST_TOKENS:
            raise UnsupportedParameterError(f"n_tokens must be at most {MOST_TOKENS:,}, got {repr_of(n_tokens)}")
        self._reports.ensure_open()
        return self._reports.fit(n_agents, n_tokens)

    def measure_codec(self, name: str, texts: Sequence[str]) -> CodecReport:
        """What codec ``name`` costs on this model and these texts: the first 3/4 of each stands in encoded KV, and what
        the model says of the rest is compared. Others wait while a text is computed, which takes its KV twice.

        Raises UnsupportedParameterError, or PromptTooLongError for a text longer than the model's context.
        """
        reports = self._reports
        reports.ensure_open()
        with bar(reports.config.progress, "measure", "texts") as report:
            return measure(reports.engine, reports.runner, reports.config.chunk_tokens, name, texts, report)

    def choose_codec(self, kl: float = 0.002, texts: Sequence[str] | None = None) -> CodecChoice:
        """Choose the bits of each layer's keys and values that divide KV by most within a budget of KL to exact.

        ``kl``: nats a token, a mean over ``texts``. Give texts like your prompts, as long as they are; None: those of
        this store's agents, the longest first. Half of the text is kept to check the choice. What was chosen is
        recorded in the store: ``Config(cold_codec="auto:0.002")`` encodes new KV so from now on, in every process.

        Feeds 256 tokens once for each layer's keys and once for its values, up to twice; others wait for one such step
        at a time. Raises UnsupportedParameterError, ReadOnlyError or ClosedError.
        """
        self._reports.ensure_open()
        return self._reports.choose_codec(kl, texts)

    def tune(self, *, n_tokens: int | None = None) -> Tuning:
        """Measure prefill steps, batch widths, codecs and BLAS threads; return a ``Config`` with the best settings.

        ``n_tokens``: the prompt that prefill steps are timed on, and so the longest step that is tried; None: 1024 on a
        CPU, 4096 on a GPU. Where OpenBLAS multiplies, a process for each number of threads loads the model once more;
        ``tuning.environment`` has the variable to set. Changes nothing: open the next Memory with ``tuning.config``.
        Takes a dozen such prefills and four more a process; requests go on meanwhile, and disturb what is measured.
        Raises UnsupportedParameterError or ClosedError.
        """
        self._reports.ensure_open()
        return self._reports.tune(n_tokens)

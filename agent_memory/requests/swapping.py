"""``Memory.swap_model``: another model in place of the one that is loaded."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from attrs import frozen

from agent_memory.config import Config
from agent_memory.errors import ConfigError, RequestError, UnsupportedParameterError, repr_of
from agent_memory.kvcache.coding import is_for
from agent_memory.prefix.chunks import identity_of
from agent_memory.progress import bar
from agent_memory.protocols import ModelRunner
from agent_memory.requests.asking import Asking
from agent_memory.scheduler.engine import Engine
from agent_memory.scheduler.resident import Resident
from agent_memory.tiers.tiers import Tiers


@frozen
class _Model:
    """A runner, the name under which the store knows it, and what the store recorded of it."""

    runner: ModelRunner
    name: str
    recorded: Mapping[str, str]


class Models:
    """The model of one Memory: opens it, and puts another one in its place. Any thread but the engine's."""

    def __init__(self, resident: Resident, tiers: Tiers, engine: Engine, asking: Asking, config: Config) -> None:
        self._resident, self._tiers, self._engine = resident, tiers, engine
        self._asking, self._config = asking, config
        self._model = self._described(resident.current)

    @property
    def recorded(self) -> Mapping[str, str]:
        """What the store knew of the model before it was opened."""
        return self._model.recorded

    def open(self) -> None:
        """Load the model on the engine thread. Raises what loading raises, and StoreError."""
        self._engine.open(self._model.recorded, lambda: self._attach(self._model))

    def swap(self, runner: ModelRunner, *, drain: object) -> None:
        """Free the model and load that of ``runner``. If that fails, load the old one again, and raise the failure.

        ``drain``: requests in work end first; False: they are cancelled. Requests that are made meanwhile wait.
        """
        if not isinstance(drain, bool):
            raise UnsupportedParameterError(f"drain must be a bool, got {repr_of(drain)}")
        self._asking.ensure_open()
        if threading.current_thread().name.startswith("agent_memory-"):
            raise RequestError("swap_model waits for all requests, so no thread of the library may call it")
        with self._asking.gate.closed():
            if not drain:
                self._engine.call(self._engine.cancel_all)
            self._engine.call_idle(lambda: self._swap(self._described(runner)))

    def _swap(self, new: _Model) -> None:
        """Engine thread, while no request waits or runs."""
        self._asking.ensure_open()  # no model is loaded for a Memory that was closed while this waited
        old, self._model = self._model, new
        try:
            self._engine.swap(new.runner, new.recorded, lambda: self._attach(self._model))
        except BaseException:  # whatever the new model raises: the old one comes back
            self._model = old
            self._engine.reload(old.runner, old.recorded, lambda: self._attach(self._model))
            raise

    def _described(self, runner: ModelRunner) -> _Model:
        return _Model(runner, runner.name, self._tiers.store.recorded(runner.name))

    def _attach(self, model: _Model) -> None:
        """Tell the store and the agents whose KV this is; engine thread, after the model is loaded."""
        runner, config = self._resident, self._config
        for name in ("cold_codec", "warm_codec"):
            if not is_for(runner.layout, codec := getattr(config, name)):
                raise ConfigError(
                    f"{name} {codec!r} was chosen for a model with another number of layers than {model.name}: let "
                    "memory.choose_codec() find one for this model, or give 'auto:0.002'"
                )
        identity = identity_of(runner.identity, config.salt, config.chunk_tokens)
        grid = str(config.prefill_tokens or runner.prefill_tokens)
        facts = {"model": model.name, "grid": grid, **runner.identity, **runner.choices}
        self._tiers.store.costs.forget()
        with bar(config.progress, "open the store", "files") as report:
            self._tiers.attach(identity, runner.layout, runner.host, facts, report)
        self._asking.take_model(identity)

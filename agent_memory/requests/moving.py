"""Agents that move: out of a store into a file, and from a file into a store, under the same model or another one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any

import attrs
import numpy as np

from agent_memory.carry.agent_file import AgentFileReader
from agent_memory.carry.carrier import Carrier
from agent_memory.carry.exporting import Recoding
from agent_memory.carry.incoming import Model
from agent_memory.config import CODECS, Codec, as_path, is_codec
from agent_memory.errors import UnsupportedParameterError, repr_of
from agent_memory.kvcache.coding import Coding, fitted, is_for
from agent_memory.log.carried import Terms
from agent_memory.log.log import Log
from agent_memory.progress import bar
from agent_memory.protocols import ModelRunner
from agent_memory.reader.shared import ensure_writable
from agent_memory.requests.cleaning import of_tools, without_secrets
from agent_memory.requests.evicting import flush
from agent_memory.requests.registry import Agents
from agent_memory.scheduler.engine import Engine
from agent_memory.sealing.keys import Keys, Secret, keys_of
from agent_memory.store.store import Store
from agent_memory.tools import from_json, to_json
from agent_memory.types import Message

log = logging.getLogger("agent_memory.requests")


class Moving:
    """Writes agents to files, and takes agents in from files. Any thread; the engine goes on meanwhile.

    - What is written is the agent as of its last finished turn: everything is flushed before.
    - A file is read and checked to its end before the store is touched.
    - KV of another model, tenant's chunks included, is never used: ids of chunks are computed from the tokens.
    """

    def __init__(
        self,
        agents: Agents,
        store: Store,
        engine: Engine,
        runner: ModelRunner,
        clean: Callable[[str], str] | None,
        progress: bool | None = None,
    ) -> None:
        self._progress = progress
        self._agents, self._store, self._engine, self._runner, self._clean = agents, store, engine, runner, clean
        self._carrier = Carrier(store)

    def export(
        self, agent: Log, file: str | PathLike[str], *, codec: Codec | None, is_log_only: bool, key: Secret | None
    ) -> None:
        """Write an agent to a file. ``codec``: exact KV is encoded so; None: KV is written as it is stored.

        ``key``: what the file is sealed under; None: it is plain.
        """
        if codec is not None and not (is_codec(codec) and is_for(self._runner.layout, codec)):
            names = f"{', '.join(CODECS)}, a name that choose_codec gave for this model"
            raise UnsupportedParameterError(f"codec must be one of {names} or None, got {repr_of(codec)}")
        if agent.is_temporary:
            raise UnsupportedParameterError(
                f"agent {repr_of(agent.name)} is temporary and nothing of it is stored: export a fork of it"
            )
        path, seal = as_path(file, "file"), seal_of(key)
        flush(self._engine, self._store)
        recoding = None
        if codec is not None and codec != "exact":
            recoding = Recoding(fitted(self._runner.layout, codec), self._encode)
        with bar(self._progress, "export", "MiB") as report:
            n_lost = self._carrier.export(
                self._agents.salt, agent.name, path, recoding=recoding, is_log_only=is_log_only, report=report,
                seal=seal,
            )  # fmt: skip
        if n_lost:
            log.warning(
                "agent %r was exported without %d files of its KV, which are damaged or follow damaged ones",
                agent.name,
                n_lost,
            )

    def _encode(self, rows: np.ndarray[Any, Any], form: Coding, dtype: str) -> np.ndarray[Any, Any]:
        """Encode rows of one tensor on the engine thread, between two of its ticks."""
        encode = getattr(self._runner, "encode", None)
        if encode is None:
            raise UnsupportedParameterError("codec= needs a runner that encodes; this model's has no method encode")
        encoded: np.ndarray[Any, Any] = self._engine.call(lambda: encode(rows, form, dtype))
        return encoded

    def take_in(self, file: str | PathLike[str], name: str | None, key: Secret | None = None) -> Log:
        """Store the agent of a file, and return its log. Raises ConfigError if the name is taken, ReadOnlyError.

        ``key``: what the file is sealed under. Raises WrongKeyError too.
        """
        ensure_writable(self._store, "take in an agent")
        path, seal = as_path(file, "file"), seal_of(key)
        terms = self.terms()
        model = Model(
            digests=self._runner.identity,
            identity=self._agents.identity,
            layout=self._runner.layout,
            chunk_tokens=self._store.chunk_tokens,
            n_vocab=terms.n_vocab,
        )
        with AgentFileReader(path, seal) as reader, bar(self._progress, "import", "MiB") as report:
            found = self._carrier.read(reader, terms, model, report)
            taken = found.agent["name"] if name is None else name
            self._agents.ensure_free(taken)
            has_kv = self._carrier.take_in(reader, found, terms, self._agents.salt, taken, report)
        is_foreign = bool(found.turns) and not found.n_tokens and bool(found.n_remade or found.n_foreign)
        if found.n_remade or found.n_foreign or not has_kv:
            log.info(
                "agent %r came with kv_tokens=%d; KV of other models tokens=%d and ids of turns=%d are made anew",
                taken, found.n_tokens if has_kv else 0, found.n_foreign, found.n_remade,
            )  # fmt: skip
        return self._agents.arrived(taken, is_foreign=is_foreign)

    def terms(self) -> Terms:
        """Return under which terms a log is taken in now."""
        n_vocab: Any = getattr(self._runner, "n_vocab", None)  # a runner of the host may have none
        digest, clean = self._runner.tokenizer.digest, self._clean
        if clean is None:
            return Terms(tokenizer=digest, n_vocab=n_vocab)
        return Terms(
            tokenizer=digest,
            n_vocab=n_vocab,
            message=partial(_without_secrets, clean=clean),
            text=clean,
            tools=lambda text: to_json(of_tools(from_json(text), clean)),
        )


def seal_of(key: Secret | None) -> Keys | None:
    """Return what an agent's file is sealed under; None: it is plain. Raises ConfigError, and what ``key`` raises."""
    return None if key is None else keys_of(key, "key")


def _without_secrets(message: Message, clean: Callable[[str], str]) -> Message:
    """Return a message without secrets, replies and cards too: here nothing depends on a reply's own spelling yet."""
    cards = tuple(attrs.evolve(card, text=clean(card.text)) for card in message.recalled)
    found = attrs.evolve(without_secrets(message, clean), recalled=cards)
    is_same = found == message and clean(message.source) == message.source
    return found if is_same else attrs.evolve(found, source="")

"""The agents of one store that are open here: each log once, whoever asks for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from agent_memory.agent import Log
from agent_memory.config import is_text
from agent_memory.errors import ConfigError
from agent_memory.prompt import messages as shapes
from agent_memory.store.store import Store
from agent_memory.tools import as_tools, to_json
from agent_memory.types import AgentInfo, Message


class Agents:
    """Logs by name, of one salt. Any thread."""

    def __init__(self, store: Store, salt: str) -> None:
        self._store, self._salt = store, salt
        self._logs: dict[str, Log] = {}
        self._lock = threading.Lock()

    def open(self, name: str, system: str | None, tools: Sequence[Any], *, identity: str) -> Log:
        """The log of an agent, loaded or created. Raises ConfigError where it has another system prompt or tools.

        ``identity``: of the model that is open.
        """
        given = as_tools(tools)
        if not name or not is_text(name):
            raise ConfigError(f"an agent's name must be a non-empty str of valid Unicode, got {name!r}")
        if system is not None:
            (checked,) = shapes.normalize([Message("system", system)])
            system = checked.content
        with self._lock:
            log = self._logs.get(name)
            if log is None:
                record = self._store.load_agent(self._salt, name)
                if record is None:
                    record = self._store.create_agent(self._salt, name, system=system, tools=to_json(given))
                stored = self._store.lineage_identities(record.agent_id)
                log = self._logs[name] = Log(record, is_foreign=bool(stored) and identity not in stored)
        if system is not None and log.system != system:
            raise ConfigError(
                f"agent {name!r} exists with another system prompt ({len(log.system or '')} characters; given "
                f"{len(system)}). Open it without system=, or use another name, or delete it first"
            )
        if given and log.tools != given:
            raise ConfigError(
                f"agent {name!r} exists with other tools ({[tool.name for tool in log.tools]}; given "
                f"{[tool.name for tool in given]}). Open it without tools=, or give them with each turn"
            )
        return log

    def agent_id(self, name: str) -> int | None:
        """The number of an agent that was opened here."""
        with self._lock:
            log = self._logs.get(name)
        return None if log is None else log.agent_id

    def infos(self) -> list[AgentInfo]:
        """Every agent in the store, newest use first."""
        listed = {info.name: info for info in self._store.list_agents(self._salt)}
        with self._lock:
            listed.update({name: log.info for name, log in self._logs.items()})
        return sorted(listed.values(), key=lambda info: -info.used_s)

    def forget(self, name: str) -> None:
        """One that was deleted."""
        with self._lock:
            self._logs.pop(name, None)

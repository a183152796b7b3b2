"""Every error this library raises, as one tree.

    AgentMemoryError
     ├ ConfigError (ValueError)          a setting or an argument of a constructor is wrong
     ├ ClosedError (RuntimeError)        used after close(), or in a forked child
     ├ BackendMissingError (ImportError) no MLX backend is installed
     ├ MissingExtraError (ImportError)   an optional dependency is needed
     ├ ModelError
     │  ├ ModelNotFoundError             no such directory, file or hub id
     │  ├ UnsupportedModelError          found, but of a kind this version cannot run
     │  └ DamagedModelError              found, but truncated or corrupt
     ├ RequestError
     │  ├ PromptTooLongError             n_tokens, limit
     │  ├ UnsupportedParameterError      name, reason (ValueError)
     │  ├ AgentDeletedError              the agent was deleted (LookupError)
     │  ├ HistoryDivergedError           the list is another history than the agent's (on_diverge="error")
     │  ├ UnknownAgentError              no agent of that name (LookupError)
     │  ├ AgentMovedError                another host publishes the agent: part, turn, host, epoch
     │  ├ StaleVersionError              the agent went on while a change of it was prepared
     │  ├ QueueFullError                 n_waiting, limit
     │  ├ ToolResultError                unknown, missing or duplicate tool call id
     │  ├ OutOfBudgetError               needed, budget (bytes)
     │  ├ RequestTimeoutError            (TimeoutError)
     │  └ CancelledError                 result() of a cancelled generation
     └ StoreError
        ├ StoreLockedError               path, holder
        ├ IncompatibleStoreError         found, supported
        ├ OutOfSpaceError                the disk is full
        ├ AgentFileError                 no file that agent.export wrote, or a damaged one (ValueError)
        ├ ReadOnlyError                  a change of a store that was opened with read_only=True
        ├ WrongKeyError                  the store is encrypted under another key, or under none (Config.key)
        ├ RemoteError                    a server or bucket cannot be reached, refuses, or has damaged parts of a log
        └ ItemNotFoundError              item (LookupError)

A damaged or foreign cache raises none of these: it is a miss with a reason (``Usage.miss``).
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping

#: The command that adds what an extra brings. It works from a clone, from a wheel and from an index alike: it names the
#: extra's packages and not this one, which pip may not find by name. As in pyproject.toml: a test compares.
INSTALL: Mapping[str, str] = {
    "cpu": 'pip install "mlx[cpu]>=0.32.2" "scipy-openblas32>=0.3.28"',
    "cuda12": 'pip install "mlx[cuda12]>=0.32.2"',
    "cuda13": 'pip install "mlx[cuda13]>=0.32.2"',
    "grammar": 'pip install "llguidance>=1.9.1,<2"',
    "cli": 'pip install "typer>=0.12" "rich>=13"',
    "otel": 'pip install "opentelemetry-sdk>=1.30"',
    "postgres": 'pip install "psycopg[binary]>=3.2"',
    "encryption": 'pip install "cryptography>=44" "sqlcipher3>=0.6"',
    "remote": 'pip install "obstore>=0.12" "cryptography>=44"',
    "ray": 'pip install "ray>=2.50"',
    "demo": 'pip install "marimo>=0.23"',
    "plot": 'pip install "matplotlib>=3.8"',
    "langchain": 'pip install "langchain-core>=1.4"',
    "pydantic-ai": 'pip install "pydantic-ai-slim>=2"',
    "smolagents": 'pip install "smolagents>=1.20"',
    "llama-index": 'pip install "llama-index-core>=0.14"',
    "llm": 'pip install "llm>=0.36"',
    "openai-agents": 'pip install "openai-agents>=0.24"',
    "anthropic": 'pip install "anthropic>=2.14"',
    "mcp": 'pip install "mcp>=2"',
    "dspy": 'pip install "dspy>=3.4,<3.5"',
    "haystack": 'pip install "haystack-ai>=3"',
    "autogen": 'pip install "autogen-core>=0.7"',
}


def repr_of(value: object) -> str:
    """Return ``repr(value)`` for a message, whatever the value is: bounded in depth and length, and it never raises."""
    return _SHOWN.repr(value)


class AgentMemoryError(Exception):
    """Root of every error this library raises."""


class ConfigError(AgentMemoryError, ValueError):
    """A setting, or an argument that opens something, is wrong."""


class ClosedError(AgentMemoryError, RuntimeError):
    """The memory was closed, or is being used from a forked child."""


class BackendMissingError(AgentMemoryError, ImportError):
    """No MLX backend is installed; the message names the command that installs one."""


class MissingExtraError(AgentMemoryError, ImportError):
    """An optional dependency is needed; the message names the command that installs it."""


class ModelError(AgentMemoryError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No model of that name or path was found."""


class UnsupportedModelError(ModelError):
    """The model was found, but this version cannot run it."""


class DamagedModelError(ModelError):
    """The model was found, but its files are truncated or corrupt."""


class RequestError(AgentMemoryError):
    """One request cannot be served; nothing else is affected."""


class PromptTooLongError(RequestError, ValueError):
    """The prompt does not fit the model's context."""

    def __init__(self, n_tokens: int, limit: int) -> None:
        self.n_tokens, self.limit = n_tokens, limit
        super().__init__(
            f"prompt is {n_tokens:,} tokens; the model's context is {limit:,} and one token must stay free "
            "for the reply. Shorten it; or go on from an earlier turn with agent.rewind(turns) or agent.fork(name, "
            "at=turns), or from the newest turns alone with agent.compact(), which Config(on_full='compact') does then."
        )

    def __reduce__(self) -> tuple[type[PromptTooLongError], tuple[int, int]]:
        return type(self), (self.n_tokens, self.limit)


class StaleVersionError(RequestError):
    """The agent's conversation went on while a change of it was prepared; nothing was changed."""


class AgentMovedError(RequestError):
    """Another host has published the agent from this turn on; ``name``, ``part``, ``turn``, ``host``, ``epoch``."""

    def __init__(self, name: str, part: int, turn: int, host: str, epoch: int) -> None:
        self.name, self.part, self.turn, self.host, self.epoch = name, part, turn, host, epoch
        super().__init__(
            f"agent {repr_of(name)} is another store's: part {part} of its published log, from turn {turn} on, was "
            f"published on {repr_of(host)} in epoch {epoch}. Nothing of this store was published. Take it over with "
            f"memory.fetch_agent({repr_of(name)}): turns that are here alone stay as a version of it"
        )

    def __reduce__(self) -> tuple[type[AgentMovedError], tuple[str, int, int, str, int]]:
        return type(self), (self.name, self.part, self.turn, self.host, self.epoch)


class UnsupportedParameterError(RequestError, ValueError):
    """A parameter, role or value is not supported."""


class AgentDeletedError(RequestError, LookupError):
    """The agent was deleted; a handle of it is of no use any more."""

    def __init__(self, name: str, advice: str | None = None) -> None:
        self.name, self.advice = name, advice
        told = f"Call memory.agent({name!r}) again for a new one" if advice is None else advice
        super().__init__(f"agent {name!r} was deleted, and its conversation with it. {told}")

    def __reduce__(self) -> tuple[type[AgentDeletedError], tuple[str, str | None]]:
        return type(self), (self.name, self.advice)


class HistoryDivergedError(RequestError, ValueError):
    """The list of messages is another history than the agent's, and the request asked for an error."""

    def __init__(self, name: str, message: int, n_messages: int) -> None:
        self.name, self.message, self.n_messages = name, message, n_messages
        super().__init__(
            f"the list differs from the history of agent {name!r} at message {message}: {n_messages - message} of its "
            f'{n_messages} messages would be replaced. Give on_diverge="replace" to replace them, '
            f'on_diverge="branch" to answer without touching the agent, or another agent= for another conversation.'
        )

    def __reduce__(self) -> tuple[type[HistoryDivergedError], tuple[str, int, int]]:
        return type(self), (self.name, self.message, self.n_messages)


class UnknownAgentError(RequestError, LookupError):
    """No agent has that name; ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"there is no agent {repr_of(name)} in this store. memory.agents(), or agent-memory ls, lists those that "
            f"exist; memory.agent({repr_of(name)}) creates it"
        )

    def __reduce__(self) -> tuple[type[UnknownAgentError], tuple[str]]:
        return type(self), (self.name,)


class QueueFullError(RequestError):
    """Too many requests wait to be started; this one, or this batch of ``n_asked``, was refused before any work."""

    def __init__(self, n_waiting: int, limit: int, n_asked: int = 1) -> None:
        self.n_waiting, self.limit, self.n_asked = n_waiting, limit, n_asked
        super().__init__(
            f"{n_waiting:,} requests wait to be started, {n_asked:,} more would wait, and Config.max_waiting is "
            f"{limit:,}. Ask again when others have started, or open the Memory with a larger max_waiting."
        )

    def __reduce__(self) -> tuple[type[QueueFullError], tuple[int, int, int]]:
        return type(self), (self.n_waiting, self.limit, self.n_asked)


class ToolResultError(RequestError, ValueError):
    """A tool result does not answer an open tool call."""


class OutOfBudgetError(RequestError, MemoryError):
    """The request can never fit the byte budget."""

    def __init__(self, needed_bytes: int, budget_bytes: int) -> None:
        self.needed_bytes, self.budget_bytes = needed_bytes, budget_bytes
        super().__init__(
            f"the request needs up to {needed_bytes:,} bytes of KV cache; the budget is {budget_bytes:,}. "
            f"Lower max_tokens, shorten the prompt, or raise Config.hot_bytes."
        )

    def __reduce__(self) -> tuple[type[OutOfBudgetError], tuple[int, int]]:
        return type(self), (self.needed_bytes, self.budget_bytes)


class RequestTimeoutError(RequestError, TimeoutError):
    """The request did not finish within its ``timeout_s``."""


class CancelledError(RequestError):
    """The generation was cancelled before it finished."""


class StoreError(AgentMemoryError):
    """The store on disk cannot be used."""


class StoreLockedError(StoreError):
    """Another process (or another Memory of this process) holds the store."""


class IncompatibleStoreError(StoreError):
    """The store was written by a version whose format this one cannot read."""


class OutOfSpaceError(StoreError, OSError):
    """The disk is full."""


class AgentFileError(StoreError, ValueError):
    """The file is none that ``agent.export`` wrote, or not as it was written; nothing was changed."""


class ReadOnlyError(StoreError):
    """The store was opened with ``read_only=True``, or cannot be read without writing to its folder."""


class WrongKeyError(StoreError):
    """A store or an agent's file is encrypted and the key is another or none; or it is not, and a key was given."""


class RemoteError(StoreError):
    """A server cannot be reached, refuses, or was lost in the middle of a call; what returned before is not."""


class ItemNotFoundError(StoreError, LookupError):
    """No item, episode or pattern of that id is in this workspace: it was never there, or it was forgotten."""

    def __init__(self, item: int | str, noun: str = "item") -> None:
        self.item, self.noun = item, noun
        super().__init__(f"{noun} {item} is not in this workspace: it was forgotten, or belongs to another workspace")

    def __reduce__(self) -> tuple[type[ItemNotFoundError], tuple[int | str, str]]:
        return type(self), (self.item, self.noun)


def _int_shown(value: int, level: int) -> str:
    """An int may have more digits than Python turns into text."""
    try:
        return reprlib.Repr.repr_int(_SHOWN, value, level)
    except ValueError:
        return f"an int of {value.bit_length():,} bits"


_SHOWN = reprlib.Repr()
setattr(_SHOWN, "repr_int", _int_shown)  # noqa: B010 - a method of one instance, which type checkers do not know
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 1000
_SHOWN.maxlist = _SHOWN.maxtuple = _SHOWN.maxdict = _SHOWN.maxset = _SHOWN.maxfrozenset = 30

"""Agents on one local language model that resume where they stopped.

    from agent_memory import Memory

    with Memory() as memory:
        print(memory.agent("alice").say("Hello").text)

Importing this package is free of effects: names load on first use, and MLX only when a model is opened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_memory.agent import Agent
    from agent_memory.config import Config
    from agent_memory.echo.runner import EchoRunner
    from agent_memory.errors import (
        AgentDeletedError,
        AgentMemoryError,
        BackendMissingError,
        CancelledError,
        ClosedError,
        ConfigError,
        DamagedModelError,
        HistoryDivergedError,
        IncompatibleStoreError,
        ItemNotFoundError,
        MissingExtraError,
        ModelError,
        ModelNotFoundError,
        OutOfBudgetError,
        OutOfSpaceError,
        PromptTooLongError,
        QueueFullError,
        RequestError,
        RequestTimeoutError,
        StoreError,
        StoreLockedError,
        ToolResultError,
        UnknownAgentError,
        UnsupportedModelError,
        UnsupportedParameterError,
    )
    from agent_memory.generation import Generation, as_completed
    from agent_memory.memory import Memory
    from agent_memory.observe.codec_quality import CodecReport
    from agent_memory.requests.opening import open_store
    from agent_memory.requests.options import Options
    from agent_memory.runner.mlx import MLXRunner
    from agent_memory.store.view import StoreView
    from agent_memory.types import (
        AgentInfo,
        Delta,
        Doctor,
        Message,
        RejectedCall,
        Reply,
        Sampling,
        Stats,
        Tool,
        ToolCall,
        ToolResult,
        VerifyReport,
    )
    from agent_memory.usage import DivergedAt, Usage

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentDeletedError",
    "AgentInfo",
    "AgentMemoryError",
    "BackendMissingError",
    "CancelledError",
    "ClosedError",
    "CodecReport",
    "Config",
    "ConfigError",
    "DamagedModelError",
    "Delta",
    "DivergedAt",
    "Doctor",
    "EchoRunner",
    "Generation",
    "HistoryDivergedError",
    "IncompatibleStoreError",
    "ItemNotFoundError",
    "MLXRunner",
    "Memory",
    "Message",
    "MissingExtraError",
    "ModelError",
    "ModelNotFoundError",
    "Options",
    "OutOfBudgetError",
    "OutOfSpaceError",
    "PromptTooLongError",
    "QueueFullError",
    "RejectedCall",
    "Reply",
    "RequestError",
    "RequestTimeoutError",
    "Sampling",
    "Stats",
    "StoreError",
    "StoreLockedError",
    "StoreView",
    "Tool",
    "ToolCall",
    "ToolResult",
    "ToolResultError",
    "UnknownAgentError",
    "UnsupportedModelError",
    "UnsupportedParameterError",
    "Usage",
    "VerifyReport",
    "__version__",
    "as_completed",
    "open_store",
]

#: Public name -> the module that defines it.
_HOMES = {
    "Agent": "agent",
    "AgentDeletedError": "errors",
    "AgentInfo": "types",
    "AgentMemoryError": "errors",
    "BackendMissingError": "errors",
    "CancelledError": "errors",
    "ClosedError": "errors",
    "CodecReport": "observe.codec_quality",
    "Config": "config",
    "ConfigError": "errors",
    "DamagedModelError": "errors",
    "Delta": "types",
    "DivergedAt": "usage",
    "Doctor": "types",
    "EchoRunner": "echo.runner",
    "Generation": "generation",
    "HistoryDivergedError": "errors",
    "IncompatibleStoreError": "errors",
    "ItemNotFoundError": "errors",
    "MLXRunner": "runner.mlx",
    "Memory": "memory",
    "Message": "types",
    "MissingExtraError": "errors",
    "ModelError": "errors",
    "ModelNotFoundError": "errors",
    "Options": "requests.options",
    "OutOfBudgetError": "errors",
    "OutOfSpaceError": "errors",
    "PromptTooLongError": "errors",
    "QueueFullError": "errors",
    "RejectedCall": "types",
    "Reply": "types",
    "RequestError": "errors",
    "RequestTimeoutError": "errors",
    "Sampling": "types",
    "Stats": "types",
    "StoreError": "errors",
    "StoreLockedError": "errors",
    "StoreView": "store.view",
    "Tool": "types",
    "ToolCall": "types",
    "ToolResult": "types",
    "ToolResultError": "errors",
    "UnknownAgentError": "errors",
    "UnsupportedModelError": "errors",
    "UnsupportedParameterError": "errors",
    "Usage": "usage",
    "VerifyReport": "types",
    "as_completed": "generation",
    "open_store": "requests.opening",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)

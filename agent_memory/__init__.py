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
        IncompatibleStoreError,
        ItemNotFoundError,
        MissingExtraError,
        ModelError,
        ModelNotFoundError,
        OutOfBudgetError,
        OutOfSpaceError,
        PromptTooLongError,
        RequestError,
        RequestTimeoutError,
        StoreError,
        StoreLockedError,
        ToolResultError,
        UnsupportedModelError,
        UnsupportedParameterError,
    )
    from agent_memory.generation import Generation
    from agent_memory.memory import Memory
    from agent_memory.recall.context import ContextMemory
    from agent_memory.recall.episode import Episode
    from agent_memory.recall.episode_types import (
        PRF,
        EpisodeHit,
        EpisodeRecord,
        EpisodeStats,
        EpisodeStep,
        Insight,
        Outcome,
        Pattern,
        Recommendation,
        Score,
        StepRecorder,
        TaskContext,
    )
    from agent_memory.recall.episodes import EpisodicMemory
    from agent_memory.recall.protocols import Embedder, Redactor
    from agent_memory.recall.redaction import RuleRedactor
    from agent_memory.recall.sentence_model import SentenceModel
    from agent_memory.recall.types import (
        AuditRow,
        CheckReport,
        ContextStats,
        Expansion,
        Hit,
        IngestReport,
        Item,
        Maintained,
        Plan,
        Weights,
        WorkingSet,
    )
    from agent_memory.runner.mlx import MLXRunner
    from agent_memory.types import (
        AgentInfo,
        CodecReport,
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
        Usage,
        VerifyReport,
    )

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentDeletedError",
    "AgentInfo",
    "AgentMemoryError",
    "AuditRow",
    "BackendMissingError",
    "CancelledError",
    "CheckReport",
    "ClosedError",
    "CodecReport",
    "Config",
    "ConfigError",
    "ContextMemory",
    "ContextStats",
    "DamagedModelError",
    "Delta",
    "Doctor",
    "EchoRunner",
    "Embedder",
    "Episode",
    "EpisodeHit",
    "EpisodeRecord",
    "EpisodeStats",
    "EpisodeStep",
    "EpisodicMemory",
    "Expansion",
    "Generation",
    "Hit",
    "IncompatibleStoreError",
    "IngestReport",
    "Insight",
    "Item",
    "ItemNotFoundError",
    "MLXRunner",
    "Maintained",
    "Memory",
    "Message",
    "MissingExtraError",
    "ModelError",
    "ModelNotFoundError",
    "OutOfBudgetError",
    "OutOfSpaceError",
    "Outcome",
    "PRF",
    "Pattern",
    "Plan",
    "PromptTooLongError",
    "Recommendation",
    "Redactor",
    "RejectedCall",
    "Reply",
    "RequestError",
    "RequestTimeoutError",
    "RuleRedactor",
    "Sampling",
    "Score",
    "SentenceModel",
    "Stats",
    "StepRecorder",
    "StoreError",
    "StoreLockedError",
    "TaskContext",
    "Tool",
    "ToolCall",
    "ToolResult",
    "ToolResultError",
    "UnsupportedModelError",
    "UnsupportedParameterError",
    "Usage",
    "VerifyReport",
    "Weights",
    "WorkingSet",
    "__version__",
]

#: Public name -> the module that defines it.
_HOMES = {
    "Agent": "agent",
    "AgentDeletedError": "errors",
    "AgentInfo": "types",
    "AgentMemoryError": "errors",
    "AuditRow": "recall.types",
    "BackendMissingError": "errors",
    "CancelledError": "errors",
    "CheckReport": "recall.types",
    "ClosedError": "errors",
    "CodecReport": "types",
    "Config": "config",
    "ConfigError": "errors",
    "ContextMemory": "recall.context",
    "ContextStats": "recall.types",
    "DamagedModelError": "errors",
    "Delta": "types",
    "Doctor": "types",
    "EchoRunner": "echo.runner",
    "Embedder": "recall.protocols",
    "Episode": "recall.episode",
    "EpisodeHit": "recall.episode_types",
    "EpisodeRecord": "recall.episode_types",
    "EpisodeStats": "recall.episode_types",
    "EpisodeStep": "recall.episode_types",
    "EpisodicMemory": "recall.episodes",
    "Expansion": "recall.types",
    "Generation": "generation",
    "Hit": "recall.types",
    "IncompatibleStoreError": "errors",
    "IngestReport": "recall.types",
    "Insight": "recall.episode_types",
    "Item": "recall.types",
    "ItemNotFoundError": "errors",
    "MLXRunner": "runner.mlx",
    "Maintained": "recall.types",
    "Memory": "memory",
    "Message": "types",
    "MissingExtraError": "errors",
    "ModelError": "errors",
    "ModelNotFoundError": "errors",
    "OutOfBudgetError": "errors",
    "OutOfSpaceError": "errors",
    "Outcome": "recall.episode_types",
    "PRF": "recall.episode_types",
    "Pattern": "recall.episode_types",
    "Plan": "recall.types",
    "PromptTooLongError": "errors",
    "Recommendation": "recall.episode_types",
    "Redactor": "recall.protocols",
    "RejectedCall": "types",
    "Reply": "types",
    "RequestError": "errors",
    "RequestTimeoutError": "errors",
    "RuleRedactor": "recall.redaction",
    "Sampling": "types",
    "Score": "recall.episode_types",
    "SentenceModel": "recall.sentence_model",
    "Stats": "types",
    "StepRecorder": "recall.episode_types",
    "StoreError": "errors",
    "StoreLockedError": "errors",
    "TaskContext": "recall.episode_types",
    "Tool": "types",
    "ToolCall": "types",
    "ToolResult": "types",
    "ToolResultError": "errors",
    "UnsupportedModelError": "errors",
    "UnsupportedParameterError": "errors",
    "Usage": "types",
    "VerifyReport": "types",
    "Weights": "recall.types",
    "WorkingSet": "recall.types",
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

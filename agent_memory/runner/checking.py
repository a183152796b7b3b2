"""Would a model work: its layers' caches, its tools and its template, without reading a weight."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from attrs import field, frozen

from agent_memory.errors import AgentMemoryError
from agent_memory.models.local import LocalModel, find
from agent_memory.models.resolve import import_mlx_lm
from agent_memory.runner.loading import unread
from agent_memory.toolcall.choice import choose

_LAYERS = {
    "full": "full attention: resumed at any token",
    "window": "sliding window: resumed where it stopped, or within a chunk before",
    "snapshot": "state that cannot be cut: resumed where it stopped, and at snapshots before",
}


@frozen(kw_only=True)
class ModelCheck:
    """What is known of a model before it is loaded."""

    model: LocalModel
    problem: str | None  #: why it cannot be used
    layers: Mapping[str, int] = field(factory=dict)  #: number of layers by kind of cache
    tool_format: str | None = None  #: how it writes calls; None: any JSON form is read
    tool_reason: str = ""
    reasoning: tuple[str, str] | None = None  #: marks around its thoughts

    @property
    def is_supported(self) -> bool:
        """True if nothing was found that speaks against it."""
        return self.problem is None

    def rows(self) -> list[tuple[str, str]]:
        """(name, text) of everything that was found."""
        model = self.model
        lines = [
            ("supported", "yes" if self.problem is None else f"no: {self.problem}"),
            ("architecture", model.architecture or ""),
            ("weights", "" if model.n_values is None else f"{model.n_values:,} in {model.n_bytes:,} bytes"),
            ("context", "" if model.context_tokens is None else f"{model.context_tokens:,} tokens"),
            *((f"layers: {n}", _LAYERS[kind]) for kind, n in self.layers.items()),
            ("chat template", "yes" if model.template else "none: turns are written as paragraphs"),
            ("tool calls", f"{self.tool_format or 'any JSON form'}: {self.tool_reason}"),
            ("reasoning", "" if self.reasoning is None else " ... ".join(self.reasoning)),
        ]
        return [(name, text) for name, text in lines if text]


def check(name: str | None) -> ModelCheck:
    """Check what ``Memory(name)`` would open; seconds, reads no weights. Raises ModelNotFoundError."""
    model = find(name)
    problem, layers = model.problem, {}
    if problem is None:
        try:
            layers = _layers(model)
        except AgentMemoryError as error:
            problem = str(error)
    choice = choose(model.template, _added_tokens(model))
    return ModelCheck(
        model=model,
        problem=problem,
        layers=layers,
        tool_format=choice.format,
        tool_reason=choice.reason,
        reasoning=choice.reasoning,
    )


def _layers(model: LocalModel) -> dict[str, int]:
    assert model.path is not None
    if model.source == "gguf":
        from agent_memory.models.gguf import check_gguf

        return {"full": int(check_gguf(model.path).metadata["llama.block_count"])}
    import_mlx_lm()
    from mlx_lm.models.cache import make_prompt_cache

    from agent_memory.mlxcache.kinds import kind_of_empty, leaves

    return dict(Counter(map(kind_of_empty, leaves(make_prompt_cache(unread(model.path))))))


def _added_tokens(model: LocalModel) -> frozenset[str]:
    """Tokens that a tokenizer's file adds to its vocabulary: marks of tools and thoughts are among them."""
    file = None if model.path is None else model.path / "tokenizer.json"
    if file is None or not file.is_file():
        return frozenset()
    try:
        return frozenset(str(one["content"]) for one in json.loads(file.read_text(encoding="utf-8"))["added_tokens"])
    except (ValueError, KeyError, TypeError):
        return frozenset()

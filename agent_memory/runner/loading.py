"""From an mlx-lm folder to a model and its tokenizer; whatever goes wrong in foreign code is a typed error.

- A path with ``[``, ``*`` or ``?`` is loaded through a link without them: mlx-lm takes such a path for a pattern
  (ml-explore/mlx-lm: mlx_lm/utils.py, ``load_model``).
- A chat template that only ``chat_template.json`` holds is given to the tokenizer, which does not look there.
- A ``quantization_config`` of GPTQ or AWQ beside weights that are not packed so is left out.
- A config.json that transformers refuses, and the model does not, costs the tokenizer nothing: it needs the model's
  type alone.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent_memory.errors import AgentMemoryError, DamagedModelError, UnsupportedModelError
from agent_memory.models import digests, directory


@contextmanager
def typed(what: str) -> Iterator[None]:
    """Raise what foreign code raises as UnsupportedModelError, or DamagedModelError for files that cannot be read."""
    try:
        yield
    except (AgentMemoryError, MemoryError):
        raise
    except (OSError, RuntimeError) as error:
        raise DamagedModelError(f"{what} cannot be read: {error}. Fetch or convert it again.") from error
    except Exception as error:  # a model's files are from elsewhere: any value in them may trip any line
        raise UnsupportedModelError(f"mlx-lm cannot load {what}: {type(error).__name__}: {error}") from error


def load(folder: Path, adapter: Path | None, *, dtype: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """The model, its weights evaluated in ``dtype`` (None: as stored), and mlx-lm's tokenizer of it.

    Raises UnsupportedModelError or DamagedModelError.
    """
    with typed(str(folder)), _without_patterns(folder) as path:
        model, tokenizer = _loaded(path, adapter, trust_remote_code)
        return _cast(model, dtype), tokenizer


def unread(folder: Path) -> Any:
    """The model of a folder, none of its weights read. Raises UnsupportedModelError or DamagedModelError."""
    from mlx_lm.utils import load_model

    packed = directory.unused_quantization(folder)
    with typed(str(folder)), _without_patterns(folder) as path:
        return load_model(path, lazy=True, model_config={"quantization_config": {}} if packed else {})[0]


def _loaded(path: Path, adapter: Path | None, trust_remote_code: bool) -> tuple[Any, Any]:
    import mlx_lm
    from huggingface_hub.errors import StrictDataclassError

    template = directory.lone_template(path)
    known = {} if template is None else {"chat_template": template}

    def once(more: Mapping[str, Any]) -> tuple[Any, Any]:
        found = mlx_lm.load(
            str(path),
            tokenizer_config={**known, **more},
            model_config={"quantization_config": {}} if directory.unused_quantization(path) else None,
            adapter_path=str(adapter) if adapter is not None else None,
            trust_remote_code=trust_remote_code,
            lazy=True,
        )
        return found[0], found[1]

    try:
        return once({})
    except StrictDataclassError:
        return once({"config": _config_of_type(directory.read_json(path, "config.json")["model_type"])})


def _config_of_type(model_type: str) -> Any:
    from transformers import AutoConfig, PretrainedConfig

    try:
        return AutoConfig.for_model(model_type)
    except ValueError:  # a type of mlx-lm's alone
        return PretrainedConfig()


@contextmanager
def _without_patterns(folder: Path) -> Iterator[Path]:
    """``folder`` by a path that is no pattern."""
    if glob.escape(str(folder)) == str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="agent_memory-") as room:
        if glob.escape(room) != room:
            raise UnsupportedModelError(
                f"mlx-lm takes [ ] * ? for a pattern: {folder}, and the folder for temporary files, {room}, too. "
                "Move the model, or set TMPDIR to a folder without them."
            )
        link = Path(room) / "model"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _cast(model: Any, dtype: str | None) -> Any:
    """Return the model with its weights in ``dtype``, dequantized if need be; None: as stored. Evaluates all."""
    import mlx.core as mx
    from mlx_lm.utils import dequantize_model

    if dtype is not None:
        if any(a.dtype == mx.uint32 for _, a in digests.leaves(model)):
            model = dequantize_model(model)
        model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    return model

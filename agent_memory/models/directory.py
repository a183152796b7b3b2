"""A look at an mlx-lm directory before anything loads it: the files it needs, and whether its weights are whole."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_memory.errors import DamagedModelError, ModelNotFoundError, UnsupportedModelError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tiktoken.model")
_MAX_HEADER_BYTES = 100 << 20  #: the limit of safetensors itself


def check_directory(path: Path) -> None:
    """Whether ``path`` can be an mlx-lm directory; milliseconds, reads no weights.

    Raises ModelNotFoundError or UnsupportedModelError (a file is missing), or DamagedModelError with the bytes
    expected and found.
    """
    config = read_json(path, "config.json")
    if "model_type" not in config:
        raise UnsupportedModelError(f"{path / 'config.json'} names no model_type; mlx-lm needs one.")
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.gguf", "*.safetensors") for p in path.glob(pattern))
        hint = f" It holds {others[0]}; convert it with `mlx_lm.convert`." if others else ""
        raise UnsupportedModelError(f"{path} has no model*.safetensors.{hint}")
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise UnsupportedModelError(f"{path} has no tokenizer; expected one of {', '.join(_TOKENIZERS)}.")
    if (path / "model.safetensors.index.json").is_file():
        listed = read_json(path, "model.safetensors.index.json").get("weight_map") or {}
        if missing := sorted(set(listed.values()) - {p.name for p in files}):
            raise DamagedModelError(f"{path} lacks {len(missing)} weight files, such as {missing[0]}. Fetch them.")
    for file in files:
        safetensors_header(file)


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in ``path / name``."""
    try:
        value = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path} is no mlx-lm directory: it has no {name}.") from None
    except (ValueError, RecursionError) as error:
        raise DamagedModelError(f"{path / name} cannot be read: {error}. Fetch it again.") from error
    if not isinstance(value, dict):
        raise DamagedModelError(f"{path / name} holds {type(value).__name__}, not an object. Fetch it again.")
    return value


def safetensors_header(file: Path) -> Mapping[str, Mapping[str, Any]]:
    """Name -> dtype, shape, data_offsets of each tensor, checked against the file's size; reads the header only."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise DamagedModelError(
                f"{file} is truncated or no safetensors file: its header needs {length + 8:,} bytes, it has {size:,}. "
                f"Fetch it again."
            )
        text = opened.read(length)
    try:
        tensors = {name: info for name, info in json.loads(text).items() if name != "__metadata__"}
        end = max((info["data_offsets"][1] for info in tensors.values()), default=0)
        expected = 8 + length + int(end)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DamagedModelError(f"{file}: its header cannot be read: {error!r}. Fetch it again.") from error
    if expected != size:
        raise DamagedModelError(f"{file} has {size:,} bytes; its header asks for {expected:,}. Fetch it again.")
    return tensors


def count_values(path: Path) -> int:
    """The number of weights of an mlx-lm directory, each packed one counted; reads headers only."""
    config = read_json(path, "config.json")
    quantization = config.get("quantization") or {}
    total = 0
    for file in sorted(path.glob("model*.safetensors")):
        tensors = safetensors_header(file)
        for name, info in tensors.items():
            stem, _, end = name.rpartition(".")
            packed = f"{stem}.scales" in tensors
            if packed and end in ("scales", "biases"):
                continue
            n = math.prod(info["shape"])
            own = quantization.get(stem)
            bits = (own if isinstance(own, dict) else quantization).get("bits", 4)
            total += n * 32 // bits if packed and end == "weight" and info["dtype"] == "U32" else n
    return total

"""Check an mlx-lm directory before anything loads it: are the files there, are the weights whole?"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_memory.errors import DamagedModelError, ModelNotFoundError, UnsupportedModelError

_INDEX, _ONE_FILE = "model.safetensors.index.json", "model.safetensors"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tiktoken.model")
_MAX_HEADER_BYTES = 100 << 20  #: the limit of safetensors itself


def check_directory(path: Path) -> None:
    """Check that ``path`` can be an mlx-lm directory; milliseconds, reads no weights.

    Raises ModelNotFoundError or UnsupportedModelError (a file is missing), or DamagedModelError with the bytes
    expected and found.
    """
    if path.is_file():
        raise UnsupportedModelError(f"{path} is a file; a model is an mlx-lm directory, a .gguf file or a hub id.")
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
    if missing := _missing_shards(path, files):
        raise DamagedModelError(f"{path} lacks {len(missing)} weight files, such as {missing[0]}. Fetch them.")
    for file in files:
        safetensors_header(file)


def notes(path: Path) -> list[str]:
    """Return what is odd about a folder that can be loaded all the same."""
    found = []
    if (path / _INDEX).is_file() and _is_of_another(path, _listed(path)):
        found.append(
            f"{_INDEX} names weight files that are not there; {_ONE_FILE}, which it does not name, is loaded instead. "
            "Delete the index, or fetch its files and delete that one"
        )
    if (method := unused_quantization(path)) is not None:
        found.append(
            f"config.json says that the weights are packed by {method}, and none is: they are loaded as they are. "
            "Delete quantization_config from config.json"
        )
    return found


def unused_quantization(path: Path) -> str | None:
    """The method that config.json says the weights are packed by, where no weight is; None where all is well.

    mlx-lm unpacks GPTQ and AWQ by this entry, and fails when there is nothing to unpack. Reads headers only.
    """
    config = read_json(path, "config.json")
    found = config.get("quantization_config")
    method = found.get("quant_method") if isinstance(found, dict) else None
    if config.get("quantization") is not None or method not in ("gptq", "awq"):
        return None
    headers = (safetensors_header(file) for file in path.glob("model*.safetensors"))
    return None if any(name.endswith(".qweight") for header in headers for name in header) else str(method)


def lone_template(path: Path) -> Any:
    """The chat template of ``chat_template.json`` where no other file has one; None where there is none.

    Raises DamagedModelError.
    """
    if not (path / "chat_template.json").is_file():
        return None
    folder = path / "additional_chat_templates"
    if (path / "chat_template.jinja").exists() or any(folder.glob("*.jinja")):
        return None
    if (path / _TOKENIZER_CONFIG).is_file() and read_json(path, _TOKENIZER_CONFIG).get("chat_template"):
        return None
    template = read_json(path, "chat_template.json").get("chat_template")
    if not isinstance(template, str):
        raise DamagedModelError(
            f"{path / 'chat_template.json'} holds {type(template).__name__} under 'chat_template', not a str. "
            "Fetch it again."
        )
    return template


def chat_template(path: Path) -> str | None:
    """The chat template of a folder, as text; None where it has none. Raises DamagedModelError."""
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    found = read_json(path, _TOKENIZER_CONFIG).get("chat_template") if (path / _TOKENIZER_CONFIG).is_file() else None
    if isinstance(found, list):  # named templates: the default one
        named = [one for one in found if isinstance(one, dict)]
        found = next((one.get("template") for one in named if one.get("name") == "default"), None)
    return found if isinstance(found, str) else lone_template(path)


def _listed(path: Path) -> set[str]:
    """The weight files that the index names."""
    listed = read_json(path, _INDEX).get("weight_map") or {}
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise DamagedModelError(f"{path / _INDEX} holds no map from weights to files. Fetch it again.")
    return set(listed.values())


def _is_of_another(path: Path, listed: set[str]) -> bool:
    """True if an index belongs to another form of the model than the one whole file beside it."""
    return (path / _ONE_FILE).is_file() and not any((path / name).exists() for name in listed)


def _missing_shards(path: Path, files: Sequence[Path]) -> list[str]:
    if not (path / _INDEX).is_file():
        return []
    listed = _listed(path)
    return [] if _is_of_another(path, listed) else sorted(listed - {p.name for p in files})


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
        for info in tensors.values():
            math.prod(info["shape"])
            str.isupper(info["dtype"])
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
    quantization = config.get("quantization")
    quantization = quantization if isinstance(quantization, dict) else {}
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
            bits = bits if isinstance(bits, int) and bits > 0 else 4
            total += n * 32 // bits if packed and end == "weight" and info["dtype"] == "U32" else n
    return total

"""Digests of a model's weights and configuration: the identity of its KV.

Weights are told apart by the hub's own hashes where the files are links to its blobs, else by reading them all. Either
digest is used again while the files are the same by path, size and time, so that opening does not read them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_memory.progress import Progress, silent

_SAMPLED = 4096  #: elements of each weight that go into its digest, besides the wrapping sum of all its words
_BLOB = re.compile(r"[0-9a-f]{64}")  #: the sha256 by which the hub's cache names a large file


def leaves(model: Any) -> list[tuple[str, Any]]:
    """Every weight by its name, sorted."""
    from mlx.utils import tree_flatten

    return sorted(tree_flatten(model.parameters()))


def weight_files(folder: Path, adapter: Path | None) -> list[Path]:
    """Return the files of a model's weights and of an adapter's."""
    folders = [folder] if adapter is None else [folder, adapter]
    return [path for one in folders for path in sorted(one.glob("*.safetensors"))]


def stamp(files: Sequence[Path], dtype: str) -> str:
    """Return paths, sizes and times of files: a stamp that changes when they do. Reads no weights."""
    found = [[str(path.resolve()), s.st_size, s.st_mtime_ns] for path in files for s in [path.stat()]]
    return hashlib.sha256(json.dumps([found, dtype]).encode()).hexdigest()


def of_blobs(files: Sequence[Path], dtype: str) -> str | None:
    """A digest from the hub's hashes; None where one of the files is no link to a blob."""
    blobs = [Path(os.readlink(path)).name if path.is_symlink() else "" for path in files]
    if not blobs or not all(_BLOB.fullmatch(blob) for blob in blobs):
        return None
    named = [[path.name, blob] for path, blob in zip(files, blobs, strict=True)]
    return hashlib.sha256(json.dumps([named, dtype]).encode()).hexdigest()


def of_file(path: Path) -> str:
    """sha256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def of_weights(model: Any, progress: Progress = silent) -> str:
    """sha256 over every weight: name, shape, dtype, evenly sampled elements, and the wrapping sum of all its words.

    The sum reads every byte (at memory speed) and does not depend on the order of summation, so two fine-tunes of one
    geometry differ in it even where no sampled element does.
    """
    import mlx.core as mx
    import numpy as np

    sha = hashlib.sha256()
    weights = leaves(model)
    for number, (name, array) in enumerate(weights):
        progress(number, len(weights), "")
        flat = array.reshape(-1)
        words = flat.view(mx.uint32) if array.nbytes % 4 == 0 else flat.view(mx.uint8).astype(mx.uint32)
        sampled = flat[:: max(1, flat.size // _SAMPLED)].view(mx.uint8)
        total = mx.sum(words)
        mx.eval(total, sampled)
        sha.update(f"{name} {array.shape} {array.dtype} {int(total)} ".encode())
        sha.update(np.array(sampled).tobytes())
    return sha.hexdigest()


def of_config(model: Any) -> str:
    """sha256 of the model's arguments: rope, norms, windows and all that weights do not show."""
    args = getattr(model, "args", None)
    values = vars(args) if hasattr(args, "__dict__") else {"repr": repr(args)}
    text = json.dumps([type(model).__module__, values], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()

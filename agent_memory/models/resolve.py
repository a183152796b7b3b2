"""Resolve a caller's model (None, a directory, a ``.gguf`` file, a hub id) to a local mlx-lm directory."""

from __future__ import annotations

import importlib
import logging
import os
import re
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import xxhash
from attrs import frozen

from agent_memory.config import as_path, total_memory_bytes
from agent_memory.errors import INSTALL, BackendMissingError, ConfigError, ModelNotFoundError
from agent_memory.models import directory, starter
from agent_memory.models.converted import build_once
from agent_memory.models.gguf import DTYPES, check_gguf, convert
from agent_memory.progress import bar, import_tqdm, place_of

log = logging.getLogger("agent_memory.models")

Source = Literal["starter", "directory", "gguf", "hub"]

AS_STORED = "stored"  #: a weights dtype: whatever the files hold
BACKEND_HINT = (
    f"no MLX backend is installed. On Linux without a GPU: {INSTALL['cpu']}; with CUDA 12: {INSTALL['cuda12']}; "
    f"with CUDA 13: {INSTALL['cuda13']}; on macOS with Apple silicon: pip install mlx"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_ID_CHARS = 96  #: the hub's own limit
_HUB_FILES = ("*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "tiktoken.model", "*.txt", "*.jinja")
_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10
_importing = threading.RLock()  # two threads must not take each other's stand-in for the original function


@frozen
class Resolved:
    """A model on this machine."""

    path: Path  #: an mlx-lm directory
    name: str
    weights_dtype: str | None  #: dtype of the weights in memory; None: as stored
    source: Source


@frozen
class HubId:
    """The name of a model on the hub: ``owner/name``."""

    name: str


#: What a caller meant by ``model``, fixed once: an absolute path, a hub id, or None for the starter model.
Located = Path | HubId | None


def locate(model: str | os.PathLike[str] | None) -> Located:
    """Say what ``model`` means now, and check it: cheap, without mlx, network or loading.

    A later ``chdir`` does not change the answer. Raises ConfigError, ModelNotFoundError, UnsupportedModelError or
    DamagedModelError. A string that has the form of a hub id and is no path passes: only ``resolve`` can tell.
    """
    if model is None:
        return None
    if isinstance(model, str) and _is_hub_id(model) and not os.path.exists(model):
        return HubId(model)
    path = _path(model)
    _check_path(path)
    return path


def short_name(model: Located) -> str:
    """The last part of a folder, file or hub id."""
    if model is None:
        return "starter"
    return model.name.rpartition("/")[2] if isinstance(model, HubId) else model.name


def _check_path(path: Path) -> None:
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        check_gguf(path)
    elif path.exists():
        directory.check_directory(path)
    else:
        raise ModelNotFoundError(f"no such directory or file: {path}. A hub id has the form 'owner/name'.")


def resolve(
    model: Located,
    *,
    weights_dtype: str | None,
    progress: bool | None,
    trust_remote_code: bool,
    is_cpu: bool,
    cache_dir: Path | None = None,
) -> Resolved:
    """The mlx-lm directory of a located model, fetched or converted the first time (minutes then, milliseconds later).

    ``weights_dtype`` None: on CPU float32 where the weights then fit a quarter of the machine's memory, else as
    stored; "stored": as stored. ``cache_dir``: where conversions are kept; None: the user's cache folder. The network
    is used for hub ids and the first fetch of the starter model only. Raises what ``locate``
    raises, ModelError and OutOfSpaceError.
    """
    if weights_dtype is not None and weights_dtype not in (*DTYPES, AS_STORED):
        raise ConfigError(f"weights_dtype must be one of {', '.join(DTYPES)}, or None: {weights_dtype!r}")
    cache = cache_dir if cache_dir is not None else default_cache_dir()
    if model is None:
        dtype = _dtype(weights_dtype, starter.PARAMETERS, is_cpu)
        path = starter.starter(weights_dtype=dtype, progress=progress, cache_dir=cache)
        return Resolved(path, starter.NAME, dtype, "starter")
    if isinstance(model, HubId):
        source: Source = "hub"
        path, name = _from_hub(model.name, progress, trust_remote_code), short_name(model)
    else:
        path, source, name = model, "directory", model.resolve().name
    _check_path(path)
    if path.suffix.lower() == ".gguf" and path.is_file():
        dtype = _dtype(weights_dtype, check_gguf(path).n_values, is_cpu)
        return Resolved(_converted(path, dtype, progress, cache), path.stem, dtype, "gguf")
    return Resolved(path, name, _dtype(weights_dtype, directory.count_values(path), is_cpu), source)


def default_cache_dir() -> Path:
    """Where fetched and converted models are kept."""
    import platformdirs

    return as_path(platformdirs.user_cache_dir("agent_memory"), "the user's cache folder") / "models"


@contextmanager
def limits_kept() -> Iterator[None]:
    """Keep RLIMIT_NOFILE while mlx_lm is imported: its ``utils`` lowers both limits to 2,048 and 4,096.

    Only this thread's calls for that one limit do nothing; afterwards ``resource.setrlimit`` is the original again.
    """
    with _importing:
        original, thread = resource.setrlimit, threading.get_ident()

        def setrlimit(which: int, limits: tuple[int, int], /) -> None:
            if which != resource.RLIMIT_NOFILE or threading.get_ident() != thread:
                original(which, limits)

        resource.setrlimit = setrlimit
        try:
            yield
        finally:
            resource.setrlimit = original


def import_mlx_lm() -> Any:
    """The ``mlx_lm`` module, imported without its change of process limits.

    Raises BackendMissingError naming the command that installs a backend.
    """
    if (module := sys.modules.get("mlx_lm")) is not None and hasattr(module, "load"):
        return module
    try:
        importlib.import_module("mlx.core")
        import_tqdm()
        with limits_kept():
            return importlib.import_module("mlx_lm")
    except ImportError as error:
        raise BackendMissingError(f"{BACKEND_HINT} ({error})") from error


def _path(model: str | os.PathLike[str]) -> Path:
    if not isinstance(model, str | os.PathLike):
        raise ConfigError(f"model must be a path, a hub id, a runner or None, not {type(model).__name__}")
    path = as_path(model, "model")
    try:
        path.exists()
    except OSError as error:  # a name that no file system takes
        raise ModelNotFoundError(f"no such directory or file: {str(path)[:80]}...: {error.strerror}") from None
    return path


def _is_hub_id(model: str) -> bool:
    return len(model) <= _HUB_ID_CHARS and _HUB_ID.fullmatch(model) is not None


def _dtype(asked: str | None, n_values: int, is_cpu: bool) -> str | None:
    if asked is not None or not is_cpu:
        return None if asked == AS_STORED else asked
    return "float32" if 4 * n_values <= total_memory_bytes() // 4 else None


def _converted(path: Path, dtype: str | None, progress: bool | None, cache: Path) -> Path:
    source = _content_key(path)
    name = re.sub(r"[^\w.-]", "_", path.stem)[:60].lstrip(".") or "gguf"
    folder = cache / f"{name}-{source[:16]}-v{starter.FORMAT_VERSION}-{dtype or 'stored'}"

    def build(made: Path) -> None:
        with bar(progress, path.stem, "tensors") as report:
            convert(path, made, dtype=dtype, progress=report)

    return build_once(folder, build, source=f"gguf:{source}")


def _content_key(path: Path) -> str:
    """A digest of size, time of change and spread samples: a moved file keeps its conversion, a new one gets one."""
    stat = path.stat()
    digest = xxhash.xxh3_128(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(0, stat.st_size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _from_hub(name: str, progress: bool | None, trust_remote_code: bool) -> Path:
    """The folder of a hub model, fetched where it is not cached yet."""
    import_tqdm()
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise BackendMissingError(f"{BACKEND_HINT} ({error})") from error
    from tqdm.std import tqdm

    is_shown = place_of(progress) != "nowhere"

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            settings.pop("name", None)
            super().__init__(*args, **{**settings, "disable": not is_shown})

    patterns = [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])]
    log.info("fetching hub_id=%s", name)
    try:
        return as_path(snapshot_download(name, allow_patterns=patterns, tqdm_class=Bar), "the hub's cache folder")
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        offline = (
            "" if _answered(error) else " The hub could not be reached, and its cache lacks the model: go online once."
        )
        raise ModelNotFoundError(
            f"{name!r} is neither a directory or file here nor to be had from the hub: "
            f"{type(error).__name__}: {said}{offline}"
        ) from error


def _answered(error: BaseException) -> bool:
    """True if the hub itself refused (there is a response); False if it was not reached."""
    return getattr(error, "response", None) is not None or isinstance(error, ValueError)

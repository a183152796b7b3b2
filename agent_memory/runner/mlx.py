"""MLXRunner: an mlx-lm model as the engine sees it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_memory.config import Config, as_path
from agent_memory.errors import BackendMissingError, ConfigError
from agent_memory.models import digests, directory, resolve
from agent_memory.progress import bar
from agent_memory.runner import blas, loading, sharded, speech

if TYPE_CHECKING:
    import numpy as np

    from agent_memory.kvcache.coding import Coding
    from agent_memory.kvcache.layout import Layout
    from agent_memory.runner.batch import MLXBatch
    from agent_memory.runner.early import EarlyLayers
    from agent_memory.runner.tokenizer import HFTokenizer

log = logging.getLogger("agent_memory.runner")

#: Prefill step by device: small steps are fastest on CPUs, large ones on GPUs (measured by benchmarks/ttft.py).
_CPU_GRID, _GPU_GRID = 256, 2048


class MLXRunner:
    """A model for ``Memory``: ``MLXRunner(model, tokenizer)`` wraps what the host has loaded with ``mlx_lm.load``.

    The weights are read, never changed; their arrays are evaluated here, on the caller's thread, because lazy arrays
    cannot cross threads. One ``Memory`` at a time may be open on a runner, any number one after another.
    ``tool_format``: how the model writes calls, where its template does not tell. Raises ConfigError when ``model`` is
    not callable or ``tokenizer`` has no ``encode``, UnsupportedModelError where this process has a part of the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "host model",
        prefill_tokens: int | None = None,
        tool_format: str | None = None,
    ) -> None:
        if not callable(model) or not hasattr(model, "parameters"):
            raise ConfigError(f"MLXRunner needs an mlx_lm model, got {type(model).__name__}")
        if not hasattr(tokenizer, "encode"):
            raise ConfigError(f"MLXRunner needs a tokenizer, got {type(tokenizer).__name__}")
        sharded.ensure_whole(model, name)
        self._located: resolve.Located = None
        self._adapter: Path | None = None
        self._config = Config(tool_format=tool_format)
        self._setup(name, prefill_tokens)
        self._model, self._hf = model, tokenizer
        self._is_hosts = True
        _evaluate(model)

    @classmethod
    def named(
        cls,
        model: str | os.PathLike[str] | None,
        *,
        config: Config,
        adapter: str | os.PathLike[str] | None = None,
    ) -> MLXRunner:
        """A runner that loads on ``open()``: hub id, mlx-lm directory, ``.gguf`` file, or None for the starter model.

        Cheap checks are made at once: raises ModelNotFoundError, UnsupportedModelError or DamagedModelError.
        """
        located = resolve.locate(model)
        folder = None if adapter is None else as_path(adapter, "adapter")
        if folder is not None and not os.path.isfile(folder / "adapter_config.json"):  # False for any path
            raise ConfigError(f"no adapter_config.json in {str(folder)!r}; adapter= takes an mlx-lm adapter folder")
        runner = cls.__new__(cls)
        runner._located, runner._adapter, runner._config = located, folder, config
        runner._model = runner._hf = None
        runner._setup(resolve.short_name(located), config.prefill_tokens)
        return runner

    def _setup(self, name: str, prefill_tokens: int | None) -> None:
        sharded.ensure_alone(name)
        self._name, self._prefill_tokens = name, prefill_tokens
        self._is_hosts = False  #: True if the host loaded the model: it stays after ``close``
        self._in_use = threading.Lock()
        self._opener: int | None = None  #: the thread that opened the runner and has not closed it
        self._path: Path | None = None
        self._layout: Layout | None = None
        self._tokenizer: HFTokenizer | None = None
        self._identity: dict[str, str] = {}
        self._choices: dict[str, str] = {}
        self._notes: tuple[str, ...] = ()
        self._weights_bytes = self._n_vocab = 0
        self._helper: ThreadPoolExecutor | None = None
        self._early: EarlyLayers | None = None
        self._stream: Any = None  #: for batches; None: mlx-lm's own
        self._blas = blas.Blas(name="reference", version="", threads=0, active=False, note="not opened yet")

    @property
    def name(self) -> str:
        """The folder's, file's or hub id's last part."""
        return self._name

    @property
    def tokenizer(self) -> HFTokenizer:
        """Valid after ``open``."""
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def layout(self) -> Layout:
        """Valid after ``open``."""
        assert self._layout is not None
        return self._layout

    @property
    def context_tokens(self) -> int | None:
        """``max_position_embeddings`` of the model's config, or of the text model in it; None where it has none."""
        args = getattr(self._model, "args", None)
        inner = getattr(args, "text_config", None)
        values = [
            one.get("max_position_embeddings")
            if isinstance(one, Mapping)
            else getattr(one, "max_position_embeddings", None)
            for one in (args, inner)
        ]
        return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)

    @property
    def prefill_tokens(self) -> int:
        """256 on CPU, 2,048 on GPUs, unless set."""
        return self._prefill_tokens or (_CPU_GRID if _on_cpu() else _GPU_GRID)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights in memory. Valid after ``open``."""
        return self._weights_bytes

    @property
    def host(self) -> str:
        """mlx build, device, BLAS and its threads."""
        device = "cpu" if _on_cpu() else "gpu"
        linear = f"{self._blas.name} {self._blas.version} x{self._blas.threads}" if device == "cpu" else ""
        return " ".join(f"mlx {version('mlx')} {platform.system()} {platform.machine()} {device} {linear}".split())

    @property
    def identity(self) -> Mapping[str, str]:
        """Digests of weights (adapter included: its layers are in the tree), config, tokenizer and layout."""
        return self._identity

    @property
    def n_vocab(self) -> int:
        """How many ids the model knows, those that its tokenizer does not use included. Valid after ``open``."""
        return self._n_vocab

    @property
    def facts(self) -> Mapping[str, Any]:
        """Backend, BLAS, dtype and versions, for ``doctor()``."""
        return {
            "backend": "mlx cpu" if _on_cpu() else "mlx gpu",
            "mlx": version("mlx"),
            "mlx_lm": version("mlx-lm"),
            "blas": f"{self._blas.name} {self._blas.version}".strip(),
            "blas_active": self._blas.active,
            "blas_threads": self._blas.threads,
            "blas_note": self._blas.note,
            "weights_dtype": self._identity.get("dtype", ""),
            "model": self._name,
            "model_path": str(self._path) if self._path else None,
            "context_tokens": self.context_tokens,
            "host": self.host,
            "notes": self._notes,
        }

    @property
    def choices(self) -> Mapping[str, str]:
        """The weights' dtype, or ``stored``, and a stamp of their files; empty for a model that the host has loaded."""
        return self._choices

    def open(self, recorded: Mapping[str, str] = {}) -> None:
        """Load, speed up the BLAS, and feed one token to learn the layout of the caches. Engine thread.

        Raises ConfigError while another Memory is open on this runner, and what loading raises.
        """
        if self._opener == threading.get_ident():
            return
        if not self._in_use.acquire(blocking=False):
            raise ConfigError(
                f"this MLXRunner ({self._name!r}) serves another Memory of this process: close that Memory first, "
                "share it, or give each Memory an MLXRunner(model, tokenizer) of its own"
            )
        self._opener = threading.get_ident()
        resolve.import_mlx_lm()
        self._stream = _fresh_streams()
        self._blas = blas.speed_up(self._config.blas)
        if self._model is None:
            self._load(recorded.get("weights_dtype"))
        from agent_memory.runner.tokenizer import HFTokenizer

        with loading.typed(str(self._path or self._name)):
            self._tokenizer = HFTokenizer(self._hf, self._config.tool_format)
            self._layout, self._n_vocab = _probe(self._model)
        self._notes = self._looked_at()
        self._weights_bytes = sum(array.nbytes for _, array in digests.leaves(self._model))
        self._identity = {
            "weights": self._digest_weights(recorded),
            "config": digests.of_config(self._model),
            "tokenizer": self._tokenizer.digest,
            "layout": self._layout.digest,
            "dtype": _main_dtype(self._model),
        }
        if self._adapter is not None:  # an adapter's scale is in no weight
            self._identity["adapter"] = digests.of_file(self._adapter / "adapter_config.json")
        if _on_cpu():
            self._helper = ThreadPoolExecutor(1, "agent_memory-restore")
            self._helper.submit(int).result()  # it runs from now on

    def _looked_at(self) -> tuple[str, ...]:
        """Return what a user should know of this model; log each note once."""
        found = speech.notes(self.tokenizer, str(self._path) if self._path else None)
        if self._path is not None:
            found = [*directory.notes(self._path), *found]
        for note in found:
            log.warning("model %s: %s", self._name, note)
        return tuple(found)

    def _digest_weights(self, recorded: Mapping[str, str]) -> str:
        """The recorded digest if the files have not changed; else the hub's, else computed from the weights."""
        if self._path is None:
            return self._read_weights()
        files, dtype = digests.weight_files(self._path, self._adapter), self._choices["weights_dtype"]
        stamp = self._choices["weights_stamp"] = digests.stamp(files, dtype)
        if recorded.get("weights_stamp") == stamp and "weights" in recorded:
            return recorded["weights"]
        return digests.of_blobs(files, dtype) or self._read_weights()

    def _read_weights(self) -> str:
        with bar(self._config.progress, f"{self._name}: digest", "weights") as report:
            return digests.of_weights(self._model, report)

    def open_batch(self, chunk_tokens: int = 256) -> MLXBatch:
        """An empty batch; engine thread."""
        import mlx.core as mx

        from agent_memory.runner.batch import MLXBatch

        # This thread's own stream, where it has loaded the model: mlx ends none that is made, nor its system thread.
        beside = mx.default_stream(mx.cpu) if _on_cpu() else None
        return MLXBatch(
            self._model,
            self.layout,
            chunk_tokens,
            clears=not _on_cpu(),
            beside=beside,
            helper=self._helper,
            stream=self._stream,
        )

    def early_states(self, rows: Sequence[Sequence[int]], depth: float) -> np.ndarray[Any, Any]:
        """Return the mean state of each row after a share of the layers: (len(rows), width) float32. Engine thread.

        Raises UnsupportedModelError.
        """
        from agent_memory.runner.early import EarlyLayers

        if self._early is None:
            self._early = EarlyLayers(self._model, self._name, depth)
        return self._early.states(rows)

    def encode(self, rows: np.ndarray[Any, Any], form: Coding, dtype: str) -> np.ndarray[Any, Any]:
        """Encode stored rows of one tensor, (heads, n, bytes) uint8, as ``kvcache.coding`` says. Engine thread."""
        from agent_memory.mlxcache.codecs import encode_stored

        return encode_stored(rows, form, dtype)

    def close(self) -> None:
        """Drop the model and this thread's mlx streams; do nothing on a thread that has not opened it.

        A model that the host loaded stays and can be opened again.
        """
        if self._opener != threading.get_ident():
            return
        self._early = None
        if self._is_hosts:
            with contextlib.suppress(RuntimeError):  # arrays that the host made meanwhile belong to its thread
                _evaluate(self._model)  # arrays that the model cached on this thread, which no other can evaluate
        else:
            self._model = self._hf = None
        if self._helper is not None:
            self._helper.shutdown()
            self._helper = None
        if "mlx.core" in sys.modules:
            import mlx.core as mx

            # A thread that has computed must do this before it ends, or the process may abort at exit (mlx #3395).
            mx.clear_streams()
        _give_back()
        self._opener = None
        self._in_use.release()

    def _load(self, weights_dtype: str | None) -> None:
        found = resolve.resolve(
            self._located,
            weights_dtype=self._config.weights_dtype or weights_dtype,
            progress=self._config.progress,
            trust_remote_code=self._config.trust_remote_code,
            is_cpu=_on_cpu(),
        )
        self._path, self._name = found.path, found.name
        self._choices = {"weights_dtype": found.weights_dtype or resolve.AS_STORED}
        self._model, self._hf = loading.load(
            found.path,
            self._adapter,
            dtype=found.weights_dtype,
            trust_remote_code=self._config.trust_remote_code,
        )


def _evaluate(model: Any) -> None:
    """Evaluate every array of a model, parameters or not (RoPE frequencies): a lazy one cannot leave its thread."""
    import mlx.core as mx

    modules = model.modules() if hasattr(model, "modules") else []
    mx.eval(model.parameters(), [list(vars(module).values()) + list(module.values()) for module in modules])


def _fresh_streams() -> Any:
    """Give this thread new streams, and return one for batches, where a model before dropped them in ``close``.

    None on a thread that has its own still.
    """
    import mlx.core as mx

    device = mx.default_device()
    try:
        mx.eval(mx.add(mx.zeros(1, stream=device), 1, stream=device))
    except RuntimeError:
        for one in {mx.Device(mx.cpu), device}:
            mx.set_default_stream(mx.new_stream(one))
        return mx.new_stream(device)
    return None


def _on_cpu() -> bool:
    try:
        import mlx.core as mx
    except ImportError as error:
        raise BackendMissingError(resolve.BACKEND_HINT) from error
    return bool(mx.default_device() == mx.Device(mx.cpu))


def _main_dtype(model: Any) -> str:
    """Return the dtype that most of the weights' bytes have, as text."""
    sizes: dict[str, int] = {}
    for _, array in digests.leaves(model):
        sizes[str(array.dtype)] = sizes.get(str(array.dtype), 0) + array.nbytes
    return max(sizes, key=lambda d: sizes[d], default="").removeprefix("mlx.core.")


def _give_back() -> None:
    """Return freed memory to the system: glibc keeps hundreds of MB in the arenas of threads that have ended."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _probe(model: Any) -> tuple[Layout, int]:
    """Feed one token to fresh caches; return their layout, and how many logits there are. Costs one decode step."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    from agent_memory.mlxcache import kinds

    caches = kinds.fresh(make_prompt_cache(model), kinds.STEP)
    logits = model(mx.array([[0]]), cache=caches)
    mx.eval(logits, [c.state for c in caches])
    return kinds.probe(caches), int(logits.shape[-1])

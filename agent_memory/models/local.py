"""Models that are on this machine, by their files alone: nothing is loaded, fetched or converted."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from attrs import field, frozen

from agent_memory.errors import AgentMemoryError, ModelNotFoundError
from agent_memory.models import directory, starter
from agent_memory.models.gguf import check_gguf
from agent_memory.models.resolve import BACKEND_HINT, HubId, Source, default_cache_dir, locate

_NOT_HERE = "not here yet: fetched when it is first used"


@frozen(kw_only=True)
class LocalModel:
    """A model's files. ``name``: what ``Memory`` is given; "(starter)" for no name at all."""

    name: str
    source: Source
    path: Path | None  #: None: not on this machine
    n_bytes: int = 0
    n_values: int | None = None  #: weights, each packed one counted
    architecture: str | None = None
    context_tokens: int | None = None
    problem: str | None = None  #: why it cannot be loaded
    template: str | None = field(default=None, repr=False)  #: its chat template

    @property
    def is_supported(self) -> bool:
        """True if nothing in its files speaks against loading it."""
        return self.problem is None


def local_models(folders: Iterable[Path] = ()) -> list[LocalModel]:
    """Return the starter model, the models of the hub's cache, and those in ``folders`` or right below them."""
    found = [find(None)]
    found += [_examined(path, name, "hub") for name, path in sorted(_hub_models().items())]
    for folder in folders:
        for path in (folder, *sorted(folder.iterdir())) if folder.is_dir() else (folder,):
            if path.suffix == ".gguf" and path.is_file():
                found.append(_examined(path, str(path), "gguf"))
            elif (path / "config.json").is_file():
                found.append(_examined(path, str(path), "directory"))
    return found


def find(model: str | None) -> LocalModel:
    """Return what ``Memory(model)`` would open. Raises ModelNotFoundError, for a hub id that is not cached too."""
    if model is None:
        made = sorted(default_cache_dir().glob(f"{starter.NAME}-v{starter.FORMAT_VERSION}-*/config.json"))
        if made:
            return _examined(made[0].parent, "(starter)", "starter")
        return LocalModel(name="(starter)", source="starter", path=None, problem=_NOT_HERE)
    located = locate(model) if not Path(model).exists() else Path(model)
    if isinstance(located, HubId):
        path = _hub_models().get(located.name)
        if path is None:
            raise ModelNotFoundError(
                f"{model!r} is no folder or file here, and the hub's cache lacks it. Memory({model!r}) fetches it."
            )
        return _examined(path, located.name, "hub")
    assert located is not None
    return _examined(located, model, "gguf" if located.suffix.lower() == ".gguf" else "directory")


def _examined(path: Path, name: str, source: Source) -> LocalModel:
    try:
        return _gguf(path, name) if source == "gguf" else _directory(path, name, source)
    except (AgentMemoryError, OSError) as error:
        return LocalModel(name=name, source=source, path=path, n_bytes=_size(path), problem=str(error))


def _gguf(path: Path, name: str) -> LocalModel:
    header = check_gguf(path)
    template = header.metadata.get("tokenizer.chat_template")
    context = header.metadata.get("llama.context_length")
    return LocalModel(
        name=name,
        source="gguf",
        path=path,
        n_bytes=_size(path),
        n_values=header.n_values,
        architecture="llama",
        context_tokens=context if isinstance(context, int) else None,
        template=template if isinstance(template, str) else None,
    )


def _directory(path: Path, name: str, source: Source) -> LocalModel:
    directory.check_directory(path)
    config = directory.read_json(path, "config.json")
    text = config.get("text_config")
    context = (text if isinstance(text, dict) else config).get("max_position_embeddings")
    return LocalModel(
        name=name,
        source=source,
        path=path,
        n_bytes=_size(path),
        n_values=directory.count_values(path),
        architecture=str(config["model_type"]),
        context_tokens=context if isinstance(context, int) else None,
        problem=_problem(str(config["model_type"])),
        template=directory.chat_template(path),
    )


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else (path,)) if file.is_file())


def _problem(model_type: str) -> str | None:
    """Why mlx-lm cannot run a model type; None where it can. Looks at its files: importing it takes a second."""
    spec = importlib.util.find_spec("mlx_lm")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        return BACKEND_HINT
    folder = Path(places[0])
    file = _renamed(folder).get(model_type, model_type).replace("-", "_")
    if (folder / "models" / f"{file}.py").is_file():
        return None
    return f"this version of mlx-lm has no model type {model_type!r}"


def _renamed(folder: Path) -> Mapping[str, str]:
    """Model types that mlx-lm runs as another (mlx-lm: mlx_lm/utils.py, ``MODEL_REMAPPING``)."""
    for node in ast.parse((folder / "utils.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["MODEL_REMAPPING"]:
            return dict(ast.literal_eval(node.value))
    return {}


def _hub_models() -> dict[str, Path]:
    """The folder of each model in the hub's cache, by its id."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return {}
    found = {}
    for repository in Path(HF_HUB_CACHE).glob("models--*--*"):
        snapshot = next(_snapshots(repository), None)
        if snapshot is not None:
            found[repository.name.removeprefix("models--").replace("--", "/")] = snapshot
    return found


def _snapshots(repository: Path) -> Iterator[Path]:
    """Folders of a cached model, that of its main branch first."""
    main = repository / "refs" / "main"
    if main.is_file() and (named := repository / "snapshots" / main.read_text().strip()).is_dir():
        yield named
    yield from sorted(path for path in (repository / "snapshots").glob("*") if path.is_dir())

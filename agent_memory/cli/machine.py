"""Commands on this machine and its models: stats, doctor, tune, models, config, version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent_memory.cli.app import DAMAGE, AsJSON, KeyFile, Model, Salt, Store, memory_of
from agent_memory.cli.printing import plain, print_json, print_table, say
from agent_memory.views.units import size


def stats(
    model: Model = None, store: Store = None, salt: Salt = "", key_file: KeyFile = None, as_json: AsJSON = False
) -> None:
    """Open the model and the store, and print every figure of both."""
    with memory_of(model, store, salt, key_file) as memory:
        found = memory.stats()
    if as_json:
        print_json(plain(found))
    else:
        print_table(("figure", "value"), [(name, str(value)) for name, value in found.rows()])


def doctor(
    model: Model = None,
    store: Store = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of each choice why, and what would change it.")
    ] = False,
    key_file: KeyFile = None,
    as_json: AsJSON = False,
) -> None:
    """Say what was found on this machine, what was chosen and where from, and what would make it faster."""
    with memory_of(model, store, "", key_file) as memory:
        found = memory.doctor(explain=explain)
    if as_json:
        print_json(found.to_dict())
    elif explain:
        say(str(found))
    else:
        chosen = {one.name for one in found.choices}
        print_table(("found", "value"), [(name, str(v)) for name, v in found.facts.items() if name not in chosen])
        say("")
        print_table(("chosen", "value", "from"), [(one.name, one.shown, one.source) for one in found.choices])
        for line in found.advice:
            say(f"\nadvice: {line}")
        say("\n--explain says of each choice why, and what would change it")


def tune(
    model: Model = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", help="Tokens of the prompt that prefill steps are timed on; 1024, on a GPU 4096."),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Measure prefill steps, batch widths, codecs and BLAS threads on this machine; say which settings are best."""
    with memory_of(model, ":memory:", "") as memory:
        found = memory.tune(n_tokens=tokens)
    if as_json:
        told = {"trials": [plain(one) for one in found.trials], "notes": list(found.notes)}
        print_json({**told, "environment": dict(found.environment)})
        return
    print_table(("setting", "value", "measured", ""), found.rows())
    for line in found.notes:
        say(line)


def list_models(
    context: typer.Context,
    folder: Annotated[list[Path] | None, typer.Option(help="Look for models in this folder too; repeatable.")] = None,
    as_json: AsJSON = False,
) -> None:
    """List the models on this machine: the starter model, the hub's cache, and folders that you name."""
    if context.invoked_subcommand is not None:
        return
    from agent_memory.models.local import local_models

    found = local_models(folder or ())
    if as_json:
        print_json([{**plain(one), "is_supported": one.is_supported} for one in found])
        return
    rows = [
        (one.name, one.source, size(one.n_bytes), _count(one.n_values), one.architecture or "", one.problem or "yes")
        for one in found
    ]
    print_table(("model", "source", "on disk", "weights", "architecture", "supported"), rows)


def check_model(
    model: Annotated[str, typer.Argument(help="A folder, a .gguf file, or a hub id that the hub's cache holds.")],
    as_json: AsJSON = False,
) -> None:
    """Check a model without reading its weights: caches, tools, template. Exit code 3 where it cannot be used."""
    from agent_memory.runner.checking import check

    found = check(model)
    if as_json:
        print_json({**plain(found), "is_supported": found.is_supported})
    else:
        print_table(("what", "found"), found.rows())
    if not found.is_supported:
        raise typer.Exit(DAMAGE)


def _count(n_values: int | None) -> str:
    if n_values is None:
        return ""
    return f"{n_values / 1e9:.1f} B" if n_values >= 1e9 else f"{n_values / 1e6:.0f} M"


def config(as_json: AsJSON = False) -> None:
    """Print every setting with its default."""
    import attrs

    from agent_memory.config import Config

    defaults = {one.name: getattr(Config(), one.name) for one in attrs.fields(Config)}
    if as_json:
        print_json(defaults)
    else:
        print_table(("setting", "default"), [(name, repr(value)) for name, value in defaults.items()])


def version(as_json: AsJSON = False) -> None:
    """Print the versions of the library, of MLX and of mlx-lm."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    import agent_memory

    found = {"agent_memory": agent_memory.__version__}
    for package in ("mlx", "mlx-lm"):
        try:
            found[package] = version_of(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if as_json:
        print_json(found)
    else:
        print_table(("package", "version"), list(found.items()))

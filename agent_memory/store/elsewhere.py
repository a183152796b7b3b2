"""Ids that are stored under another identity: of another model, or of another tenant. Reads, changes nothing."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
from attrs import frozen

from agent_memory.prefix.chunks import common_prefix
from agent_memory.prefix.index import Ids, Segment
from agent_memory.store.catalog import Catalog
from agent_memory.store.manifest import Manifest

Whose = Literal["other_model", "other_tenant"]

_MOST_FILES = 64  #: files of other identities whose ids are read for one look-up, the newest first
#: What the facts of a model say of how it runs, not of what it is.
_RUNNING = frozenset({"grid"})


@frozen
class Elsewhere:
    """The longest prefix of some ids that another identity has stored, as far as one file tells."""

    n_tokens: int
    whose: Whose


def elsewhere(catalog: Catalog, manifest: Manifest, ids: Ids) -> Elsewhere | None:
    """Where else a prefix of ``ids`` is stored. Reads the ids of at most ``_MOST_FILES`` files."""
    with catalog.lock:
        firsts = [
            one
            for one in catalog.segments.values()
            if one.start == 0 and one.identity != catalog.identity and one.is_readable and not one.is_hidden
        ]
    if not firsts or not len(ids):
        return None
    best: tuple[int, Segment] | None = None
    for segment in sorted(firsts, key=lambda one: -one.used_s)[:_MOST_FILES]:
        stored = _ids_of(catalog, segment)
        shared = common_prefix(stored, ids) if len(stored) and stored[0] == ids[0] else 0
        if shared and (best is None or shared > best[0]):
            best = (shared, segment)
    if best is None:
        return None
    facts = manifest.all_facts()
    mine, theirs = facts.get(catalog.identity, {}), facts.get(best[1].identity, {})
    is_same_model = bool(mine) and _model(mine) == _model(theirs)
    return Elsewhere(best[0], "other_tenant" if is_same_model else "other_model")


def _model(facts: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in facts.items() if name not in _RUNNING}


def _ids_of(catalog: Catalog, segment: Segment) -> Ids:
    """A segment's ids: the last bytes of its file; none where they cannot be read. Not verified: nothing is served."""
    try:
        fd = os.open(catalog.path(segment), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return np.zeros(0, np.uint32)
    try:
        raw = os.pread(fd, 4 * segment.n_tokens, segment.n_bytes - 4 * segment.n_tokens)
    except OSError:
        raw = b""
    finally:
        os.close(fd)
    return np.frombuffer(raw[: len(raw) // 4 * 4], "<u4")

"""A workspace as lines of JSON, and back: one line a text, with what was learnt of its items.

Ids are not written: they differ from file to file. Items are named by the number of their text's line and their place
in it. Texts are filed anew on the way in, so that rules of a later version apply; vectors are computed anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

from agent_memory.config import is_text
from agent_memory.errors import AgentMemoryError, UnsupportedParameterError, repr_of
from agent_memory.recall.extraction import KINDS
from agent_memory.recall.filing import file_texts, file_typed, prepare
from agent_memory.recall.learning import RELATIONS
from agent_memory.recall.scope import Scope
from agent_memory.recall.slots import assert_again, supersede
from agent_memory.recall.storage import Rows
from agent_memory.recall.told import Told
from agent_memory.recall.typed import Typed
from agent_memory.recall.types import TEXT_KINDS

FORMAT = "agent-memory recall 1"
_IN_PLACE = "ORDER BY found_by IS NOT NULL, item"  #: an item's place in its text: what rules found stands first
_TIMES = (-6.22e10, 2.54e11)  #: Unix times of a calendar's years 1 to 9999
_MANY = 1 << 53
_LEARNT = ("net_useful", "useful_s", "n_used", "used_s", "pinned_s")


def lines(db: Rows, scope: Scope) -> Iterator[str]:
    """Yield the lines of a workspace, the header first. Inside a read transaction."""
    yield json.dumps({"format": FORMAT})
    sql = (
        "SELECT text, kind, role, speaker, source, at, last_at, created_s, count, body FROM texts "
        "WHERE workspace = ? ORDER BY text"
    )
    for text, kind, role, speaker, source, at, last_at, created_s, count, body in db.execute(sql, (scope.workspace,)):
        row: dict[str, Any] = {
            "kind": kind, "role": role, "speaker": speaker, "source": source, "at": at, "last_at": last_at,
            "created_s": created_s, "count": count, "body": body,
        }  # fmt: skip
        if learnt := _learnt(db, text):
            row["learnt"] = learnt
        if found := _found(db, text):
            row["found"] = found
        yield json.dumps(row, ensure_ascii=False)
    names = _names(db, scope)
    sql = "SELECT item, relation, other FROM links WHERE workspace = ? ORDER BY item, relation, other"
    for item, relation, other in db.execute(sql, (scope.workspace,)):
        yield json.dumps({"link": relation, "item": names[item], "other": names[other]})
    sql = "SELECT item, merged_into FROM items WHERE workspace = ? AND merged_into IS NOT NULL ORDER BY item"
    for item, other in db.execute(sql, (scope.workspace,)):
        yield json.dumps({"link": "merged_into", "item": names[item], "other": names[other]})


def write(db: Rows, scope: Scope, file: IO[str]) -> int:
    """Write ``lines`` to an open file; return how many. Raises UnsupportedParameterError for a path."""
    if not callable(getattr(file, "write", None)):
        raise UnsupportedParameterError(f"file must be a text file that is open, got {type(file).__name__}")
    n = 0
    for n, line in enumerate(lines(db, scope), start=1):  # noqa: B007
        file.write(f"{line}\n")
    return n


def read(db: Rows, scope: Scope, texts: Iterable[str], clean: Callable[[str], str], now: float) -> list[int]:
    """File the texts of exported ``lines``; return those that were new. Inside a write transaction.

    ``clean``: redacts; what was exported is clean, what was written into the file since may not be.
    """
    if not isinstance(texts, Iterable):
        raise UnsupportedParameterError(f"file must be an open file or lines of text, got {type(texts).__name__}")
    numbered: list[int] = []  # the text of each line
    new: list[int] = []
    for number, line in enumerate(texts):
        row = _parsed(line, number)
        if number == 0:
            if row.get("format") != FORMAT:
                raise UnsupportedParameterError(
                    f"line 1 is not {repr_of(FORMAT)}: this is no export of a context memory"
                )
            continue
        try:
            if "link" in row:
                _link(db, scope, row, numbered)
            else:
                text, is_new = _file(db, scope, row, clean, now)
                numbered.append(text)
                new.extend([text] if is_new else [])
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
            if isinstance(error, AgentMemoryError):
                raise
            raise UnsupportedParameterError(
                f"line {number + 1} is no line of an export ({repr_of(error)}). Nothing was imported"
            ) from None
    return new


def _learnt(db: Rows, text: int) -> dict[str, list[Any]]:
    """The place in its text of each item of which something was learnt, with what was learnt."""
    sql = f"SELECT {', '.join(_LEARNT)} FROM items WHERE text = ? {_IN_PLACE}"
    return {str(place): list(row) for place, row in enumerate(db.execute(sql, (text,))) if any(row)}


def _found(db: Rows, text: int) -> list[list[Any]]:
    """What an extractor found in a text: rules do not find it again."""
    sql = "SELECT found_by, kind, start, stop FROM items WHERE text = ? AND found_by IS NOT NULL ORDER BY item"
    return [list(row) for row in db.execute(sql, (text,))]


def _names(db: Rows, scope: Scope) -> dict[int, list[int]]:
    """Item -> [number of its text's line, place in it]."""
    sql = "SELECT item, text FROM items WHERE workspace = ? ORDER BY text, found_by IS NOT NULL, item"
    numbers: dict[int, int] = {}
    places: dict[int, int] = {}
    names = {}
    for item, text in db.execute(sql, (scope.workspace,)):
        number = numbers.setdefault(text, len(numbers))
        places[text] = places.get(text, -1) + 1
        names[item] = [number, places[text]]
    return names


def _parsed(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, TypeError, RecursionError) as error:
        raise UnsupportedParameterError(f"line {number + 1} is no JSON: {error}. Nothing was imported") from None
    if not isinstance(row, dict):
        raise UnsupportedParameterError(f"line {number + 1} is no object. Nothing was imported")
    return row


def _ensure_sound(row: Mapping[str, Any]) -> None:
    """Raise ValueError for values that no export has: some of them would be stored, and raise with the next recall."""
    for name in ("kind", "role", "body", "speaker", "source"):
        if not (is_text(row[name]) or (row[name] is None and name in ("speaker", "source"))):
            raise ValueError(f"{name} is no text: {repr_of(row[name])}")
    if row["kind"] not in TEXT_KINDS:
        raise ValueError(f"kind is {repr_of(row['kind'])}")
    if not all(_is_number(row[name], *_TIMES) for name in ("at", "last_at", "created_s")):
        raise ValueError("its times are none")
    if type(row["count"]) is not int or not 0 < row["count"] < _MANY:
        raise ValueError(f"count is {repr_of(row['count'])}")
    for place, values in row.get("learnt", {}).items():
        are_numbers = len(values) == len(_LEARNT) and all(
            type(value) is int and 0 <= value < _MANY
            if name == "n_used"
            else _is_number(value, -_MANY, _MANY) or (value is None and name == "pinned_s")
            for name, value in zip(_LEARNT, values, strict=True)
        )
        if not (place.isdecimal() and are_numbers):
            raise ValueError(f"what was learnt is {repr_of(values)}")


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least < value < most


def _file(db: Rows, scope: Scope, row: dict[str, Any], clean: Callable[[str], str], now: float) -> tuple[int, bool]:
    _ensure_sound(row)
    speaker, source = (clean(row[name]) if row[name] is not None else None for name in ("speaker", "source"))
    told = Told(
        kind=row["kind"], body=clean(row["body"]), role=row["role"], speaker=speaker, source=source, at=float(row["at"])
    )
    prepared = prepare(told)
    filed = file_texts(db, scope, [prepared], now)
    sql = "SELECT text FROM texts WHERE workspace = ? AND hash = ?"
    (text,) = db.execute(sql, (scope.workspace, prepared.digest)).fetchone()
    if filed.n_texts:
        sql = "UPDATE texts SET last_at = ?, created_s = ?, count = ? WHERE text = ?"
        db.execute(sql, (row["last_at"], row["created_s"], row["count"], text))
        supersede(db, scope, assert_again(db, scope, text, row["last_at"]))
        for found_by, kind, start, stop in row.get("found", []):
            if kind not in KINDS or not 0 <= start < stop <= len(told.body):
                raise IndexError(f"an item of kind {repr_of(kind)} at {start} to {stop}")
            file_typed(db, scope, text, [Typed(kind=kind, start=start, stop=stop)], str(found_by))
        items = [item for (item,) in db.execute(f"SELECT item FROM items WHERE text = ? {_IN_PLACE}", (text,))]
        for place, values in row.get("learnt", {}).items():
            if int(place) < len(items):
                sql = f"UPDATE items SET {', '.join(f'{name} = ?' for name in _LEARNT)} WHERE item = ?"
                db.execute(sql, (*values, items[int(place)]))
    return int(text), bool(filed.n_texts)


def _link(db: Rows, scope: Scope, row: dict[str, Any], numbered: list[int]) -> None:
    if row["link"] not in (*RELATIONS, "merged_into"):
        raise ValueError(f"link is {repr_of(row['link'])}")
    ends = []
    for number, place in (row["item"], row["other"]):
        if type(number) is not int or type(place) is not int or number < 0 or not 0 <= place < _MANY:
            raise ValueError(f"an item is {repr_of([number, place])}")
        sql = f"SELECT item FROM items WHERE text = ? {_IN_PLACE} LIMIT 1 OFFSET ?"
        found = db.execute(sql, (numbered[number], place)).fetchone()
        if found is None:
            return  # a rule of another version cut the text elsewhere
        ends.append(int(found[0]))
    if row["link"] == "merged_into":
        db.execute("UPDATE items SET merged_into = ? WHERE item = ?", (ends[1], ends[0]))
    else:
        sql = "INSERT INTO links (workspace, item, relation, other) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
        db.execute(sql, (scope.workspace, ends[0], row["link"], ends[1]))

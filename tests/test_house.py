"""The house as drawn: no cycles, rooms of a bearable size, and one owner of each state."""

from __future__ import annotations

import re

from tests.parts.house import arrows_within, cycles, import_graph, lines, modules, room_graph
from tests.parts.ownership import outside_members

MAX_MEMBERS = 12
MAX_STORE_ARROWS = 45
MAX_ROOM_SHARE = 0.18  #: of the package's lines

#: Machines of which other files use more members than that, each with why.
WIDE = {
    "prefix.pieces.Segment": (34, "the one stored value: rows, headers and figures are derived from its fields"),
    "store.catalog.Catalog": (24, "the set of segments in memory, the attached model and the disk behind it"),
    "store.store.Store": (38, "logs for requests/ and KV for tiers/: one method for each thing asked of a disk"),
    "scheduler.request.Request": (20, "what was asked, read field by field where a row runs"),
    "scheduler.row.Row": (15, "a running request: each phase reads and moves its own part of it"),
    "scheduler.engine.Engine": (30, "the only way to the engine thread: one method for each thing asked of it"),
    "requests.asking.Asking": (24, "what a Memory and its agents are asked, and the machines that answer"),
    "requests.registry.Agents": (16, "logs by name, and the changes of them that the engine thread makes"),
    "protocols.ModelRunner": (13, "the seam: a protocol"),
    "protocols.Tokenizer": (14, "the seam: a protocol"),
    "log.log.Log": (33, "the truth: read wherever a prompt is made"),
    "tiers.tiers.Tiers": (13, "stored KV as the scheduler sees it: look-up, sources, figures, and what is expected"),
    "tiers.hot.Lineage": (14, "a value that changes: the live KV of an idle conversation"),
    "toolcall.output.Output": (13, "events of a reply, one method a kind"),
}


def test_no_files_import_one_another() -> None:
    assert cycles(import_graph()) == []


def test_a_cycle_is_found_wherever_its_imports_stand() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("a")}
    assert cycles(graph) == [["a", "b", "c"]]
    assert "types" in import_graph()["protocols"]  # imported under TYPE_CHECKING


def test_rooms_import_no_room_that_imports_them() -> None:
    assert cycles(room_graph(import_graph())) == []


def test_the_log_knows_no_room_of_kv_not_even_for_types() -> None:
    kv = {"prefix", "kvfile", "store", "carry", "reader", "tiers", "kvcache", "mlxcache", "runner", "echo", "scheduler"}
    assert room_graph(import_graph())["log"].isdisjoint(kv)
    assert "log" in room_graph(import_graph())["store"]


def test_other_files_use_few_members_of_a_machine() -> None:
    found = {name: len(members) for name, members in outside_members().items() if len(members) > MAX_MEMBERS}
    assert {name: n for name, n in found.items() if n > WIDE.get(name, (0, ""))[0]} == {}


def test_the_store_is_read_file_by_file() -> None:
    assert arrows_within(import_graph(), "store") <= MAX_STORE_ARROWS


def test_no_room_outgrows_the_others() -> None:
    name, n_lines = lines().most_common(1)[0]
    assert n_lines <= MAX_ROOM_SHARE * sum(lines().values()), name


def test_the_figures_count_what_is_there() -> None:
    assert sum(lines().values()) == sum(path.read_text(encoding="utf-8").count("\n") for path in modules().values())
    assert len(outside_members()["store.store.Store"]) > 5


def test_whoever_catches_everything_says_why() -> None:
    broad = re.compile(r"\s*except( \(?(Base)?Exception\b.*)?:")
    found = [
        f"{name}:{number}"
        for name, path in modules().items()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if broad.match(line) and not re.search(r":  # (noqa: BLE001 - )?\w", line)
    ]
    assert found == []

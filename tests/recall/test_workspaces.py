"""Workspaces never meet: what is done in others changes nothing that one can see of its own."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from agent_memory import AgentMemoryError, ConfigError, ContextMemory, ItemNotFoundError
from tests.parts.stores import Stores
from tests.parts.waiting import together

NOW = 1_800_000_000.0
WORDS = "ferry harbour anchor cargo pilot storm rope deck mast sail".split()


def text(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.3:
        return f"The master of the {chance.choice(WORDS)} is {chance.choice(WORDS)}."
    if kind < 0.5:
        return f"We decided to paint the {chance.choice(WORDS)} {chance.choice(WORDS)}."
    return f"{' '.join(chance.choices(WORDS, k=chance.randint(2, 9)))} {chance.randint(0, 30)}"


def act(memory: ContextMemory, chance: random.Random, ids: list[int]) -> None:
    """One random operation; ``ids``: those that this workspace knows."""
    what = chance.random()
    at = NOW + chance.randint(0, 40)
    if what < 0.45 or not ids:
        ids.extend(memory.remember(text(chance), source=chance.choice([None, "a", "b"]), at=at).ids)
    elif what < 0.6:
        memory.remember([{"role": chance.choice(["user", "assistant"]), "content": text(chance)}], source="talk", at=at)
    elif what < 0.85:
        harmless(memory, chance, chance.choice(ids))
    elif what < 0.9:
        memory.working_set(text(chance), budget_tokens=chance.choice([0, 300, 2_000]))
    elif what < 0.94:
        memory.consolidate()
    elif what < 0.97:
        memory.maintain()
    else:
        memory.forget(chance.choice(WORDS) + " " + chance.choice(WORDS))


def harmless(memory: ContextMemory, chance: random.Random, item: int) -> None:
    with suppress(ItemNotFoundError):  # forgotten meanwhile, or never there
        chance.choice(
            [
                lambda: memory.feedback(item, chance.choice([True, False])),
                lambda: memory.pin(item, chance.choice([True, False])),
                lambda: memory.link(item, item - 1, "related"),
            ]
        )()


def seen(memory: ContextMemory) -> object:
    """All that can be seen of a workspace, but for ids."""
    file = io.StringIO()
    memory.export_jsonl(file)
    hits = [
        [(hit.item.text, hit.item.kind, hit.item.count, dict(hit.parts)) for hit in memory.recall(query, k=5)]
        for query in ("ferry harbour", "summary of the anchor and the pilot", "who is the master of the mast")
    ]
    stats = memory.stats()
    figures = (stats.n_texts, stats.n_duplicates, stats.n_items, stats.n_superseded)
    audit = [(row.at, row.action, "plan" in row.detail or dict(row.detail)) for row in memory.audit(limit=10_000)]
    return file.getvalue(), hits, figures, [entry[:2] for entry in audit]


@pytest.mark.parametrize("seed", range(4))
def test_2000_operations_over_workspaces_leave_each_as_if_it_were_alone(seed: int, store: Stores) -> None:
    """Three workspaces in one file, operated on at random; and each of them alone in a file of its own."""
    names = ["a", "b", "default"]
    with ContextMemory(store(), clock=lambda: NOW) as shared:
        handles = {name: shared if name == "default" else shared.workspace(name) for name in names}
        alone = {name: ContextMemory(store(), workspace=name, clock=lambda: NOW) for name in names}
        ids: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in names}
        order = random.Random(seed)
        for step in range(500):
            name = order.choice(names)
            for handle, known in zip((handles[name], alone[name]), ids[name], strict=True):
                act(handle, random.Random(f"{seed} {step}"), known)
        for name in names:
            assert seen(handles[name]) == seen(alone[name])
            alone[name].close()
        assert shared.check().damaged == ()


def test_an_id_of_another_workspace_is_not_found(store: Stores) -> None:
    with ContextMemory(store()) as mine:
        theirs = mine.workspace("theirs")
        item = theirs.remember("Our deadline is Friday.").ids[0]
        own = mine.remember("Our deadline is Monday.").ids[0]
        for call in (mine.expand, mine.history, mine.forget, mine.pin, lambda i: mine.feedback(i, True),
                     lambda i: mine.link(own, i), lambda i: mine.link(i, own)):  # fmt: skip
            with pytest.raises(ItemNotFoundError):
                call(item)  # type: ignore[operator]
        plan = theirs.consolidate().id
        with pytest.raises(AgentMemoryError):
            mine.undo(plan or 1)
        assert mine.forget(everything=True) == 1
        assert [hit.item.text for hit in theirs.recall("deadline")] == ["Our deadline is Friday."]


def test_the_salt_is_part_of_a_workspace(store: Stores) -> None:
    path = store("recall.sqlite")
    with ContextMemory(path, salt="one") as one, ContextMemory(path, salt="two") as two:
        one.remember("The ferry is red.")
        assert two.recall("ferry") == []
        assert two.workspace("default").recall("ferry") == []


def test_a_workspace_needs_a_name(store: Stores) -> None:
    for wrong in ("", "x" * 201, "two\nlines", 7):
        with pytest.raises(ConfigError, match="workspace must be"):
            ContextMemory(store(), workspace=wrong)  # type: ignore[arg-type]


def test_eight_threads_lose_no_update(store: Stores) -> None:
    with ContextMemory(store("recall.sqlite")) as memory:
        shared = memory.remember("The ferry is red, says everybody.").ids[0]

        def work(number: int) -> None:
            for n in range(15):
                memory.remember(f"Thread {number} saw the ferry for the {n}th time.")
                memory.remember("Told by all.")
                assert memory.recall("ferry")
                memory.feedback(shared, 0.5)
                memory.working_set("ferry", window=f"w{number}")

        together(work)
        assert memory.stats().n_texts == 1 + 8 * 15 + 1
        assert memory.stats().n_duplicates == 8 * 15 - 1
        with memory._database.read() as db:
            [(net,)] = db.execute("SELECT net_useful FROM items WHERE item = ?", (shared,))
        assert net == pytest.approx(60.0, rel=1e-3)
        assert memory.check().damaged == ()


def test_forgetting_while_others_read_and_write_loses_nothing_else(store: Stores) -> None:
    with ContextMemory(store("recall.sqlite")) as memory:
        failures: list[BaseException] = []
        is_over = threading.Event()

        def work(number: int) -> None:
            try:
                n = 0
                while not is_over.is_set():
                    memory.remember(f"Keeper {number} lit lamp {n}.", source=f"keeper {number}")
                    assert memory.recall("lamp")
                    n += 1
            except BaseException as error:  # noqa: BLE001 - shown by the assertion below
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for n in range(8):
            memory.remember(f"The quagga number {n} must go.")
            assert memory.forget("quagga") == 1
        is_over.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert memory.check().damaged == ()
        assert memory.recall("quagga") == []
        assert b"quagga" not in store.bytes()


def test_a_memory_alone_loads_neither_mlx_nor_the_engine() -> None:
    program = (
        "import sys\nfrom agent_memory import ContextMemory\n"
        "memory = ContextMemory()\nmemory.remember('The ferry is red.')\nassert memory.working_set('ferry').items\n"
        "names = {'.'.join(name.split('.')[:n]) for name in sys.modules for n in (1, 2)}\n"
        "rooms = {f'agent_memory.{room}' for room in ('scheduler', 'store', 'runner', 'memory')}\n"
        "assert not names & ({'mlx', 'mlx_lm', 'transformers', 'torch'} | rooms), names\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])

"""What context memory recalls, how fast, and what its working sets cost a prompt.

    python -m benchmarks.recall [quality] [lift] [cap] [facts] [typed] [speed] [sets] [reading]
        [--items N] [--embedder FOLDER] [--json F]

Retrieval is measured on the development halves in ``../shared/data`` (see the README there); what is absent is skipped
with a message. One setting for both corpora: the defaults. It was tuned on conversation ``conv-26`` of LoCoMo and on
the first two chats of BEAM; "tuned" and "apart" are reported on their own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import sqlite3
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from agent_memory import Config, ContextMemory, Embedder, Memory, Weights
from benchmarks.common import write_json
from benchmarks.plain_fts5 import VIEWS, recall_at

DATA = Path(__file__).parents[2] / "shared" / "data"
TUNED = {"conv-26", "1", "2"}
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}


@frozen
class Turn:
    """One turn of a corpus."""

    id: Any
    role: str
    speaker: str | None
    text: str
    at: datetime
    session: str


@frozen
class Asked:
    """A question and the turns that answer it."""

    question: str
    evidence: frozenset[Any]
    category: str


@frozen
class Conversation:
    """One store's worth of turns, and what is asked of it."""

    name: str
    turns: Sequence[Turn]
    questions: Sequence[Asked]


def load(name: str) -> Any:
    path = DATA / name
    if not path.exists():
        print(f"skipped: {path} is not there")
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def locomo() -> Iterator[Conversation]:
    for entry in load("locomo-dev.json") or ():
        said, turns, n = entry["conversation"], [], 1
        while f"session_{n}" in said:
            at = datetime.strptime(said[f"session_{n}_date_time"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
            for turn in said[f"session_{n}"]:
                caption = f" [image: {turn['blip_caption']}]" if "blip_caption" in turn else ""
                turns.append(Turn(turn["dia_id"], "user", turn["speaker"], turn["text"] + caption, at, f"session {n}"))
            n += 1
        known = {turn.id for turn in turns}
        asked = []
        for question in entry["qa"]:
            found = {one for text in question["evidence"] for one in re.findall(r"D\d+:\d+", text)} & known
            if found:
                asked.append(Asked(question["question"], frozenset(found), CATEGORIES[question["category"]]))
        yield Conversation(entry["sample_id"], turns, asked)


def beam() -> Iterator[Conversation]:
    for entry in load("beam-100k-dev.json") or ():
        turns, at = [], datetime(2024, 1, 1, tzinfo=UTC)
        for batch in entry["chat"]:
            for turn in (turn for group in batch["turns"] for turn in group):
                if anchor := turn.get("time_anchor"):
                    at = _anchored(anchor) or at
                text = re.sub(r"\s*->->.*$", "", turn["content"])  # the generator's own marks
                turns.append(Turn(turn["id"], turn["role"], None, text, at, f"batch {batch['batch_number']}"))
        known = {turn.id for turn in turns}
        asked = [
            Asked(question["question"], frozenset(found), category)
            for category, questions in entry["questions"].items()
            for question in questions
            if (found := set(_flat(question.get("source_chat_ids"))) & known)
        ]
        yield Conversation(str(entry["chat_id"]), turns, asked)


def _anchored(anchor: str) -> datetime | None:
    try:
        return datetime.strptime(anchor, "%B-%d-%Y").replace(tzinfo=UTC)
    except ValueError:
        return None


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [one for part in value.values() for one in _flat(part)]
    return (
        [one for part in value for one in _flat(part)] if isinstance(value, list) else [] if value is None else [value]
    )


class Kept:
    """An embedder whose vectors lie in a file: a run that was stopped goes on, and weights are tried without it."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self._embedder, self.dim, self.fingerprint = embedder, embedder.dim, embedder.fingerprint
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        keys = [hashlib.blake2b(f"{self.fingerprint} {text}".encode(), digest_size=16).digest() for text in texts]
        sql = "SELECT value FROM vectors WHERE key = ?"
        known = [self._db.execute(sql, (key,)).fetchone() for key in keys]
        if missing := [i for i, row in enumerate(known) if row is None]:
            for i, vector in zip(missing, self._embedder.embed([texts[i] for i in missing]), strict=True):
                known[i] = (np.asarray(vector, np.float32).tobytes(),)
            self._db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", [(keys[i], *known[i]) for i in missing])
        return np.stack([np.frombuffer(row[0], np.float32) for row in known])


def remembered(conversation: Conversation, embedder: Embedder | Memory | None) -> tuple[ContextMemory, dict[int, Turn]]:
    """A memory of a conversation, and the turn that each of its items is of."""
    if isinstance(embedder, Memory):
        memory = embedder.context.workspace(conversation.name)
    else:
        memory = ContextMemory(embedder=embedder, redact=None)
    owners: dict[int, Turn] = {}
    for turn in conversation.turns:
        if turn.text.strip():
            message = {"role": turn.role, "content": turn.text, "name": turn.speaker}
            report = memory.remember([message], source=turn.session, at=turn.at)
            owners |= dict.fromkeys(report.ids, turn)
    while not memory.maintain(60_000).is_done:
        pass
    return memory, owners


def asked_all(
    conversations: Sequence[Conversation], embedder: Embedder | Memory | None, weights: Weights
) -> list[dict[str, Any]]:
    """One row a question: recall of its evidence turns, reciprocal rank, whether a session was hit, milliseconds."""
    rows = []
    for conversation in conversations:
        memory, owners = remembered(conversation, embedder)
        sessions = {turn.id: turn.session for turn in conversation.turns}
        for asked in conversation.questions:
            start = time.perf_counter()
            hits = memory.recall(asked.question, k=20, weights=weights)
            ms = (time.perf_counter() - start) * 1e3
            got = [owners[hit.item.id] for hit in hits]
            ids = [turn.id for turn in got]
            wanted = {sessions[one] for one in asked.evidence}
            order = list(dict.fromkeys(turn.session for turn in got))
            rows.append(
                {
                    "name": conversation.name,
                    "category": asked.category,
                    "r5": len(asked.evidence & set(ids[:5])) / len(asked.evidence),
                    "r10": len(asked.evidence & set(ids[:10])) / len(asked.evidence),
                    "rr": next((1 / (i + 1) for i, one in enumerate(ids) if one in asked.evidence), 0.0),
                    "s5": bool(wanted & set(order[:5])),
                    "s10": bool(wanted & set(order[:10])),
                    "ms": ms,
                }
            )
        memory.close()
    return rows


def summed(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    def mean(key: str) -> float:
        return round(statistics.fmean(row[key] for row in rows), 3)

    return {"n": len(rows), **{key: mean(key) for key in ("r5", "r10", "rr", "s5", "s10")},
            "p50_ms": round(statistics.median(row["ms"] for row in rows), 2)}  # fmt: skip


def quality(embedder: Embedder | Memory | None, weights: Weights, only: Sequence[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    print(f"{'':26s} {'n':>5s} {'R@5':>6s} {'R@10':>6s} {'MRR':>6s} {'ses@5':>6s} {'ses@10':>6s} {'ms':>6s}")
    for corpus, found in (("LoCoMo", locomo()), ("BEAM 100K", beam())):
        conversations = [one for one in found if not only or one.name in only]
        if not conversations:
            continue
        rows = asked_all(conversations, embedder, weights)
        parts = {
            "all": rows,
            "tuned": [row for row in rows if row["name"] in TUNED],
            "apart": [row for row in rows if row["name"] not in TUNED],
        }
        parts = {name: some for name, some in parts.items() if some}
        categories = defaultdict(list)
        for row in rows:
            categories[row["category"]].append(row)
        for part, some in {**parts, **dict(sorted(categories.items()))}.items():
            got = summed(some)
            results[f"{corpus}: {part}"] = got
            figures = " ".join(f"{got[key]:6.3f}" for key in ("r5", "r10", "rr", "s5", "s10"))
            print(f"{corpus + ': ' + part:36.36s} {got['n']:5d} {figures} {got['p50_ms']:6.2f}")
    return results


def cap(share: float = 0.03) -> dict[str, Any]:
    """What is lost where words that more than ``share`` of the rows have only add to what others found.

    All conversations of a corpus in one workspace: more rows, and more that look alike. The defaults' cap is no share
    of so few rows, so nothing is frequent without this.
    """
    from agent_memory.recall import search

    kept, results = (search.FREQUENT_ITEMS, search.FREQUENT_SHARE), {}
    for corpus, conversations in (("LoCoMo", list(locomo())), ("BEAM 100K", list(beam()))):
        if not conversations:
            continue
        turns = [
            Turn((one.name, turn.id), turn.role, turn.speaker, turn.text, turn.at, f"{one.name} {turn.session}")
            for one in conversations
            for turn in one.turns
        ]
        asked = [
            Asked(question.question, frozenset((one.name, id) for id in question.evidence), question.category)
            for one in conversations
            for question in one.questions
        ]
        together = [Conversation("all", turns, asked)]
        for name, limits in (("no word is frequent", (10**9, 1.0)), (f"frequent from {share:.0%} on", (0, share))):
            search.FREQUENT_ITEMS, search.FREQUENT_SHARE = limits
            try:
                results[f"{corpus}: {name}"] = summed(asked_all(together, None, Weights()))
            finally:
                search.FREQUENT_ITEMS, search.FREQUENT_SHARE = kept
            print(f"{corpus}: {name}", results[f"{corpus}: {name}"])
    return results


def lift() -> dict[str, Any]:
    """What is gained over plain FTS5 on the conversations that settings were tuned on, and on the others.

    The two parts differ by nature; a gain that is the same on both was not fitted to one of them.
    """
    results: dict[str, Any] = {}
    for corpus, conversations in (("LoCoMo", list(locomo())), ("BEAM 100K", list(beam()))):
        if not conversations:
            continue
        ours = [{"name": row["name"], "recall": row["r10"]} for row in asked_all(conversations, None, Weights())]
        systems = {"ours": ours, **{view: recall_at(10, conversations, view) for view in VIEWS}}
        parts = {
            name: [
                statistics.fmean(row["recall"] for row in rows if (row["name"] in TUNED) == is_tuned)
                for is_tuned in (True, False)
            ]
            for name, rows in systems.items()
        }
        for name, (tuned, apart) in parts.items():
            gained = [mine - theirs for mine, theirs in zip(parts["ours"], (tuned, apart), strict=True)]
            results[f"{corpus}: {name}"] = {
                "tuned": round(tuned, 3), "apart": round(apart, 3), "difference": round(tuned - apart, 3),
                "gained_tuned": round(gained[0], 3), "gained_apart": round(gained[1], 3),
                "p": round(_chance_of(systems[name]), 3),
            }  # fmt: skip
            print(f"{corpus + ': ' + name:24s}", results[f"{corpus}: {name}"])
    return results


def _chance_of(rows: Sequence[dict[str, Any]], n: int = 10_000) -> float:
    """How often questions dealt out by chance give two parts that differ at least as much as these."""
    values = [row["recall"] for row in rows]
    size = sum(row["name"] in TUNED for row in rows)
    tuned = sum(row["recall"] for row in rows if row["name"] in TUNED)
    wanted = abs(tuned / size - (sum(values) - tuned) / (len(values) - size))
    chance, hits = random.Random(7), 0
    for _ in range(n):
        chance.shuffle(values)
        part = sum(values[:size])
        hits += abs(part / size - (sum(values) - part) / (len(values) - size)) >= wanted - 1e-12
    return hits / n


def facts() -> dict[str, Any]:
    """The newest valid fact stands before every older one that it overrules; nothing is destroyed."""
    results = {}
    for entry in load("factconsolidation-dev.json") or ():
        lines = [line for line in entry["context"].splitlines() if re.match(r"\d+\. ", line)]
        bare = [re.sub(r"^\d+\. ", "", line) for line in lines]
        with ContextMemory(redact=None) as memory:
            memory.remember(entry["context"], kind="note")
            right = n = in_ten = 0
            for question, answers in zip(entry["questions"], entry["answers"], strict=True):
                texts = [re.sub(r"^\d+\. ", "", hit.item.text) for hit in memory.recall(question, k=50)]
                in_ten += any(answer.lower() in text.lower() for answer in answers for text in texts[:10])
                gold = _gold(question, answers, bare)
                if gold is None:
                    continue
                n += 1
                older = [i for i, text in enumerate(texts) if _overruled(text, gold, answers)]
                place = texts.index(gold) if gold in texts else None
                right += place is not None and all(place < i for i in older)
            with_body = memory.recall("list of facts", k=1, as_of=time.time())
            kept = sum(len(memory.history(hit.item.id)) for hit in memory.recall(bare[0], k=1)) if with_body else 0
            stats = memory.stats()
        results[entry["name"]] = {
            "questions": len(entry["questions"]), "with_gold": n, "newest_first": round(right / n, 3) if n else None,
            "answer_in_10": round(in_ten / len(entry["questions"]), 3),
            "facts": len(lines), "items": sum(stats.n_items.values()), "superseded": stats.n_superseded, "chain": kept,
        }  # fmt: skip
        print(entry["name"], results[entry["name"]])
    return results


def _gold(question: str, answers: Sequence[str], facts_: Sequence[str]) -> str | None:
    """The last fact with an answer in it that shares the most of the question's words; None where none shares two."""
    asked = set(re.findall(r"\w+", question.lower()))
    best, most = None, 1
    for fact in facts_:
        if any(fact.rstrip(".").endswith(answer) for answer in answers):
            shared = len(asked & set(re.findall(r"\w+", fact.lower())))
            if shared >= most and shared > 1:
                best, most = fact, shared
    return best


def _overruled(text: str, gold: str, answers: Sequence[str]) -> bool:
    """True if ``text`` says the same of the same as ``gold``, up to another value."""
    for answer in answers:
        if gold.rstrip(".").endswith(answer):
            return text != gold and text.startswith(gold.rstrip(".")[: -len(answer)])
    return False


def typed() -> dict[str, Any]:
    data = load("typed-memories-dev.json")
    if not data:
        return {}
    labels = {entry["id"]: entry["memories"] for entry in data["labels"]}
    names = {"decision": "decision", "commitment": "task", "preference": "preference", "fact": "fact"}
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for snippet in data["dataset"]:
        with ContextMemory(redact=None) as memory:
            got = memory.remember(snippet["text"], kind="note").n_items
        wanted: dict[str, int] = defaultdict(int)
        for label in labels[snippet["id"]]:
            wanted[names.get(label["type"], label["type"])] += 1
        for kind in set(got) | set(wanted):
            both = min(got.get(kind, 0), wanted.get(kind, 0))
            for place, n in enumerate((both, got.get(kind, 0) - both, wanted.get(kind, 0) - both)):
                counts[kind][place] += n
    main = [sum(counts[kind][place] for kind in ("decision", "task")) for place in range(3)]
    results = {"micro-F1 decisions and commitments": round(2 * main[0] / (2 * main[0] + main[1] + main[2]), 3),
               **{kind: counts[kind] for kind in sorted(counts)}}  # fmt: skip
    print("typed items (right, wrong, missed):", results)
    return results


def reading(n_most: int) -> dict[str, Any]:
    """What the starter model adds to the rules, on labelled snippets: decisions and commitments."""
    data = load("typed-memories-dev.json")
    if not data:
        return {}
    labels = {entry["id"]: entry["memories"] for entry in data["labels"]}
    names = {"decision": "decision", "commitment": "task", "preference": "preference", "fact": "fact"}
    counts = {who: [0, 0, 0] for who in ("rules", "model", "both")}
    failures, start = 0, time.perf_counter()
    with Memory(path=":memory:", config=Config(extract=True, upkeep_ms=None)) as memory:
        for snippet in data["dataset"][:n_most]:
            context = memory.context.workspace(snippet["id"])
            context.remember(snippet["text"], kind="note")
            while not (done := context.maintain(1_000)).is_done:
                failures += done.n_extraction_failures
            failures += done.n_extraction_failures
            items = [hit.item for hit in context.recall(snippet["text"], k=50, kinds=["decision", "task"])]
            wanted = Counter(names.get(label["type"]) for label in labels[snippet["id"]])
            for who in counts:
                own = [item for item in items if who == "both" or (item.found_by is None) == (who == "rules")]
                got = Counter(item.kind for item in own)
                for kind in ("decision", "task"):
                    both = min(got[kind], wanted[kind])
                    for place, n in enumerate((both, got[kind] - both, wanted[kind] - both)):
                        counts[who][place] += n
    results = {
        who: {"right": a, "wrong": b, "missed": c, "f1": round(2 * a / max(1, 2 * a + b + c), 3)}
        for who, (a, b, c) in counts.items()
    }
    results |= {"snippets": n_most, "failures": failures, "s": round(time.perf_counter() - start, 1)}
    print("decisions and commitments, the starter model reading:", results)
    return results


def speed(n_items: int, folder: Path) -> dict[str, Any]:
    """Recall and remember over a file of ``n_items`` passages of invented words with a natural distribution."""
    path = folder / f"recall-{n_items}.sqlite"
    chance = random.Random(5)
    words = [
        "".join(chance.choices("aeiou bcdfghklmnprstvw".replace(" ", ""), k=chance.randint(3, 9)))
        for _ in range(50_000)
    ]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    cumulative = [sum(weights[:1])]
    for weight in weights[1:]:
        cumulative.append(cumulative[-1] + weight)
    length = 25 if n_items <= 200_000 else 12
    build(path, n_items, length, words, cumulative)
    start = time.perf_counter()
    memory = ContextMemory(path, redact=None)
    open_s = time.perf_counter() - start

    def ask() -> dict[str, float]:
        recalls, cpu = [], []  # on a shared machine the second is the steadier one
        for _ in range(300):
            # A question: content words, a few of them frequent.
            some = chance.choices(words, cum_weights=cumulative, k=3) + chance.choices(words[200:20_000], k=3)
            question = " ".join(some)
            start, start_cpu = time.perf_counter(), time.thread_time()
            memory.recall(question)
            recalls.append((time.perf_counter() - start) * 1e3)
            cpu.append((time.thread_time() - start_cpu) * 1e3)
        return {
            "recall_p50_ms": _rank(recalls, 0.5), "recall_p95_ms": _rank(recalls, 0.95),
            "recall_cpu_p50_ms": _rank(cpu, 0.5), "recall_cpu_p95_ms": _rank(cpu, 0.95),
        }  # fmt: skip

    as_written = ask()
    start = time.perf_counter()
    while not memory.maintain(1_000).is_done:
        pass
    upkeep_s = time.perf_counter() - start
    kept = ask()
    remembers = []
    for n in range(200):
        text = f"{n} " + " ".join(chance.choices(words, cum_weights=cumulative, k=190))
        start = time.perf_counter()
        memory.remember(text[:1024], kind="note")
        remembers.append((time.perf_counter() - start) * 1e3)
    result = {
        "items": n_items, "mb": round(memory.stats().nbytes / 1e6, 1), "open_s": round(open_s, 3),
        **kept, "as_written": as_written, "upkeep_s": round(upkeep_s, 2), "load": round(os.getloadavg()[0], 1),
        "remember_p50_ms": _rank(remembers, 0.5), "remember_p95_ms": _rank(remembers, 0.95),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
    }  # fmt: skip
    memory.close()
    print("speed", result)
    return result


def build(path: Path, n_items: int, length: int, words: Sequence[str], cumulative: Sequence[float]) -> None:
    """Fill a file; one that a stopped run left is filled further."""
    with ContextMemory(path, redact=None) as memory:
        for start in range(memory.stats().n_texts, n_items, 1_000):
            chance = random.Random(f"6 {start}")
            messages = []
            for number in range(start, min(start + 1_000, n_items)):
                text = " ".join(chance.choices(words, cum_weights=cumulative, k=length))
                messages.append({"role": "user", "content": f"{text} n{number}"})
            memory.remember(messages, source=f"talk {start}", at=1.7e9 + start)


def _rank(values: Sequence[float], share: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 2)


def sets() -> dict[str, Any]:
    """Share of the cards' bytes that a prompt computes again, over a conversation's questions in their order."""
    results = {}
    for budget in (4_000, 12_000):
        new, again, total = [], [], []
        for conversation in locomo():
            memory, _ = remembered(conversation, None)
            before = ""
            for number, asked in enumerate(conversation.questions[:100]):
                text = memory.working_set(asked.question, budget_tokens=budget).text
                kept = 0
                for a, b in zip(before, text, strict=False):
                    if a != b:
                        break
                    kept += 1
                if number and text:
                    total.append(len(text))
                    new.append(len(text) - kept)
                    again.append((len(text) - kept) / len(text))
                before = text
            memory.close()
        results[str(budget)] = {
            "sets": len(again), "computed_share": round(statistics.fmean(again), 3) if again else None,
            "mean_bytes": round(statistics.fmean(total)) if total else None,
        }  # fmt: skip
        print(f"working sets of {budget} bytes, unrelated questions in a row:", results[str(budget)])
    return results


def draw(path: str, results: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in results if results[name].get("r10") is not None]
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(names) + 1), constrained_layout=True)
    axes.barh(names[::-1], [results[name]["r10"] for name in names[::-1]], color="tab:blue")
    axes.set_xlabel("share of evidence turns in the first 10 hits, no model")
    axes.set_xlim(0, 1)
    figure.savefig(path, dpi=120)


def opened(name: str) -> Embedder | Memory:
    """A sentence model's folder, or that of a table of vectors; ``:rank`` behind it: by rank; the starter model."""
    if name == "resident":
        return Memory(path=":memory:", config=Config(embedder="resident", upkeep_ms=None))
    from agent_memory.recall.sentence_model import SentenceModel
    from agent_memory.recall.static_model import StaticModel

    folder, _, rank = name.partition(":")
    config = Path(folder, "config.json")
    if config.exists() and "model_type" in json.loads(config.read_text(encoding="utf-8")):
        return SentenceModel(folder)
    return StaticModel(folder, by_rank=rank == "rank")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["quality", "lift", "cap", "facts", "typed", "sets", "speed"])
    parser.add_argument("--items", type=int, nargs="*", default=[6_000])
    parser.add_argument("--folder", type=Path, default=Path("."), help="where the files of 'speed' lie")
    parser.add_argument("--embedder", help="a folder with a sentence model, or with a table of vectors; 'resident'")
    parser.add_argument("--only", nargs="*", default=(), help="names of conversations; all")
    parser.add_argument("--snippets", type=int, default=20, help="of labelled ones, read by the starter model")
    parser.add_argument("--similarity", type=float, default=Weights().similarity, help="what vectors count")
    parser.add_argument("--vectors", type=Path, help="a file that keeps the embedder's vectors from run to run")
    parser.add_argument("--json")
    parser.add_argument("--png")
    arguments = parser.parse_args()
    embedder = None
    if arguments.embedder:
        embedder = opened(arguments.embedder)
        if arguments.vectors and not isinstance(embedder, Memory):
            embedder = Kept(embedder, arguments.vectors)
    results: dict[str, Any] = {"embedder": arguments.embedder and Path(arguments.embedder).name}
    if "quality" in arguments.what:
        results["quality"] = quality(embedder, Weights(similarity=arguments.similarity), arguments.only)
    if "lift" in arguments.what:
        results["lift"] = lift()
    if "cap" in arguments.what:
        results["cap"] = cap()
    if "facts" in arguments.what:
        results["facts"] = facts()
    if "typed" in arguments.what:
        results["typed"] = typed()
    if "reading" in arguments.what:
        results["reading"] = reading(arguments.snippets)
    if "sets" in arguments.what:
        results["sets"] = sets()
    if "speed" in arguments.what:
        results["speed"] = [speed(n, arguments.folder) for n in arguments.items]
    write_json(arguments.json, **results)
    if arguments.png and "quality" in results:
        draw(arguments.png, results["quality"])


if __name__ == "__main__":
    main()

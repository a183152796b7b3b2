"""Episodes with planted patterns, generated from a seed: what the extractors are measured on.

This file was written before the extractors and knows nothing of them: an episode is plain data, and a gold pattern says
in plain words what was planted. Beside every kind of pattern stand its doubles: what looks like one and is none.

- tool sequences of three to five tools, now and then with another tool in between; doubles: as frequent, but the
  episodes fail; and noise whose tools are drawn by Zipf's law, so that some pairs are frequent by chance;
- decisions on which the outcome depends, their condition spelled in several ways; doubles: rare ones, and those on
  which nothing depends;
- errors whose messages differ by paths, numbers and ids, and what put them right, some steps later and among others;
  doubles: errors that nothing put right;
- tools that succeed in one context; doubles: tools used in one context that fail there.
"""

from __future__ import annotations

import string
import uuid
from collections.abc import Callable
from random import Random
from typing import Any

from attrs import field, frozen, mutable

COMMON = ("read", "search", "edit", "shell", "list", "think")
RARE = tuple(
    f"{verb}_{noun}" for verb in ("get", "put", "scan", "plot", "sync") for noun in "lake hill barn reef".split()
)
VERBS = ("build", "fix", "extend", "review", "migrate", "document")
NOUNS = ("the invoice service", "a search page", "the nightly report", "an image cache", "the login flow", "a parser")
LANGUAGES = ("python", "rust", "go", "typescript")
DOMAINS = ("web", "data", "infra", "games")
FRAMEWORKS = ("", "django", "axum", "react")

SEQUENCES = (
    ("clone_repo", "install_deps", "run_tests"),
    ("dump_schema", "write_migration", "apply_migration", "smoke_test"),
    ("fetch_page", "parse_html", "extract_table", "save_csv", "notify_team"),
    ("profile_code", "find_hotspot", "add_cache"),
    ("lint_code", "format_code", "commit_code", "open_review"),
    ("load_model", "quantize_model", "measure_loss"),
)
CURSED = (("drop_index", "bulk_insert", "rebuild_index"), ("force_push", "skip_tests", "deploy_now"))

DECISIONS = (
    (("if the cache is cold", "If the cache is cold:", "the cache is cold?"), "warm it first", "go on"),
    (("tests fail on main", "if tests fail on main", "When tests fail on main"), "bisect", "revert everything"),
    (("the file is larger than 10 MB", "if the file is larger than 50 MB"), "stream it", "read it whole"),
    (("the API answers 429", "if the API answers 429,"), "back off", "retry at once"),
    (("no lock file is present", "When no lock file is present"), "create one", "ignore it"),
)
IDLE_DECISIONS = (
    (("the user prefers dark mode", "if the user prefers dark mode"), ("use dark", "use light")),
    (("two readers disagree", "When two readers disagree"), ("ask a third", "toss a coin")),
)

RECOVERIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("compile", "error[E0433]: failed to resolve: use of undeclared crate `{name}` in {path}:{n}", ("add_crate",)),
    (
        "connect_db",
        "connection to server at 10.0.{n}.{n} port {n} refused (request {uuid})",
        ("start_db", "wait_ready"),
    ),
    ("upload", "HTTP 413: payload of {n} bytes exceeds the limit, trace {hex}", ("split_file",)),
    ("import_module", "ModuleNotFoundError: No module named '{name}' ({path})", ("make_venv", "pip_install")),
    ("write_disk", "OSError: [Errno 28] No space left on device: '{path}'", ("prune_images",)),
)
HOPELESS: tuple[tuple[str, str], ...] = (
    ("decode_video", "decoder error at frame {n}: corrupt stream {hex}"),
    ("call_vendor", "vendor timeout after {n} ms, ticket {uuid}"),
)

CONTEXTS: tuple[tuple[dict[str, str], str], ...] = (
    ({"language": "rust", "domain": "web"}, "nextest"),
    ({"language": "python", "domain": "data"}, "polars"),
    ({"language": "go", "domain": "infra"}, "terragrunt"),
    ({"language": "typescript", "domain": "games"}, "vite_build"),
)
FAILING_CONTEXTS: tuple[tuple[dict[str, str], str], ...] = (
    ({"language": "python", "domain": "games"}, "pygame_zero"),
    ({"language": "go", "domain": "web"}, "hot_reload"),
)


@frozen
class Event:
    """A step, or (where ``condition`` is set) a decision."""

    tool: str = ""
    action: str = ""
    ok: bool = True
    observation: str = ""
    condition: str = ""
    choice: str = ""


@mutable
class PlantedEpisode:
    task: str
    context: dict[str, Any]
    events: list[Event] = field(factory=list)
    succeeded: bool = True


@frozen
class Gold:
    """What was planted. ``error`` is one more message of the planted kind, which stands in no episode."""

    tool_sequences: tuple[tuple[str, ...], ...]
    decisions: tuple[tuple[str, str], ...]  #: condition, better choice
    recoveries: tuple[tuple[str, tuple[str, ...]], ...]  #: an error's message, the tools that put it right
    contexts: tuple[tuple[dict[str, str], str], ...]  #: features, tool


def noise(rng: Random, low: int, high: int) -> list[Event]:
    tools = COMMON + RARE
    weights = [1 / rank for rank in range(1, len(tools) + 1)]
    drawn = rng.choices(tools, weights, k=rng.randint(low, high))
    return [Event(tool, f"{tool} {rng.choice(NOUNS)}", ok=rng.random() > 0.03) for tool in drawn]


def message(rng: Random, template: str) -> str:
    name = "".join(rng.choices(string.ascii_lowercase, k=6))
    path = "/" + "/".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(rng.randint(2, 4)))
    return template.format(
        name=name,
        path=f"{path}/{name}.{rng.choice(['rs', 'py', 'bin'])}",
        n=rng.randint(1, 250),
        uuid=uuid.UUID(int=rng.getrandbits(128), version=4),
        hex=f"{rng.getrandbits(64):016x}",
    )


def blank(rng: Random, context: dict[str, str] | None = None) -> PlantedEpisode:
    if context is None:
        context = {"language": rng.choice(LANGUAGES), "domain": rng.choice(DOMAINS)}
    framework = rng.choice(FRAMEWORKS)
    return PlantedEpisode(
        f"{rng.choice(VERBS)} {rng.choice(NOUNS)}", {**context, "framework": framework, "tags": (rng.choice("abcd"),)}
    )


def with_sequence(rng: Random, sequence: tuple[str, ...], success: float) -> PlantedEpisode:
    episode = blank(rng)
    episode.events += noise(rng, 1, 4)
    for tool in sequence:
        episode.events.append(Event(tool, f"{tool} for {rng.choice(NOUNS)}"))
        if rng.random() < 0.08:
            episode.events += noise(rng, 1, 1)
    episode.events += noise(rng, 1, 4)
    episode.succeeded = rng.random() < success
    return episode


def with_decision(rng: Random, spellings: tuple[str, ...], choice: str, success: float) -> PlantedEpisode:
    episode = blank(rng)
    episode.events = [*noise(rng, 1, 4), Event(condition=rng.choice(spellings), choice=choice), *noise(rng, 2, 5)]
    episode.succeeded = rng.random() < success
    return episode


def with_error(rng: Random, tool: str, template: str, recovery: tuple[str, ...]) -> PlantedEpisode:
    episode = blank(rng)
    episode.events = [*noise(rng, 1, 4), Event(tool, f"{tool} now", ok=False, observation=message(rng, template))]
    for step in recovery:
        episode.events += noise(rng, 0, 3)
        episode.events.append(Event(step, f"{step} after the error"))
    episode.events += noise(rng, 0, 2)
    if recovery:
        episode.events.append(Event(tool, f"{tool} again"))
    episode.events += noise(rng, 1, 3)
    episode.succeeded = rng.random() < (0.9 if recovery else 0.1)
    return episode


def with_context(rng: Random, context: dict[str, str], tool: str, success: float) -> PlantedEpisode:
    episode = blank(rng, context)
    episode.events = [*noise(rng, 2, 4), Event(tool, f"{tool} as usual"), *noise(rng, 2, 4)]
    episode.succeeded = rng.random() < success
    return episode


def plain(rng: Random) -> PlantedEpisode:
    episode = blank(rng)
    episode.events = noise(rng, 3, 9)
    episode.succeeded = rng.random() < 0.6
    return episode


def planted(seed: int, times: int = 9, n_plain: int = 60) -> tuple[list[PlantedEpisode], Gold]:
    """Episodes in random order, each pattern planted about ``times`` times, and what was planted."""
    rng = Random(seed)
    makers: list[Callable[[], PlantedEpisode]] = [lambda: plain(rng)] * n_plain
    for sequence in SEQUENCES:
        makers += [lambda s=sequence: with_sequence(rng, s, 0.95)] * times  # type: ignore[misc]
    for sequence in CURSED:
        makers += [lambda s=sequence: with_sequence(rng, s, 0.08)] * times  # type: ignore[misc]
    for spellings, better, worse in DECISIONS:
        makers += [lambda s=spellings, c=better: with_decision(rng, s, c, 0.95)] * times  # type: ignore[misc]
        makers += [lambda s=spellings, c=worse: with_decision(rng, s, c, 0.1)] * times  # type: ignore[misc]
    for spellings, choices in IDLE_DECISIONS:
        for choice in choices:
            makers += [lambda s=spellings, c=choice: with_decision(rng, s, c, 0.6)] * times  # type: ignore[misc]
    makers += [lambda: with_decision(rng, (f"rare matter {rng.random():.9f}",), "shrug", 0.6)] * times
    for tool, template, recovery in RECOVERIES:
        makers += [lambda t=tool, m=template, r=recovery: with_error(rng, t, m, r)] * times  # type: ignore[misc]
    for tool, template in HOPELESS:
        makers += [lambda t=tool, m=template: with_error(rng, t, m, ())] * times  # type: ignore[misc]
    for context, tool in CONTEXTS:
        makers += [lambda c=context, t=tool: with_context(rng, c, t, 0.95)] * times  # type: ignore[misc]
    for context, tool in FAILING_CONTEXTS:
        makers += [lambda c=context, t=tool: with_context(rng, c, t, 0.1)] * times  # type: ignore[misc]
    rng.shuffle(makers)
    episodes = [make() for make in makers]
    gold = Gold(
        SEQUENCES,
        tuple((spellings[0], better) for spellings, better, _ in DECISIONS),
        tuple((message(rng, template), recovery) for _, template, recovery in RECOVERIES),
        CONTEXTS,
    )
    return episodes, gold

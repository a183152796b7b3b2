"""What values look like in a notebook: escaped, in words, from one description for HTML and Markdown."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest

import agent_memory
from agent_memory import Agent, EchoRunner, Memory, Reply
from agent_memory.recall.episode_types import Effectiveness
from agent_memory.views.page import Bar, Page, Plain, Shown, Table
from agent_memory.views.units import ago, seconds, short, size

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \"'&|*`_[x](y)\n# head\n| cell |"
SHOWN = sorted(
    name
    for name in agent_memory.__all__
    if inspect.isclass(value := getattr(agent_memory, name)) and issubclass(value, Shown)
)
TAGS = {"div", "span", "table", "tr", "th", "td"}


class Tags(HTMLParser):
    """Tags, attributes and text of some HTML; fails where a tag is left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(value: Any) -> Tags:
    """The HTML of a value, which holds no tag that the library did not write; its Markdown holds none at all."""
    tags = Tags(value._repr_html_())
    assert tags.tags <= TAGS
    assert tags.attributes <= {"style", "title"}
    assert "<" not in value._repr_markdown_().replace("\\<", "")
    return tags


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory(EchoRunner(), tmp_path / "agents") as memory:
        yield memory


def test_the_values_that_a_notebook_user_looks_at_are_shown() -> None:
    assert {
        "Agent", "CacheReport", "CodecReport", "Doctor", "EpisodeHit", "Health", "Hit", "Memory", "Reply", "Stats",
        "Tally", "Usage", "VerifyReport", "Version", "WorkingSet",
    } <= set(SHOWN)  # fmt: skip


def test_hostile_text_is_escaped_wherever_it_stands(memory: Memory) -> None:
    agent = memory.agent(HOSTILE, system=HOSTILE)
    reply = agent.say(HOSTILE)
    for value in (memory, agent, reply, reply.usage, memory.agents(), agent.explain(HOSTILE), memory.verify()):
        assert "alert(1)" not in Tags(value._repr_html_()).attributes
        read(value)
    assert HOSTILE.splitlines()[0] in read(reply).text
    memory.context.remember(HOSTILE)
    hits = memory.context.recall("alert")
    assert HOSTILE.splitlines()[0] in read(hits[0]).text
    read(memory.context.working_set("alert", budget_tokens=500))
    with memory.episodes.start(HOSTILE) as episode:
        episode.step(HOSTILE, HOSTILE, ok=True)
        episode.complete(True)
    read(memory.episodes.recall("alert")[0])


def test_every_public_value_that_is_shown_has_a_page_of_its_own() -> None:
    own = {name for name in SHOWN if any("_page" in vars(kind) for kind in getattr(agent_memory, name).__mro__[:-2])}
    assert own == set(SHOWN)
    assert Shown._page not in {getattr(agent_memory, name)._page for name in SHOWN}


def test_what_was_recalled_shows_the_parts_of_its_score(memory: Memory) -> None:
    hit_parts = {"relevance": 0.5, "recency": 0.0}
    advice = agent_memory.Recommendation(
        text=HOSTILE, tools=("pytest",), score=0.5, parts=hit_parts, pattern=None, episodes=(1,)
    )
    assert "score 0.500: relevance +0.500" in read(advice).text
    how = Effectiveness(successes=3, failures=1, mean=0.7, freshness=1.0, value=0.7)
    pattern = agent_memory.Pattern(id="1", kind="tool_sequence", episodes=(1, 2), effectiveness=how, tools=(HOSTILE,))
    assert "3 successes, 1 failures, worth 0.70; episodes 1, 2" in read(pattern).text
    assert "1 new text remembered" in read(memory.context.remember("We decided to use SQLite.")).text
    assert "1 text" in read(memory.context.stats()).text
    assert read(memory.context.check()).text == "Nothing is damaged"


def test_a_reply_shows_where_its_prompt_came_from_and_what_that_saved() -> None:
    with Memory(EchoRunner(delay_s=0.05), ":memory:") as memory:
        agent = memory.agent("ann", system="word " * 300)
        agent.say("one")
        usage = agent.say("two").usage
    assert usage.saved_s is not None
    assert usage.saved_s > 0
    text = read(usage).text
    assert f"{usage.cached_tokens:,} of {usage.prompt_tokens:,} prompt tokens reused" in text
    assert f"hot {usage.tier_tokens['hot']:,}" in text
    assert f"computed {usage.computed_tokens:,}" in text
    assert "saved" in text
    assert f"width:{100 * usage.computed_tokens / usage.prompt_tokens:.2f}%" in usage._repr_html_()
    assert f"hot {usage.tier_tokens['hot']:,}" in usage._repr_markdown_()


def test_a_version_says_why_it_is_kept_and_how_long_it_is(memory: Memory) -> None:
    agent = memory.agent("ann")
    agent.say("one")
    agent.checkpoint(HOSTILE)
    agent.rewind()
    shown = [read(version).text for version in agent.history()]
    assert HOSTILE.splitlines()[0] in shown[0]
    assert all("1 turn, just now" in text for text in shown)
    assert "checkpoint" in shown[0]


def test_a_tally_shows_scores_ballots_and_how_it_ended() -> None:
    scores, ballots = {"red": 1.0, HOSTILE: 2.0}, {"ann": (HOSTILE,), HOSTILE: (HOSTILE,), "cem": ("red",), "dan": ()}
    tally = agent_memory.Tally(
        question=HOSTILE, options=("red", HOSTILE), is_ranked=False, scores=scores, ballots=ballots, winner=HOSTILE
    )
    text = read(tally).text
    assert "daninvalid" in text
    assert text.index("2") < text.index("red1")
    assert "wins" in text
    tied = attrs.evolve(tally, is_ranked=True, winner=None, tied=("red", HOSTILE))
    assert "a tie between red and" in read(tied).text
    assert "points" in read(tied).text
    assert "no valid ballot" in read(attrs.evolve(tied, tied=())).text


def test_what_a_codec_costs_is_shown_with_the_tensors_that_it_leaves_exact() -> None:
    report = agent_memory.CodecReport(
        codec="q8", bits_per_value=8.5, ratio=1.9, kl=1e-4, worst_kl=2e-3, perplexity=10.0, coded_perplexity=10.1,
        agreement=0.995, n_tokens=1_200, encode_gb_s=2.0, decode_gb_s=4.0, exact_tensors=(HOSTILE,),
    )  # fmt: skip
    text = read(report).text
    assert "Codec q8, compared over 1,200 tokens" in text
    assert "1.90 times" in text
    assert "+1.00%" in text
    assert f"left exact: {HOSTILE.splitlines()[0]}" in text


def test_nothing_is_saved_where_nothing_is_reused(memory: Memory) -> None:
    assert memory.generate("hello").usage.saved_s == 0
    reply = memory.generate("hello again")
    assert reply.usage.cached_tokens
    assert reply.usage.saved_s is None  # no long prefill was measured
    assert "saved" not in reply._repr_html_()


def test_the_agents_are_a_list_and_a_table_with_bytes_and_times_in_words(memory: Memory) -> None:
    memory.agent("ann", system="word " * 300).say("one")
    memory.agent("bob").say("one")
    memory.agent("bob").pin()
    memory.flush()
    agents = memory.agents()
    assert isinstance(agents, list)
    assert agents[0].name == "bob"
    text = read(agents).text
    assert "2 agents" in text
    assert "pinned" in text
    assert "just now" in text
    assert text.count("KiB") >= 2  # hot and disk of ann
    memory.close()
    assert "ann" in read(agents).text


def test_a_memory_shows_its_budgets_and_says_when_it_is_closed(memory: Memory) -> None:
    memory.agent("ann").say("one")
    text = read(memory).text
    assert "GiB" in text
    assert "hot " in text
    memory.close()
    assert "closed" in read(memory).text


def test_a_deleted_agent_says_so(memory: Memory) -> None:
    agent = memory.agent("ann")
    agent.say("one")
    agent.delete()
    assert "deleted" in read(agent).text


@pytest.mark.parametrize("explain", [False, True])
def test_the_doctor_shows_what_was_chosen(explain: bool, memory: Memory) -> None:
    text = read(memory.doctor(explain=explain)).text
    assert "hot_bytes" in text
    assert ("to change it" in text) == explain


def test_stats_and_health_are_shown_in_words(memory: Memory) -> None:
    memory.agent("ann").say("one")
    assert "prompt tokens by origin" in read(memory.stats()).text
    assert read(memory.health()).text == "Ready"


def test_tables_align_numbers_and_survive_no_rows() -> None:
    table = Table([("ann", "1,024", "3.5 MiB"), ("bob", "7", "")], ("name", "tokens", "size"))
    assert table.html().count("text-align:right") == 6
    assert table.markdown().splitlines()[1] == "| --- | --: | --: |"
    assert Tags(Page("none", [Table([], ("a", "b"))]).html()).text == "noneab"
    assert Page("", [Plain("")]).markdown() == ""
    assert "width:0" not in Bar([("hot", 0, "0")]).html()


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (size(0), "0 B"),
        (size(1023), "1023 B"),
        (size(12_900_000), "12.3 MiB"),
        (size(3 << 30), "3.0 GiB"),
        (size(5 << 40), "5.0 TiB"),
        (seconds(0.0123), "12 ms"),
        (seconds(3.44), "3.4 s"),
        (seconds(600), "10 min"),
        (short("x" * 300, 10), "xxxxxxxxx…"),
    ],
)
def test_units_are_for_people(shown: str, words: str) -> None:
    assert shown == words


def test_times_are_told_as_they_are_past() -> None:
    import time

    assert ago(time.time()) == "just now"
    assert ago(time.time() - 3 * 3600 - 5) == "3 hours ago"
    assert ago(time.time() + 60) == "just now"


def test_a_value_compares_and_copies_as_before(memory: Memory) -> None:
    reply = memory.generate("hello")
    assert isinstance(reply, Reply)
    assert attrs.evolve(reply) == reply
    assert isinstance(memory.agent("a"), Agent)
    with pytest.raises(AttributeError):
        reply.other = 1  # type: ignore[attr-defined]

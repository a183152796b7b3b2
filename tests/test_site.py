"""The documentation as a whole: what is generated is up to date, nothing is missing, and everything can be reached."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

import agent_memory
from docs import generate

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
QUESTIONS = json.loads((ROOT / "tests/integrations_corpus/operators_questions.json").read_text(encoding="utf-8"))
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def text_of(page: Path) -> str:
    """A page without its fenced blocks and code, in which nothing is a link."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"(?<!\[)`[^`\n]*`(?!\])", "", text)


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """(file, anchor) of every link of a page to a file of this repository."""
    for target, anchor in _LINK.findall(text_of(page)):
        yield (page.parent / target).resolve() if target else page, anchor


def slug(heading: str) -> str:
    """The anchor of a heading, by GitHub's rule, which MyST follows."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_and_their_anchors_lead_somewhere(page: Path) -> None:
    dead = [
        f"{file.name}#{anchor}"
        for file, anchor in links(page)
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file))
    ]
    assert dead == []


def test_every_page_is_within_two_clicks_of_the_first() -> None:
    reached = {DOCS / "index.md"}
    for _ in range(2):
        reached |= {file for page in list(reached) for file, _ in links(page) if file in PAGES}
    assert set(PAGES) - reached == set()


def test_every_page_is_in_the_site_s_table_of_contents_once() -> None:
    listed = []
    for index in (DOCS / "index.md", DOCS / "reference" / "index.md"):
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", index.read_text(encoding="utf-8"), re.M | re.S):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed += [index.parent / f"{name}.md" for name in names]
    assert sorted(listed) == sorted(set(PAGES) - {DOCS / "index.md"})


def test_the_generated_pages_are_up_to_date() -> None:
    stale = [str(path.relative_to(ROOT)) for path, text in generate.pages().items() if path.read_text("utf-8") != text]
    if (DOCS / "llms.txt").read_text(encoding="utf-8") != generate.llms():
        stale.append("docs/llms.txt")
    assert stale == [], "run: python docs/generate.py"


def test_the_reference_has_every_public_name_with_its_members_and_fields() -> None:
    pages = generate.reference()
    missing = []
    for name in set(agent_memory.__all__) - {"__version__"}:
        page = pages[f"{generate.page_of(name)}.md"]
        wanted = [f"## `{name}`\n"]
        value = getattr(agent_memory, name)
        if inspect.isclass(value):
            members = generate.members_of(value)
            wanted += [f"### `{name}.{member}`" for member, found in members if not isinstance(found, property)]
            if attrs.has(value):
                wanted += [f"| `{one.name}` |" for one in attrs.fields(value) if not one.name.startswith("_")]
        missing += [f"{name}: {one}" for one in wanted if one not in page]
    assert missing == []


def test_every_field_of_config_usage_and_stats_is_explained_or_speaks_for_itself() -> None:
    plain = {"requests", "prompt_tokens", "cached_tokens", "computed_tokens", "output_tokens", "segments", "chunks"}
    silent = [
        f"{kind.__name__}.{one.name}"
        for kind in (agent_memory.Config, agent_memory.Usage, agent_memory.Stats)
        for one in attrs.fields(kind)
        if one.name not in plain and not one.name.endswith(("_bytes", "_s", "agents", "bytes_written", "save_failures"))
        if not generate._comments(kind).get(one.name)
    ]
    assert silent == ["Usage.exactness"]  # a table of its own


def test_llms_txt_names_every_page() -> None:
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"({page.relative_to(DOCS).as_posix()})" not in text] == []


def rows(page: Path) -> dict[str, str]:
    """The answer of each question in the tables of a page."""
    found = re.findall(r"^\| ([^|\n]+\?|[^|\n]+\.) \| (.+) \|$", page.read_text(encoding="utf-8"), re.M)
    return {question.replace("`", ""): answer for question, answer in found}


@pytest.mark.parametrize("asked", QUESTIONS, ids=lambda asked: asked["id"])
def test_an_operators_question_is_answered_by_a_command_a_method_or_a_page(asked: dict[str, str]) -> None:
    page = DOCS / "questions.md"
    assert page in {file for file, _ in links(DOCS / "index.md")}  # so that an answer's page is two clicks away
    answer = rows(page)[asked["question"]]
    known = {words for words, _ in generate.commands()}
    for words in re.findall(r"`agent-memory ([a-z]+(?: check\b)?)", answer):
        assert words in known
    for owner, method in re.findall(r"`(memory|agent)\.(\w+)", answer):
        assert hasattr({"memory": agent_memory.Memory, "agent": agent_memory.Agent}[owner], method)
    for metric in re.findall(r"`(agent_memory_\w+)`", answer):
        assert metric in (DOCS / "operations.md").read_text(encoding="utf-8")
    has_command, has_page = "`agent-memory " in answer, bool(_LINK.search(answer))
    has_method = bool(re.search(r"`(?:memory|agent|reply)\.\w+", answer))
    assert {"command": has_command or has_page, "page": has_page, "method": has_method or has_command or has_page}[
        asked["kind"]
    ]


def test_every_question_is_on_the_page_and_others_lead_to_a_page() -> None:
    answers, asked = rows(DOCS / "questions.md"), {asked["question"] for asked in QUESTIONS}
    assert len(asked) == 30
    assert asked <= set(answers)
    assert [question for question in set(answers) - asked if not _LINK.search(answers[question])] == []

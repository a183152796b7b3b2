"""Memory.measure_codec: the cost of a codec on the user's own model and texts."""

from __future__ import annotations

from typing import Any

import pytest

from agent_memory import EchoRunner, Memory, PromptTooLongError, UnsupportedParameterError
from tests.laws.test_laws_kinds import text
from tests.parts.tinyrunner import endless


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["llama", "llama_windows"])
def test_fewer_bits_diverge_more_from_exact(name: str) -> None:
    with Memory(endless(name), ":memory:") as memory:
        reports = {codec: memory.measure_codec(codec, [text(1, 60), text(2, 40)]) for codec in ("q8", "q5", "q4")}
    assert 0 < reports["q8"].kl < reports["q5"].kl < reports["q4"].kl
    for codec, report in reports.items():
        assert report.codec == codec
        assert report.kl <= report.worst_kl
        assert report.n_tokens == 60 + 40 - 45 - 30 - 2  # three quarters are context, the last one's follower unknown
        assert 0 <= report.agreement <= 1
        assert min(report.encode_gb_s, report.decode_gb_s) > 0
        assert report.exact_tensors == ()
    if name == "llama":
        # rows of 16 values: one group each, whose step and center cost 2 bits a value
        assert [report.bits_per_value for report in reports.values()] == [10, 7, 6]
        assert reports["q4"].ratio == 32 / 6
        assert repr(reports["q4"]).startswith("CodecReport(q4: 6.00 bits, 5.33x smaller, KL ")
    else:  # two of three layers have windows: q8 and q4 have no centers, and other bits in the one without
        assert [report.bits_per_value for report in reports.values()] == [9, 7, 5]


@pytest.mark.mlx
def test_texts_may_be_an_iterator_and_must_be_text() -> None:
    with Memory(endless("llama"), ":memory:") as memory:
        texts = [text(1, 60), text(2, 40)]
        given = memory.measure_codec("q8", texts), memory.measure_codec("q8", iter(texts))  # type: ignore[arg-type]
        assert given[0].kl == given[1].kl
        wrong: list[Any] = [iter([]), 3, b"bytes", ["\ud800" * 20], [texts[0], 3]]
        for one in wrong:
            with pytest.raises(UnsupportedParameterError, match="text"):
                memory.measure_codec("q8", one)


@pytest.mark.mlx
def test_measuring_leaves_agents_and_figures_as_they_are() -> None:
    with Memory(endless("llama"), ":memory:") as memory:
        before = memory.agent("ann").say("one", max_tokens=4)
        stats = memory.stats()
        memory.measure_codec("q4", [text(1, 60)])
        assert memory.stats() == stats
        after = memory.agent("ann").say("two", max_tokens=4)
    assert after.usage.exactness == "exact"
    assert after.usage.cached_tokens >= before.usage.prompt_tokens


@pytest.mark.mlx
@pytest.mark.parametrize(
    ("codec", "texts", "error", "words"),
    [
        ("q3", ["a text"], UnsupportedParameterError, "q8, q5, q4, or .*: got 'q3'"),
        ("exact", ["a text"], UnsupportedParameterError, "got 'exact'"),
        (None, ["a text"], UnsupportedParameterError, "got None"),
        ("q4", [], UnsupportedParameterError, "at least one text"),
        ("q4", "a text", UnsupportedParameterError, "a list"),
        ("q4", ["a", "b"], UnsupportedParameterError, "1 tokens says nothing"),
        ("q4", [7], UnsupportedParameterError, "a str, got int"),
        ("q4", ["a" * 5000], PromptTooLongError, "5,000 tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused(codec: Any, texts: Any, error: Any, words: str) -> None:
    with Memory(endless("qwen3"), ":memory:") as memory, pytest.raises(error, match=words):
        memory.measure_codec(codec, texts)


def test_a_model_without_lossy_codec_says_so() -> None:
    with Memory(EchoRunner(), ":memory:") as memory, pytest.raises(UnsupportedParameterError, match="leaves all KV"):
        memory.measure_codec("q4", ["a text of some length"])


@pytest.mark.mlx
@pytest.mark.model
def test_the_codecs_keep_their_bars_on_the_starter_model() -> None:
    prose = (
        "A bicycle stays upright because the rider steers it into every fall. When it leans to the left, the front "
        "wheel turns to the left too, partly by itself, and the path of the wheels comes back under the weight. The "
        "faster it rolls, the smaller the turn that is needed, and so a bicycle that is pushed hard can stay upright "
        "for a while with nobody on it. For a long time people thought that the turning wheels alone did it."
    )
    with Memory(None, ":memory:") as memory:
        kl = {codec: memory.measure_codec(codec, [prose]).kl for codec in ("q8", "q5", "q4")}
    assert kl["q8"] <= 2e-4
    assert kl["q5"] <= 0.005
    assert kl["q4"] <= 0.02

"""Known ids are reused where the text is equal and never change it; streamed text stops where the whole text would."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.echo.tokenizer import EchoTokenizer
from agent_memory.errors import UnsupportedParameterError
from agent_memory.prompt.tokens import TextStream, check_stop, reuse

TOKENIZER = EchoTokenizer()
TEXT = st.text(st.sampled_from("a be un believable the é世😀<\n12"), max_size=25) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)


def spoken(text: str, seed: int) -> list[int]:
    """Ids of ``text`` as a model might have written them: another way of cutting the same bytes."""
    draw, data, ids = random.Random(seed), text.encode(), []
    pieces = {TOKENIZER.key([i]): i for i in range(min(TOKENIZER.special_ids))}
    while data:
        fits = [n for n in range(1, 11) if data[:n].decode("latin-1") in pieces and n <= len(data)]
        size = draw.choice(fits)
        ids.append(pieces[data[:size].decode("latin-1")])
        data = data[size:]
    return ids


def joined(texts: Sequence[str], seed: int | None = None) -> list[int]:
    """Texts between end-of-turn tokens, in the tokenizer's own ids or in others."""
    ids: list[int] = []
    for text in texts:
        ids += TOKENIZER.encode_plain(text) if seed is None else spoken(text, seed)
        ids.append(TOKENIZER.end_id)
    return ids


@given(texts=st.lists(TEXT, max_size=5), more=st.lists(TEXT, max_size=3), seed=st.integers(0, 99))
def test_a_history_that_went_on_keeps_every_known_id(texts: list[str], more: list[str], seed: int) -> None:
    known, fresh = joined(texts, seed), joined([*texts, *more])
    made = reuse(fresh, known, TOKENIZER)
    assert made[: len(known)] == known
    assert TOKENIZER.key(made) == TOKENIZER.key(fresh)


@given(texts=st.lists(TEXT, max_size=4), tail=TEXT, rest=TEXT, seed=st.integers(0, 99))
def test_a_reply_cut_short_keeps_its_ids_when_its_text_goes_on(
    texts: list[str], tail: str, rest: str, seed: int
) -> None:
    known, fresh = joined(texts, seed) + spoken(tail, seed), joined([*texts, tail + rest])
    made = reuse(fresh, known, TOKENIZER)
    assert made[: len(known)] == known
    assert TOKENIZER.key(made) == TOKENIZER.key(fresh)


@given(mine=st.lists(TEXT, max_size=5), theirs=st.lists(TEXT, max_size=5), seed=st.integers(0, 99))
def test_reuse_never_changes_the_text_and_keeps_all_runs_before_a_difference(
    mine: list[str], theirs: list[str], seed: int
) -> None:
    fresh, known = joined(mine), joined(theirs, seed)
    made = reuse(fresh, known, TOKENIZER)
    assert TOKENIZER.key(made) == TOKENIZER.key(fresh)
    shorter = min(len(mine), len(theirs))
    n_same = next((i for i in range(shorter) if mine[i] != theirs[i]), shorter)
    equal = joined(theirs[:n_same], seed)
    assert made[: len(equal)] == equal


@given(fresh=st.lists(st.integers(0, TOKENIZER.n_vocab - 1)), known=st.lists(st.integers(0, TOKENIZER.n_vocab - 1)))
def test_reuse_of_any_ids_keeps_the_bytes_of_the_text(fresh: list[int], known: list[int]) -> None:
    made = reuse(fresh, known, TOKENIZER)
    assert TOKENIZER.key(made) == TOKENIZER.key(fresh)
    n_common = next((i for i, (a, b) in enumerate(zip(fresh, known, strict=False)) if a != b), 0)
    assert made[:n_common] == fresh[:n_common] or TOKENIZER.key(made[:n_common])


def test_after_another_special_token_all_ids_are_fresh() -> None:
    fresh = TOKENIZER.encode("<|user|>believable<|end|>believable")
    known = [*TOKENIZER.encode("<|user|>"), *b"believable", *TOKENIZER.encode("<|tool|>"), *b"believable"]
    assert reuse(fresh, known, TOKENIZER) == [*known[:11], *fresh[2:]]


STOPS = st.lists(st.text(st.sampled_from("abé<"), min_size=1, max_size=4), max_size=3)
STOPPABLE = st.text(st.sampled_from("abé<世"), max_size=30)


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The rule by whole-text search: the stop completed first counts, the longest of those completed together."""
    ends = [(place + len(s), place, s) for s in stops if (place := text.find(s)) >= 0]
    return (text[: min(ends)[1]], min(ends)[2]) if ends else (text, None)


@given(text=STOPPABLE, stops=STOPS, seed=st.integers(0, 99))
def test_a_stream_stops_where_a_search_of_the_whole_text_says(text: str, stops: list[str], seed: int) -> None:
    ids, stream, shown = spoken(text, seed), TextStream(TOKENIZER, check_stop(stops)), ""
    n_added = 0
    for token in ids:
        shown += stream.add(token)
        n_added += 1
        assert before_stop(text, stops)[0].startswith(shown)
        if stream.stopped is not None:
            break
    shown += stream.end()
    assert (shown, stream.stopped) == before_stop(text, stops)
    assert stream.text == shown
    if stream.stopped is not None:
        n_ids, rest = stream.kept()
        assert n_ids <= n_added
        assert TOKENIZER.decode([*ids[:n_ids], *TOKENIZER.encode_plain(rest)]) == shown
        after = len(TOKENIZER.key(ids[: n_ids + 1]))
        assert after > len(shown.encode()) or "\ufffd" in TOKENIZER.decode(ids[: n_ids + 1])


def test_indentation_and_emoji_stream_byte_for_byte() -> None:
    text = "def f():\n        return '😀世界'\n"
    stream = TextStream(TOKENIZER)
    assert "".join(stream.add(i) for i in spoken(text, 3)) + stream.end() == text


def test_stop_strings_are_checked() -> None:
    assert (check_stop("a"), check_stop(["a", "b"]), check_stop(())) == (("a",), ("a", "b"), ())
    for wrong in ("", [""], [3], ["a", None]):
        with pytest.raises(UnsupportedParameterError, match="stop"):
            check_stop(wrong)  # type: ignore[arg-type]


@pytest.mark.mlx
def test_a_hugging_face_tokenizer_keeps_generated_ids_too() -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    wrappers = pytest.importorskip("mlx_lm.tokenizer_utils")
    from agent_memory.runner.tokenizer import HFTokenizer

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["the unbelievable world of the unbelievable words"] * 20, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer = HFTokenizer(wrappers.TokenizerWrapper(fast))
    fresh = tokenizer.encode("the unbelievable world 世😀<|end|>\nthe words<|end|>")
    letters = [i for c in "the unbelievable world 世😀" for i in tokenizer.encode(c)]
    known = [*letters, *tokenizer.encode("<|end|>")]
    made = reuse(fresh, known, tokenizer)
    assert fresh[: len(known)] != known
    assert made[: len(known)] == known
    assert tokenizer.key(made) == tokenizer.key(fresh)
    cut = reuse(fresh, letters[:7], tokenizer)
    assert cut[:7] == letters[:7]
    assert tokenizer.key(cut) == tokenizer.key(fresh)


def test_stop_strings_whose_beginnings_would_fill_memory_are_refused() -> None:
    assert check_stop("x" * 10_000) == ("x" * 10_000,)
    for stop in ("x" * 10_001, ["x" * 5_000, "y" * 5_001]):
        with pytest.raises(UnsupportedParameterError, match="10,000 characters together, got 10,001"):
            check_stop(stop)

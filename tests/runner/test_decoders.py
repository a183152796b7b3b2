"""Streamed text is what the tokenizer's own decoder makes of the ids, for every decoder class and after every id."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_memory.prompt.tokens import TextStream, reuse
from agent_memory.runner.decoders import Decoding
from tests.parts import tiny

pytestmark = pytest.mark.mlx

TEXTS = {
    "emoji": "😀 hello 😀😀",
    "zwj": "the 👨‍👩‍👧‍👦 and the 🏳️‍🌈!",
    "flags": "🇫🇷🇯🇵 🇧🇷",
    "cjk": "世界 こんにちは、元気? 한국어",
    "code": "def f(x):\n    if x:\n        return  x\n\n\tdone = '<0x41>'\n",
    "marks": "e\u0301a\u0308 \u200bword",
    "spaces": "  two   three ",
    "words": "do not , I 'm here . isn't it ?",
}


def _decoders() -> Any:
    return pytest.importorskip("tokenizers").decoders


def _regex(pattern: str) -> Any:
    return pytest.importorskip("tokenizers").Regex(pattern)


#: Class -> ways of making one.
MAKERS: dict[str, list[Any]] = {
    "BPEDecoder": [lambda d: d.BPEDecoder(), lambda d: d.BPEDecoder(suffix="@@")],
    "ByteFallback": [lambda d: d.ByteFallback()],
    "ByteLevel": [lambda d: d.ByteLevel()],
    "CTC": [lambda d: d.CTC(), lambda d: d.CTC(pad_token="_", word_delimiter_token="a", cleanup=False)],
    "Fuse": [lambda d: d.Fuse()],
    "Metaspace": [lambda d: d.Metaspace(), lambda d: d.Metaspace(prepend_scheme="never"),
                  lambda d: d.Metaspace(replacement="_", prepend_scheme="first")],
    "Replace": [lambda d: d.Replace("▁", " "), lambda d: d.Replace("aba", "c"), lambda d: d.Replace("  ", " "),
                lambda d: d.Replace(_regex(r"\s+"), "_"), lambda d: d.Replace("", "-")],
    "Strip": [lambda d: d.Strip(" ", 1, 0), lambda d: d.Strip("a", 0, 2), lambda d: d.Strip(" ", 2, 1)],
    "WordPiece": [lambda d: d.WordPiece(), lambda d: d.WordPiece(prefix="@@", cleanup=False)],
}  # fmt: skip
PIECES = [
    "a", "b", "aba", "ab", " ", "  ", "▁", "▁a", "▁▁", "_", "##a", "@@", "b@@", "a</w>", "</w>", "<pad>", "|", "é",
    "Ġa", "Ċ", "世", "ðŁĺĢ", "ðŁ", "Ģ", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0x41>", "<0x+5>", "<0xZZ>", "<0x",
    "41", ">", " .", " do", " not", "'", "n't", " n", "", "\n", "👨‍👩", "\u200d",
]  # fmt: skip


def _library(decoder: Any, tokens: Sequence[str]) -> str | None:
    """What the library makes of tokens; None where it panics (Strip, of a token that is all to be stripped)."""
    try:
        return str(decoder.decode(list(tokens)))
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return None


def _described(decoder: Any) -> Any:
    from tokenizers import Tokenizer, models

    holder = Tokenizer(models.BPE())
    holder.decoder = decoder
    return json.loads(holder.to_str())["decoder"]


def test_every_decoder_class_of_the_library_is_tried_here() -> None:
    d = _decoders()
    classes = {n for n, c in inspect.getmembers(d, inspect.isclass) if issubclass(c, d.Decoder) and c is not d.Decoder}
    assert classes == {*MAKERS, "Sequence"}


@settings(max_examples=400, deadline=None)
@given(
    makers=st.lists(st.sampled_from([m for ways in MAKERS.values() for m in ways]), min_size=1, max_size=5),
    tokens=st.lists(st.sampled_from(PIECES), max_size=12),
)
def test_line_9_streams_equal_every_sequence_of_decoders_at_every_cut(makers: list[Any], tokens: list[str]) -> None:
    d = _decoders()
    made = [make(d) for make in makers]
    decoder = made[0] if len(made) == 1 else d.Sequence(made)
    decoding = Decoding(_described(decoder))
    for cut in range(len(tokens) + 1):
        expected = _library(decoder, tokens[:cut])
        if expected is not None:
            assert decoding.text(tokens[:cut]) == expected, (tokens[:cut], _described(decoder))


def test_a_tokenizer_without_a_decoder_and_an_unknown_one() -> None:
    assert Decoding(None).text(["a", "b"]) == "a b"
    with pytest.raises(ValueError, match="Morse"):
        Decoding({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Morse"}]})


# Whole tokenizers


def _kinds() -> dict[str, Any]:
    d = _decoders()
    spaces = d.Replace("▁", " ")
    return {
        "gemma": d.Sequence([spaces, d.ByteFallback(), d.Fuse()]),
        "llama2": d.Sequence([spaces, d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)]),
        "metaspace": d.Sequence([d.ByteFallback(), d.Metaspace(), d.Fuse()]),
        "late": d.Sequence([d.ByteFallback(), d.Fuse(), spaces]),
        "metaspace alone": d.Metaspace(),
        "bytelevel": d.ByteLevel(),
        "bytelevel, stripped": d.Sequence([d.ByteLevel(), d.Strip(" ", 1, 0)]),
        "wordpiece": d.WordPiece(),
        "bpe": d.BPEDecoder(),
        "ctc": d.CTC(),
        "none": None,
    }


def tokenizer_of(decoder: Any) -> Any:
    """A Hugging Face tokenizer with this decoder: pieces, and bytes for all else."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    is_bytes = "ByteLevel" in json.dumps(_described(decoder))
    if is_bytes:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        letters = [f"<0x{byte:02X}>" for byte in range(256)] + [*"▁helodfrtunixcg():<>041\n',.?", "世", "界"]
    merges = [] if is_bytes else [("▁", "▁"), ("▁▁", "▁▁"), ("h", "e"), ("▁", "he")]
    vocab = {letter: i for i, letter in enumerate([*letters, *map("".join, merges), "<s>", "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=not is_bytes, fuse_unk=True))
    if is_bytes:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>")


def _wrappers() -> dict[str, Any]:
    from mlx_lm import tokenizer_utils as t

    return {"bare": lambda hf: hf, "wrapped": t.TokenizerWrapper,
            "spm": lambda hf: t.TokenizerWrapper(hf, t.SPMStreamingDetokenizer),
            "bpe": lambda hf: t.TokenizerWrapper(hf, t.BPEStreamingDetokenizer)}  # fmt: skip


@pytest.mark.parametrize("kind", list(_kinds()))
def test_line_9_text_is_the_tokenizers_own_after_every_id(kind: str) -> None:
    from agent_memory.runner.tokenizer import HFTokenizer

    hf = tokenizer_of(_kinds()[kind])
    for wrap in _wrappers().values():
        tokenizer = HFTokenizer(wrap(hf))
        for name, text in TEXTS.items():
            ids = [hf.bos_token_id, *tokenizer.encode(text), hf.eos_token_id]
            assert len(ids) > 6, name
            for cut in range(len(ids) + 1):
                expected = hf.decode(ids[:cut], skip_special_tokens=True, clean_up_tokenization_spaces=False)
                stream = TextStream(tokenizer)
                assert "".join(map(stream.add, ids[:cut])) + stream.end() == expected, (kind, name, cut)
                assert stream.text == expected == tokenizer.decode(ids[:cut])


@pytest.mark.parametrize("kind", ["gemma", "llama2", "metaspace", "late", "bytelevel"])
def test_what_was_encoded_comes_back(kind: str) -> None:
    from agent_memory.runner.tokenizer import HFTokenizer

    tokenizer = HFTokenizer(tokenizer_of(_kinds()[kind]))
    for text in TEXTS.values():
        expected = {"llama2": text.removeprefix(" "), "metaspace": text.lstrip(" ")}.get(kind, text)
        assert tokenizer.decode(tokenizer.encode(text)) == expected


@pytest.mark.parametrize("kind", list(_kinds()))
def test_text_comes_as_soon_as_it_is_whole(kind: str) -> None:
    from agent_memory.runner.tokenizer import HFTokenizer

    tokenizer = HFTokenizer(tokenizer_of(_kinds()[kind]))
    ids = tokenizer.encode("hello hello hello hello")
    stream = tokenizer.detokenizer()
    shown = "".join(map(stream.add, ids[:-2]))
    assert len(tokenizer.decode(ids)) - len(shown) <= 5, "more than two letters were kept back"


def test_a_byte_token_and_its_letters_are_not_taken_for_one_another() -> None:
    from agent_memory.runner.tokenizer import HFTokenizer

    tokenizer = HFTokenizer(tokenizer_of(_kinds()["gemma"]))
    as_text, as_byte = tokenizer.encode("<0x41>"), tokenizer._hf.convert_tokens_to_ids(["<0x41>"])
    assert (tokenizer.decode(as_text), tokenizer.decode(as_byte)) == ("<0x41>", "A")
    assert tokenizer.key(as_text) != tokenizer.key(as_byte)
    end = tokenizer._hf.eos_token_id
    assert reuse([*as_text, end, *as_text], [*as_byte, end], tokenizer) == [*as_text, end, *as_text]


def test_pieces_that_decode_by_where_they_begin_are_compared_piece_by_piece() -> None:
    from agent_memory.runner.tokenizer import HFTokenizer

    tokenizer = HFTokenizer(tokenizer_of(_kinds()["none"]))
    one, two = tokenizer._hf.convert_tokens_to_ids(["he"]), tokenizer._hf.convert_tokens_to_ids(["h", "e"])
    assert tokenizer.decode(one) != tokenizer.decode(two)
    assert tokenizer.key(one) != tokenizer.key(two)


def test_a_tokenizer_that_decodes_in_its_own_way_is_asked() -> None:
    from mlx_lm.tokenizer_utils import NewlineTokenizer

    from agent_memory.runner.tokenizer import HFTokenizer

    backend = tokenizer_of(_kinds()["gemma"]).backend_tokenizer
    backend.add_tokens(["<n>"])
    hf = NewlineTokenizer(tokenizer_object=backend, eos_token="</s>", bos_token="<s>")
    tokenizer = HFTokenizer(hf)
    for text in TEXTS.values():
        ids = tokenizer.encode(text)
        stream = tokenizer.detokenizer()
        assert "".join(map(stream.add, ids)) + stream.end() == hf.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["gemma", "llama2", "metaspace", "late"])
def test_line_9_a_reply_is_the_text_of_its_ids(kind: str) -> None:
    import numpy as np

    from agent_memory import Config, Memory, MLXRunner

    hf = tokenizer_of(_kinds()[kind])
    ids = hf.encode(TEXTS["emoji"] + "\n" + TEXTS["code"] + TEXTS["zwj"], add_special_tokens=False)
    script = itertools.chain(ids, itertools.repeat(hf.eos_token_id))

    def next_of(tokens: Any, logits: Any) -> Any:
        forced = np.full_like(logits, -1e9)
        forced[..., next(script)] = 0.0
        return forced

    with Memory(MLXRunner(tiny.model("llama", vocab_size=400), hf), ":memory:", config=Config(blas=None)) as memory:
        handle = memory.stream("say it", logits_processors=[next_of], max_tokens=len(ids) + 1)
        shown = "".join(handle.text())
        reply = handle.result()
    assert list(reply.token_ids)[: len(ids)] == ids
    assert reply.text == shown == hf.decode(ids)

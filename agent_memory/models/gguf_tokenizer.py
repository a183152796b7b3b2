"""A GGUF file's tokenizer metadata -> ``tokenizer.json`` and ``tokenizer_config.json`` of Hugging Face's form.

Sources: llama.cpp ``src/llama-vocab.cpp`` (the pre-tokenizers by name), transformers ``convert_slow_tokenizer.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_memory.errors import DamagedModelError, UnsupportedModelError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_REGEX = _LETTERS + r"\p{N}{1,3}" + _REST
QWEN2_REGEX = _LETTERS + r"\p{N}" + _REST
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "smaug-bpe")
PRE_TOKENIZERS = ("smollm", "gpt-2", "default", *_LLAMA3, "qwen2")


def write_tokenizer(metadata: Mapping[str, Any], out: Path) -> None:
    """Write both files into ``out``.

    Raises UnsupportedModelError (a tokenizer or pre-tokenizer of another kind) or DamagedModelError.
    """
    tokens, types = _vocabulary(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        parts = _byte_level_bpe(metadata, tokens)
    elif kind == "llama":
        parts = _sentencepiece_bpe(metadata, tokens, types)
    else:
        raise UnsupportedModelError(f"the GGUF's tokenizer is of kind {kind!r}; 'gpt2' and 'llama' are supported.")
    bos = _token(metadata, "bos", tokens)
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", _adds_bos(metadata))) and bos is not None
    body = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types),
        **parts,
        "post_processor": _post_processor(bos, tokens) if add_bos and bos else parts["post_processor"],
    }
    (out / "tokenizer.json").write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos,
        "model_max_length": int(metadata.get(f"{metadata.get('general.architecture')}.context_length", 0)) or None,
        "bos_token": bos,
        "eos_token": _token(metadata, "eos", tokens),
        "unk_token": _token(metadata, "unknown", tokens),
        "pad_token": _token(metadata, "padding", tokens),
        "chat_template": metadata.get("tokenizer.chat_template"),
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=1), encoding="utf-8")


def end_ids(metadata: Mapping[str, Any]) -> list[int]:
    """The ids that end a reply: eos, and where given end of turn and end of message."""
    names = ("eos", "eot", "eom")
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names]
    return list(dict.fromkeys(int(i) for i in ids if i is not None))


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens or not isinstance(tokens, list):
        raise UnsupportedModelError("the GGUF carries no tokenizer (tokenizer.ggml.tokens); one with it is needed.")
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise DamagedModelError(f"the GGUF has {len(tokens):,} tokens, but {len(types):,} token types.")
    if len(set(tokens)) != len(tokens):
        raise DamagedModelError(f"{len(tokens) - len(set(tokens)):,} tokens of the GGUF's vocabulary occur twice.")
    return tokens, types


def _token(metadata: Mapping[str, Any], name: str, tokens: list[str]) -> str | None:
    token = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return tokens[token] if isinstance(token, int) and token < len(tokens) else None


def _adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Return llama.cpp's default for a file that does not say."""
    return metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in _LLAMA3


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    """Control tokens are special (left out of text); user-defined ones are only kept whole."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": token, **plain, "special": kind != _USER_DEFINED}
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _post_processor(bos: str, tokens: list[str]) -> dict[str, Any]:
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": [start, a], "pair": [start, a, start, b], "special_tokens": special}


def _byte_level_bpe(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    merges = [merge.split(" ") for merge in metadata.get("tokenizer.ggml.merges") or ()]
    known = set(tokens)
    for pair in merges:
        if len(pair) != 2 or not known.issuperset(pair) or "".join(pair) not in known:
            raise DamagedModelError(f"the GGUF's merge {' '.join(pair)!r} does not fit its vocabulary.")
    pre = metadata.get("tokenizer.ggml.pre", "default")
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": _pre_tokenizer(pre),
        "post_processor": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": _bpe(tokens, merges, ignore_merges=pre in _LLAMA3),
    }


def _pre_tokenizer(pre: str) -> dict[str, Any]:
    if pre == "smollm":
        steps = [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]
    elif pre in ("gpt-2", "default"):
        return _BYTE_LEVEL
    elif pre == "qwen2" or pre in _LLAMA3:
        regex = QWEN2_REGEX if pre == "qwen2" else LLAMA3_REGEX
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        steps = [split, {**_BYTE_LEVEL, "use_regex": False}]
    else:
        raise UnsupportedModelError(
            f"the GGUF's pre-tokenizer is {pre!r}; supported are {', '.join(PRE_TOKENIZERS)}. "
            f"Use the model's mlx-lm directory or hub id instead."
        )
    return {"type": "Sequence", "pretokenizers": steps}


def _sentencepiece_bpe(metadata: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """SentencePiece BPE: a pair merges where its union is a piece, best score first."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not scores or len(scores) != len(tokens):
        raise DamagedModelError(f"the GGUF has {len(tokens):,} tokens, but {len(scores or ()):,} scores.")
    if sum(kind == _BYTE for kind in types) != 256:
        raise UnsupportedModelError("the GGUF's SentencePiece vocabulary lacks the 256 byte pieces; they are needed.")
    pieces = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind == _NORMAL}
    merges = []
    for piece, i in pieces.items():
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        pairs = [(a, b) for a, b in cuts if a in pieces and b in pieces]
        merges += [(-scores[i], i, k, pair) for k, pair in enumerate(pairs)]
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*([{"type": "Prepend", "prepend": "▁"}] * prefix), space]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _bpe(
            tokens,
            [list(pair) for *_, pair in sorted(merges)],
            unknown=_token(metadata, "unknown", tokens) or unknown,
            byte_fallback=True,
        ),
    }


def _bpe(
    tokens: list[str],
    merges: list[list[str]],
    *,
    unknown: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
    }

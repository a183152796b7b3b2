"""``Memory.measure_codec()``: one engine call for each text, and one report of all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from attrs import frozen

from agent_memory.config import CODECS, Codec, is_codec, is_text
from agent_memory.errors import PromptTooLongError, UnsupportedParameterError, repr_of
from agent_memory.kvcache.coding import fallbacks, fitted, is_for, is_lossy, named
from agent_memory.progress import Progress, silent
from agent_memory.protocols import Divergence, ModelRunner
from agent_memory.scheduler.engine import Engine
from agent_memory.views.page import Note, Page, Shown, Table
from agent_memory.views.units import count

#: This share of a text is the context, in encoded KV; predictions of the remaining tokens are compared.
CONTEXT_SHARE = 0.75
LEAST_TOKENS = 8
_LONGEST_NAME = 16


@frozen(kw_only=True)
class CodecReport(Shown):
    """What a codec costs in quality: the model's next tokens on decoded KV, against those on exact KV."""

    codec: str
    bits_per_value: float  #: of the KV, scales included
    ratio: float  #: exact bytes to encoded ones
    kl: float  #: mean Kullback-Leibler divergence from exact, nats a token
    worst_kl: float  #: of any one token
    perplexity: float  #: of the texts, on exact KV
    coded_perplexity: float
    agreement: float  #: share of tokens after which both predict the same next token
    n_tokens: int  #: compared
    encode_gb_s: float  #: exact bytes a second
    decode_gb_s: float
    #: tensors that the codec leaves exact, each with the reason
    exact_tensors: tuple[str, ...] = ()

    @property
    def perplexity_change(self) -> float:
        """0.01: one percent worse."""
        return self.coded_perplexity / self.perplexity - 1

    def __repr__(self) -> str:
        return (
            f"CodecReport({short_name(self.codec)}: {self.bits_per_value:.2f} bits, {self.ratio:.2f}x smaller, "
            f"KL {self.kl:.5f}, perplexity {self.perplexity_change:+.2%}, same token {self.agreement:.1%}, "
            f"{self.n_tokens} tokens)"
        )

    def _page(self) -> Page:
        rows = [
            ("bits per value", f"{self.bits_per_value:.2f}"),
            ("smaller than exact", f"{self.ratio:.2f} times"),
            ("divergence from exact", f"{self.kl:.2g} nats a token, {self.worst_kl:.2g} at worst"),
            ("perplexity", f"{self.coded_perplexity:.3f}, {self.perplexity_change:+.2%}"),
            ("same next token", f"{self.agreement:.1%}"),
            ("encodes, decodes", f"{self.encode_gb_s:.1f}, {self.decode_gb_s:.1f} GB a second"),
        ]
        left = [Note(f"left exact: {tensor}") for tensor in self.exact_tensors]
        return Page(
            f"Codec {short_name(self.codec)}, compared over {count(self.n_tokens, 'token')}", [Table(rows), *left]
        )


def short_name(codec: Codec) -> str:
    """Return a codec's name for a line: that of a mixed one is as long as its model has layers."""
    return codec if len(codec) <= _LONGEST_NAME else f"{codec[:_LONGEST_NAME]}..."


def measure(
    engine: Engine,
    runner: ModelRunner,
    chunk_tokens: int,
    name: str,
    texts: Sequence[str],
    progress: Progress = silent,
) -> CodecReport:
    """Return the report of codec ``name`` on ``texts``; see ``Memory.measure_codec``."""
    if not is_codec(name) or name == "exact":
        names = f"{', '.join(CODECS[1:])}, or a name that choose_codec gave"
        raise UnsupportedParameterError(f"codec must be one of {names}: got {repr_of(name)}")
    texts = checked_texts(texts)
    codec = named(name)
    if not is_for(runner.layout, codec):
        raise UnsupportedParameterError(f"codec {repr_of(name)} was chosen for a model of another number of layers")
    if not runner.layout.is_storable:
        raise UnsupportedParameterError(f"KV of this model is not stored: {runner.layout.unstored[0]}")
    if not is_lossy(runner.layout, codec):
        raise UnsupportedParameterError(f"{codec} leaves all KV of {runner.name} exact; there is nothing to measure")
    found = []
    for number, text in enumerate(texts):
        progress(number, len(texts), "")
        found.append(_compared(engine, runner, chunk_tokens, fitted(runner.layout, codec), text))
    return report(codec, found, fallbacks(runner.layout, codec))


def checked_texts(texts: object) -> tuple[str, ...]:
    """Return the texts of a caller. Raises UnsupportedParameterError for what is no list of at least one text."""
    found = () if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable) else tuple(texts)
    if not found:
        raise UnsupportedParameterError("texts must be a list of at least one text")
    for text in found:
        if not is_text(text):
            shown = "one with lone surrogates" if isinstance(text, str) else type(text).__name__
            raise UnsupportedParameterError(f"a text must be a str, got {shown}")
    return found


def _compared(engine: Engine, runner: ModelRunner, chunk_tokens: int, codec: Codec, text: str) -> Divergence:
    ids = runner.tokenizer.encode(text, bos=True)
    limit = runner.context_tokens
    if len(ids) < LEAST_TOKENS:
        raise UnsupportedParameterError(f"a text of {len(ids)} tokens says nothing: give {LEAST_TOKENS} or more")
    if limit is not None and len(ids) > limit:
        raise PromptTooLongError(len(ids), limit)

    def work() -> Divergence:
        batch = runner.open_batch(chunk_tokens)
        try:
            return batch.measure(ids, int(len(ids) * CONTEXT_SHARE), codec)
        finally:
            batch.close()

    return engine.call(work)


def report(codec: str, found: Sequence[Divergence], exact_tensors: tuple[str, ...] = ()) -> CodecReport:
    """Return one report of several texts; every token has the same weight."""
    n_tokens = sum(one.n_tokens for one in found)
    exact_bytes, coded_bytes = sum(one.exact_bytes for one in found), sum(one.coded_bytes for one in found)
    return CodecReport(
        codec=codec,
        bits_per_value=8 * coded_bytes / sum(one.n_values for one in found),
        ratio=exact_bytes / coded_bytes,
        kl=sum(one.kl for one in found) / n_tokens,
        worst_kl=max(one.worst_kl for one in found),
        perplexity=math.exp(sum(one.loss for one in found) / n_tokens),
        coded_perplexity=math.exp(sum(one.coded_loss for one in found) / n_tokens),
        agreement=sum(one.agreed for one in found) / n_tokens,
        n_tokens=n_tokens,
        encode_gb_s=exact_bytes / sum(one.encode_s for one in found) / 1e9,
        decode_gb_s=exact_bytes / sum(one.decode_s for one in found) / 1e9,
        exact_tensors=exact_tensors,
    )

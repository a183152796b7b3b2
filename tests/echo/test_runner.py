"""EchoRunner keeps the seam's promises, and one wrong byte of KV shows in its reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_memory.echo.kv import EchoKV
from agent_memory.echo.runner import EchoRunner
from agent_memory.errors import ConfigError, UnsupportedParameterError
from agent_memory.protocols import ModelRunner, Tokenizer
from agent_memory.types import Sampling

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


class Bytes:
    """A Source over what ``KV.read`` gave, with one byte flipped where asked."""

    def __init__(self, kv: EchoKV, n_layers: int, flip: tuple[int, int] | None = None) -> None:
        self.n_tokens = kv.n_tokens
        self._rows = [kv.read(t, 0, kv.n_tokens) for t in range(2 * n_layers)]
        if flip is not None:
            tensor, place = flip
            self._rows[tensor % len(self._rows)].reshape(-1)[place % self._rows[0].size] ^= 1

    def read_into(self, tensor: int, out: memoryview, capacity: int) -> None:
        rows = self._rows[tensor]
        np.frombuffer(out, np.uint8).reshape(rows.shape[0], capacity, -1)[:, : self.n_tokens] = rows

    def check(self) -> bool:
        return True


def chat(runner: EchoRunner, text: str) -> list[int]:
    return runner.tokenizer.encode(runner.tokenizer.render([{"role": "user", "content": text}]))


def answer(runner: EchoRunner, ids: Sequence[int], kv: Any = None, **options: Any) -> tuple[list[int], Any]:
    batch = runner.open_batch()
    kv = batch.empty() if kv is None else kv
    batch.prefill(kv, ids[kv.n_tokens : -1])
    batch.insert(0, kv, ids, group=0, sampling=options.pop("sampling", Sampling()), **options)
    out: list[int] = []
    while not out or (out[-1] not in runner.tokenizer.eos_ids and len(out) < 400):
        out.append(batch.step(0)[0][1])
    return out, batch.remove([0])[0]


def test_it_is_a_model_runner() -> None:
    assert isinstance(EchoRunner(), ModelRunner)
    assert isinstance(EchoRunner().tokenizer, Tokenizer)


@pytest.mark.parametrize("bos", [False, True])
@given(text=TEXTS)
def test_text_survives_the_tokenizer_and_the_stream(bos: bool, text: str) -> None:
    tokenizer = EchoRunner(bos=bos).tokenizer
    ids = tokenizer.encode_plain(text)
    stream = tokenizer.detokenizer()
    assert tokenizer.decode(ids) == text
    assert "".join(map(stream.add, ids)) + stream.end() == text
    assert tokenizer.key(ids).encode("latin-1").decode() == text


def test_bos_is_put_once_and_by_the_template() -> None:
    tokenizer = EchoRunner(bos=True).tokenizer
    assert tokenizer.encode("<|bos|>a", bos=True) == tokenizer.encode("a", bos=True) == [tokenizer.bos_id, ord("a")]
    assert tokenizer.encode(tokenizer.render([{"role": "user", "content": "a"}]))[0] == tokenizer.bos_id
    assert EchoRunner().tokenizer.encode("a", bos=True) == [ord("a")]


def test_the_digest_and_the_identity_depend_on_what_changes_them() -> None:
    others = [EchoRunner(bos=True), EchoRunner(identity="b"), EchoRunner(dim=16), EchoRunner(dtype="U16")]
    runners = [EchoRunner(), *others]
    assert len({tuple(r.identity.items()) for r in runners}) == len(runners)
    assert EchoRunner().tokenizer.digest != EchoRunner(bos=True).tokenizer.digest
    assert EchoRunner().identity == EchoRunner().identity


@given(text=TEXTS)
def test_the_reply_is_the_last_user_message(text: str) -> None:
    runner = EchoRunner()
    out, _ = answer(runner, chat(runner, text))
    if not any(special in text for special in ("<|", "|>")):
        assert runner.tokenizer.decode(out) == text
    assert out[-1] == runner.tokenizer.end_id


def test_replies_use_ids_that_the_tokenizer_would_not_choose() -> None:
    runner = EchoRunner()
    out, _ = answer(runner, chat(runner, "the unbelievable world"))
    assert out[:-1] != runner.tokenizer.encode("the unbelievable world")
    assert runner.tokenizer.decode(out) == "the unbelievable world"


def test_a_reply_may_be_given_as_text_or_ids_or_made_per_request() -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []

    def reply(text: str, ids: tuple[int, ...]) -> list[int]:
        asked.append((text, ids))
        return [65, 66]

    runner = EchoRunner(reply)
    ids = chat(runner, "hi")
    assert answer(runner, ids)[0] == [65, 66, runner.tokenizer.end_id]
    assert asked == [("hi", tuple(ids))]
    fixed = EchoRunner("yes")
    assert fixed.tokenizer.decode(answer(fixed, ids)[0]) == "yes"


def test_a_token_given_out_by_step_is_covered_by_the_kv() -> None:
    runner = EchoRunner("hello there")
    ids = chat(runner, "hi")
    batch = runner.open_batch()
    kv = batch.empty()
    batch.prefill(kv, ids[:-1])
    batch.insert(7, kv, ids, group=3, sampling=Sampling())
    out = [batch.step(3)[0][1]]
    assert kv.n_tokens == len(ids), "the first token is not fed before the next step"
    for _ in range(4):
        [(row, token)] = batch.step(3)
        out.append(token)
        assert row == 7
        assert kv.n_tokens == len(ids) + len(out)
        assert kv.conversation() == (*ids, *out)
    assert (runner.calls.computed, runner.calls.generated_ids) == (len(ids), len(out))


@given(cut=st.integers(0, 600), grid=st.integers(1, 300))
def test_kv_does_not_depend_on_the_prefill_steps_nor_on_trims(cut: int, grid: int) -> None:
    runner = EchoRunner()
    ids = [i % 250 for i in range(600)]
    batch = runner.open_batch()
    whole, parts = batch.empty(), batch.empty()
    batch.prefill(whole, ids)
    batch.prefill(parts, [*ids[:cut], 3, 4, 5])
    assert parts.trim(cut)
    for start in range(cut, 600, grid):
        batch.prefill(parts, ids[start : start + grid])
    for tensor in range(4):
        assert np.array_equal(whole.read(tensor, 0, 600), parts.read(tensor, 0, 600))


@given(flip=st.none() | st.tuples(st.integers(0, 3), st.integers(0, 10**6)))
def test_any_wrong_byte_of_restored_kv_gives_a_visibly_wrong_reply(flip: tuple[int, int] | None) -> None:
    runner = EchoRunner()
    ids = chat(runner, "Remember the number 4711.")
    batch = runner.open_batch()
    kv = batch.empty()
    batch.prefill(kv, ids[:-1])
    restored = batch.restore(Bytes(kv, 2, flip))
    text = runner.tokenizer.decode(answer(runner, ids, restored)[0])
    assert text == ("Remember the number 4711." if flip is None else "\ufffd" * 8)


def test_kv_of_another_identity_is_seen() -> None:
    one, other = EchoRunner(), EchoRunner(identity="other")
    ids = chat(one, "hi")
    batch = one.open_batch()
    kv = batch.empty()
    batch.prefill(kv, ids[:-1])
    foreign = other.open_batch().restore(Bytes(kv, 2))
    assert "\ufffd" in other.tokenizer.decode(answer(other, ids, foreign)[0])


def test_a_copy_is_independent_and_an_unstorable_kv_cannot_be_cut() -> None:
    runner = EchoRunner()
    batch = runner.open_batch()
    kv = batch.empty()
    batch.prefill(kv, [1, 2, 3])
    copied = kv.copy(2)
    assert copied is not None
    copied.feed([9])
    assert (kv.conversation(), copied.conversation()) == ((1, 2, 3), (1, 2, 9))
    whole = EchoRunner(unstorable=True)
    kept = whole.open_batch().empty()
    kept.feed([1, 2, 3])
    assert not whole.layout.is_storable
    assert (kept.trim(2), kept.trim(3), kept.copy(2)) == (False, True, None)


def test_seeds_decide_draws_and_batch_mates_do_not() -> None:
    runner = EchoRunner("a long reply, so that some of its tokens are drawn differently")
    ids = chat(runner, "hi")
    hot = [Sampling(temperature=2.0, seed=seed) for seed in (1, 2, 1)]
    alone = [answer(runner, ids, sampling=s)[0][:20] for s in hot]
    assert alone[0] == alone[2] != alone[1]
    batch = runner.open_batch()
    outs: list[list[int]] = []
    for row, sampling in enumerate(hot):
        kv = batch.empty()
        batch.prefill(kv, ids[:-1])
        batch.insert(row, kv, ids, group=0, sampling=sampling)
        outs.append([])
        for number, token in batch.step(0):  # each joins while those before it decode
            outs[number].append(token)
    for _ in range(22):
        for number, token in batch.step(0):
            outs[number].append(token)
    assert [out[: len(a)] for out, a in zip(outs, alone, strict=True)] == alone


def test_logits_processors_choose_and_a_raising_one_fails_its_row_alone() -> None:
    runner = EchoRunner("aaaa")
    ids = chat(runner, "hi")
    seen: list[int] = []

    def ban_a(history: Sequence[int], logits: Any) -> Any:
        seen.append(len(history))
        assert logits.shape == (runner.tokenizer.n_vocab,)
        assert logits.dtype == np.float32
        logits[ord("a")] = -np.inf
        return logits

    def broken(history: Sequence[int], logits: Any) -> Any:
        raise RuntimeError("mine")

    assert ord("a") not in answer(runner, ids, logits_processors=[ban_a])[0]
    assert seen[:3] == [len(ids), len(ids) + 1, len(ids) + 2]
    batch = runner.open_batch()
    for row, processors in enumerate(([broken], [lambda h, x: x[:3]], [])):
        kv = batch.empty()
        batch.prefill(kv, ids[:-1])
        batch.insert(row, kv, ids, group=0, sampling=Sampling(), logits_processors=processors)
    assert batch.step(0)[2] == (2, ord("a"))
    assert str(batch.error(0)) == "mine"
    assert isinstance(batch.error(1), ValueError)
    assert batch.error(2) is None


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="16 or more"):
        EchoRunner(dim=4, dtype="U16")
    with pytest.raises(ConfigError, match="U8, U16 or U32, not 'F32'"):
        EchoRunner(dtype="F32")
    with pytest.raises(ConfigError, match="1 or more"):
        EchoRunner(layers=0)
    with pytest.raises(UnsupportedParameterError, match="lone surrogate"):
        EchoRunner().tokenizer.encode("\ud800")
    batch = EchoRunner().open_batch()
    with pytest.raises(ValueError, match="covers 0 tokens"):
        batch.insert(0, batch.empty(), [], group=0, sampling=Sampling())
    kv = batch.empty()
    batch.prefill(kv, [1, 2])
    with pytest.raises(ValueError, match="covers 2 tokens: of 2 ids none is left"):
        batch.insert(0, kv, [1, 2], group=0, sampling=Sampling())
    batch.insert(0, kv, [1, 2, 3], group=0, sampling=Sampling())
    with pytest.raises(ValueError, match="decoding already"):
        batch.insert(0, batch.empty(), [1], group=0, sampling=Sampling())


def test_tools_are_shown_with_and_without_a_system_message() -> None:
    render = EchoRunner().tokenizer.render
    user, tools = {"role": "user", "content": "hi"}, [{"name": "clock"}]
    assert '"clock"' in render([user], tools=tools)
    with_system = render([{"role": "system", "content": "Be brief."}, user], tools=tools)
    assert with_system.count("<|system|>") == with_system.count('"clock"') == 1
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    assert '<tool_call>{"name": "clock", "arguments": {}}</tool_call>' in render([user, call])

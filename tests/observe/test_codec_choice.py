"""Memory.choose_codec: bits of each layer's keys and values by what their errors cost on the user's own texts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent_memory import Config, ConfigError, EchoRunner, Memory, ReadOnlyError, RequestError, UnsupportedParameterError
from agent_memory.kvcache.coding import coding
from agent_memory.observe import reports
from agent_memory.observe.codec_choice import choose
from agent_memory.observe.own_texts import own_ids
from tests.laws.test_laws_kinds import CHUNK, text
from tests.parts.logits import answer
from tests.parts.tinyrunner import endless

TEXTS = [text(1, 120), text(2, 120)]


def opened(name: str, path: Any, codec: str) -> Memory:
    return Memory(endless(name), path, config=Config(chunk_tokens=CHUNK, prefill_tokens=CHUNK, cold_codec=codec))


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["llama_windows", pytest.param("deepseek_v3", marks=pytest.mark.slow)])
def test_a_choice_keeps_its_budget_and_is_smaller_than_the_fixed_codec_that_costs_as_much(name: str) -> None:
    with opened(name, ":memory:", "exact") as memory:
        fixed = memory.measure_codec("q5", TEXTS[:1])
        choice = memory.choose_codec(fixed.kl, TEXTS)
        assert 0 < choice.kl <= fixed.kl == choice.budget
        assert choice.checked.codec == choice.codec
        assert choice.checked.bits_per_value < fixed.bits_per_value
        assert memory.measure_codec(choice.codec, TEXTS[:1]).kl == pytest.approx(choice.kl)  # the text it was chosen on
        finer = memory.choose_codec(fixed.kl / 100, TEXTS)
        assert finer.checked.bits_per_value > choice.checked.bits_per_value
        assert finer.kl <= fixed.kl / 100
    assert choice.bits.keys() == choice.sensitivity.keys()
    assert len(set(choice.bits.values())) > 1
    assert repr(choice).startswith(f"CodecChoice({choice.setting}: ")
    assert "bits of keys" in choice._repr_html_()


@pytest.mark.mlx
def test_the_bits_of_a_choice_are_those_that_its_codec_gives_where_tensors_share_a_digit() -> None:
    with opened("deepseek_v32", ":memory:", "exact") as memory:  # two caches a layer
        choice = memory.choose_codec(0.002, TEXTS)
        specs = memory._runner.layout.tensors
    assert len(specs) == len(choice.bits) > len(choice.codec.removeprefix("mix."))
    for spec in specs:
        made = coding(spec, choice.codec)
        assert choice.bits[spec.name] == (0 if made is None else made.bits)


@pytest.mark.mlx
def test_new_kv_follows_the_choice_at_once_and_in_later_processes(tmp_path: Path) -> None:
    first, second = text(1, 64), text(1, 64) + text(2, 9)
    with opened("llama", tmp_path, "auto:2e-3") as memory:
        assert any("choose_codec(0.002)" in line for line in memory.doctor().advice)
        answer(memory, first, max_tokens=1)
        memory.evict()
        _, reply = answer(memory, second, max_tokens=1)
        assert reply.usage.exactness == "exact"
        choice = memory.choose_codec(0.002, TEXTS)
        assert choice.setting == memory.doctor().facts["cold_codec"] == "auto:0.002"
        assert not any("choose_codec" in line for line in memory.doctor().advice)
        assert memory.doctor().facts["cold_bytes_per_token"] < memory.doctor().facts["kv_bytes_per_token"]
    stored = {"exact"}
    for turn in range(3, 5):
        with opened("llama", tmp_path, "auto:0.002") as memory:
            ann = memory.agent("ann")
            ann.say(text(turn, 40), max_tokens=2)
            memory.evict()
            assert ann.say(text(-turn, 40), max_tokens=2).usage.exactness == "quantized"
            memory.flush()
            assert memory.verify().ok
            stored |= {one.codec for one in memory._store.parts.manifest.segments()}
    assert stored == {"exact", choice.codec}
    with opened("llama", tmp_path, "exact") as memory:  # the name in each file says how it is read
        assert memory.agent("ann").say("more", max_tokens=2).usage.exactness == "quantized"


@pytest.mark.mlx
def test_a_model_that_was_swapped_meanwhile_gets_no_choice_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened("llama", ":memory:", "auto:0.002") as memory:

        def slow(*arguments: Any) -> Any:
            found = choose(*arguments)
            memory.swap_model(endless("qwen3"))
            return found

        monkeypatch.setattr(reports, "choose", slow)
        with pytest.raises(RequestError, match="swapped"):
            memory.choose_codec(0.002, TEXTS)
        assert memory.doctor().facts["cold_codec"] == "auto:0.002"
        assert any("choose_codec(0.002)" in line for line in memory.doctor().advice)


@pytest.mark.mlx
def test_rows_of_two_choices_never_mix(tmp_path: Path) -> None:
    long = text(1, 5 * CHUNK)
    ends = (CHUNK + 3, 2 * CHUNK + 5, 4 * CHUNK)
    codecs = ("mix.8664", "mix.6486", "mix.c4a5")
    for codec, end in zip(codecs, ends, strict=True):
        with opened("llama", tmp_path, codec) as memory:
            answer(memory, long[:end], max_tokens=1)
            memory.flush()
            assert not memory.verify().damaged
            for one in memory._store.parts.manifest.segments():
                assert one.codec in (*codecs, "exact")
                assert one.exactness == "quantized" or one.codec == "exact"
    with opened("llama", tmp_path, "exact") as memory:
        _, reply = answer(memory, long, max_tokens=1)
        assert (reply.usage.cached_tokens, reply.usage.exactness) == (4 * CHUNK, "quantized")
        assert memory.stats().damage == 0
        names = {one.codec for one in memory._store.parts.manifest.segments()}
    assert len(names & set(codecs)) >= 2


@pytest.mark.mlx
def test_the_texts_of_the_store_s_own_agents_are_the_default() -> None:
    with opened("llama", ":memory:", "exact") as memory:
        with pytest.raises(UnsupportedParameterError, match="no agent"):
            memory.choose_codec(0.002)
        memory.agent("ann").say(text(1, 150), max_tokens=9)
        before = memory.stats()
        choice = memory.choose_codec(0.002)
        assert memory.stats() == before
        assert 0 < choice.kl <= 0.002


def test_long_agents_of_another_model_do_not_hide_the_others() -> None:
    sizes = {f"other {n}": 100 + n for n in range(20)} | {f"own {n}": n for n in range(1, 12)}

    def load_agent(_: str, name: str) -> Any:
        turn = SimpleNamespace(tokenizer=name.partition(" ")[0])
        return SimpleNamespace(turns=[turn], ids=np.arange(sizes[name]))

    infos = [SimpleNamespace(name=name, n_tokens=n) for name, n in sizes.items()]
    store: Any = SimpleNamespace(list_agents=lambda _: infos, load_agent=load_agent)
    assert [len(ids) for ids in own_ids(store, "", "own")] == [11, 10, 9, 8, 7, 6, 5, 4]


@pytest.mark.mlx
def test_a_codec_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another number of layers"):
        opened("llama", tmp_path, "mix.44")
    with opened("llama", tmp_path, "exact") as memory:
        with pytest.raises(UnsupportedParameterError, match="another number of layers"):
            memory.measure_codec("mix.44", TEXTS)
        with pytest.raises(UnsupportedParameterError, match="codec must be one of"):
            memory.agent("ann").export(tmp_path / "a.agent", codec="mix.44")


@pytest.mark.mlx
def test_an_agent_goes_to_another_store_in_a_mixed_codec(tmp_path: Path) -> None:
    with opened("llama", tmp_path / "one", "exact") as memory:
        ann = memory.agent("ann")
        ann.say(text(1, 60), max_tokens=2)
        ann.export(tmp_path / "ann.agent", codec="mix.8664")
    with opened("llama", tmp_path / "two", "q4") as memory:
        usage = memory.import_agent(tmp_path / "ann.agent").say("more", max_tokens=2).usage
        assert (usage.tier, usage.exactness) == ("cold", "quantized")
        assert "mix.8664" in {one.codec for one in memory._store.parts.manifest.segments()}


@pytest.mark.mlx
@pytest.mark.parametrize(
    "kl", [0, -1, float("nan"), float("inf"), pytest.param(10**400, id="huge"), "0.002", None, True]
)
def test_a_budget_that_is_none_is_refused(kl: Any) -> None:
    with opened("llama", ":memory:", "exact") as memory:
        with pytest.raises(UnsupportedParameterError, match="kl must be"):
            memory.choose_codec(kl, TEXTS)
        with pytest.raises(UnsupportedParameterError, match="texts"):
            memory.choose_codec(0.002, [])
        with pytest.raises(UnsupportedParameterError, match="say nothing"):
            memory.choose_codec(0.002, ["short"])


def test_a_model_whose_kv_no_codec_encodes_says_so(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        memory.agent("ann").say("one")
        with pytest.raises(UnsupportedParameterError, match="leaves all KV"):
            memory.choose_codec(0.002, ["a text of some length " * 9])
    with Memory(EchoRunner(), tmp_path, read_only=True) as reader, pytest.raises(ReadOnlyError):
        reader.choose_codec(0.002, ["a text of some length " * 9])

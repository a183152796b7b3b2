"""doctor(): what was found, what was chosen and where from, and what would change it."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from agent_memory import ClosedError, Config, EchoRunner, Memory
from agent_memory.config import total_memory_bytes
from agent_memory.figures import Doctor
from agent_memory.observe.choices import EFFECTS, Circumstances, choices
from agent_memory.toolcall.choice import choice_of


def found(config: Config = Config(), path: Path | str = ":memory:", runner: EchoRunner | None = None) -> Doctor:  # noqa: B008
    with Memory(runner or EchoRunner(), path, config=config) as memory:
        return memory.doctor()


def test_doctor_names_the_format_of_calls_and_why_it_was_chosen() -> None:
    runner = EchoRunner()
    doctor = found(runner=runner)
    choice = choice_of(runner.tokenizer)
    assert doctor.facts["tool_format"] == (choice.format or "any JSON form")
    assert doctor.facts["tool_format_reason"] == choice.reason != ""
    assert doctor.facts["reasoning_tags"] == " ".join(runner.tokenizer.reasoning or ("none",))


def test_every_setting_is_a_choice_with_a_source_a_reason_and_a_way_to_change_it() -> None:
    settings = [field.name for field in attrs.fields(Config)]
    doctor = found()
    assert [choice.name for choice in doctor.choices] == settings == list(EFFECTS)
    for choice in doctor.choices:
        assert choice.source in ("default", "machine", "model")
        assert choice.why
        assert choice.change.startswith(f"Config({choice.name}=...): ")
        assert choice.value is None or isinstance(choice.value, (bool, int, float, str))


def test_what_config_says_comes_from_config_and_names_the_default() -> None:
    doctor = found(Config(hot_bytes=1 << 30, max_batch=3, chunk_tokens=16, prefill_tokens=32))
    for name, value, default in (
        ("hot_bytes", 1 << 30, "None"),
        ("max_batch", 3, "8"),
        ("chunk_tokens", 16, "256"),
        ("prefill_tokens", 32, "None"),
    ):
        choice = doctor.choice(name)
        assert (choice.value, choice.source) == (value, "config")
        assert f"the default is {default}" in choice.why


def test_what_the_machine_decided_says_by_which_figure(tmp_path: Path) -> None:
    with Memory(EchoRunner(), tmp_path) as memory:
        doctor, stats = memory.doctor(), memory.stats()
    hot, disk = doctor.choice("hot_bytes"), doctor.choice("disk_bytes")
    assert (hot.value, hot.source) == (total_memory_bytes() // 4, "machine")
    assert f"{total_memory_bytes() / (1 << 30):.1f} GiB" in hot.why
    assert (disk.value, disk.source) == (stats.budgets["cold"], "machine")
    assert disk.value > 0
    assert found().choice("disk_bytes").value == 0


def test_a_lossy_warm_codec_explains_its_tier() -> None:
    doctor = found(Config(warm_codec="q8", hot_bytes=1000))
    assert doctor.choice("warm_bytes").value == 500
    assert "half of hot_bytes (1,000)" in doctor.choice("warm_bytes").why


class Loaded(EchoRunner):
    """Says of its weights what a model says that the library has loaded."""

    backend = "mlx cpu"

    @property
    def facts(self) -> dict[str, object]:
        return {**super().facts, "backend": self.backend, "weights_dtype": "float32"}

    @property
    def choices(self) -> dict[str, str]:
        return {"weights_dtype": "float32"}


def test_the_dtype_of_the_weights_comes_from_config_the_store_or_the_machine(tmp_path: Path) -> None:
    first = found(path=tmp_path, runner=Loaded()).choice("weights_dtype")
    assert (first.value, first.source) == ("float32", "machine")
    again = found(path=tmp_path, runner=Loaded()).choice("weights_dtype")
    assert (again.value, again.source) == ("float32", "store")
    assert "when this store first had the model" in again.why
    given = found(Config(weights_dtype="float32"), tmp_path, Loaded()).choice("weights_dtype")
    assert (given.value, given.source) == ("float32", "config")
    assert found().choice("weights_dtype").source == "model"


def test_a_gpu_has_its_own_reasons() -> None:
    runner = Loaded()
    runner.backend = "mlx gpu"
    at = Circumstances(runner=runner, config=Config(), recorded={}, disk_bytes=0)
    chosen = {choice.name: choice for choice in choices(at)}
    assert "stay as they are stored" in chosen["weights_dtype"].why
    assert "2,048 on GPUs; this is mlx gpu" in chosen["prefill_tokens"].why


def test_the_text_shows_sources_and_with_explain_the_reasons() -> None:
    with Memory(EchoRunner(), ":memory:", config=Config(max_batch=3)) as memory:
        short, long = str(memory.doctor()), str(memory.doctor(explain=True))
    assert "  max_batch: 3 (config)" in short.splitlines()
    assert "  backend: echo" in short.splitlines()
    assert "why:" not in short
    assert "      why: given as Config(max_batch=...); the default is 8" in long.splitlines()
    assert f"      to change it: Config(max_batch=...): {EFFECTS['max_batch']}" in long.splitlines()


def test_secrets_and_functions_are_said_to_be_set_and_no_more() -> None:
    doctor = found(Config(salt="tenant-secret", on_reply=print, redact="rules"))
    assert [doctor.choice(name).value for name in ("salt", "on_reply", "redact")] == ["set"] * 3
    assert "tenant-secret" not in str(doctor.to_dict()) + str(doctor)
    assert found().choice("salt").value == "not set"


def test_a_closed_memory_is_refused() -> None:
    with Memory(EchoRunner(), ":memory:") as memory:
        pass
    with pytest.raises(ClosedError):
        memory.doctor()

"""Model folders as they come: each loads, or raises a typed error, or is warned of once in doctor() and the log."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_memory import AgentMemoryError, Config, DamagedModelError, Memory, MLXRunner, UnsupportedModelError
from agent_memory.errors import UnsupportedParameterError
from tests.parts import tiny
from tests.parts.tinydirectory import adapter, directory
from tests.parts.tinytokenizer import TEMPLATE, tokenizer

pytestmark = pytest.mark.mlx

SMALL = Config(chunk_tokens=16, prefill_tokens=32, blas=None)
ASKED = "The same words for all of them."


def answer(model: Any, **more: Any) -> tuple[int, ...]:
    with Memory(model, ":memory:", config=SMALL, **more) as memory:
        return memory.generate(ASKED, max_tokens=6).token_ids


def notes(model: Any, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What doctor() says of the model itself; the log says each once."""
    caplog.clear()
    with caplog.at_level(logging.WARNING), Memory(model, ":memory:", config=SMALL) as memory:
        found = [a for a in memory.doctor().advice if "BLAS" not in a and "on this CPU float32" not in a]
        assert "notes" not in memory.doctor().facts
    said = [r.getMessage() for r in caplog.records if r.name == "agent_memory.runner"]
    assert [m.partition(": ")[2] for m in said if m.startswith("model ")] == found
    return found


@pytest.mark.parametrize("name", ["models [v2]", "a*b", "what?", "[!x]", "plain # % name", "ünï cödé"])
def test_line_8_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    plain = directory(tmp_path / "x")
    odd = tmp_path / name / "x"
    shutil.copytree(plain, odd)
    lora = adapter(tmp_path / name / "lora", 1)
    assert answer(odd) == answer(plain)
    assert answer(odd, adapter=lora) == answer(plain, adapter=shutil.copytree(lora, tmp_path / "lora"))
    with Memory(odd, tmp_path / name / "store", config=SMALL) as memory:
        assert memory.doctor().facts["model_path"] == str(odd)
        memory.agent("a").say(ASKED, max_tokens=4)
    with Memory(odd, tmp_path / name / "store", config=SMALL) as memory:
        assert memory.verify().ok
        assert memory.agent("a").say("More.", max_tokens=4).usage.tier == "cold"


def _template_file(folder: Path, where: str, template: Any) -> None:
    """Move the template of a folder to where another program puts it."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    about = json.loads(file.read_text())
    about.pop("chat_template", None)
    if where == "tokenizer_config.json":
        about["chat_template"] = template
    file.write_text(json.dumps(about))
    if where == "chat_template.json":
        (folder / where).write_text(json.dumps({"chat_template": template}))
    if where == "chat_template.jinja":
        (folder / where).write_text(template)


@pytest.mark.parametrize("where", ["chat_template.json", "chat_template.jinja", "tokenizer_config.json"])
def test_line_8_a_template_is_read_wherever_it_is_kept(where: str, tmp_path: Path) -> None:
    folder = directory(tmp_path / "x")
    _template_file(folder, where, TEMPLATE)
    with Memory(folder, ":memory:", config=SMALL) as memory:
        counted = memory.count_tokens([{"role": "user", "content": "abc"}])
    assert counted == len("user\nabc\nassistant\n") + 3  # a byte each, and three special tokens


def test_a_template_elsewhere_goes_before_chat_template_json(tmp_path: Path) -> None:
    folder = directory(tmp_path / "x")
    _template_file(folder, "chat_template.jinja", TEMPLATE)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "no {{ messages }}"}))
    with Memory(folder, ":memory:", config=SMALL) as memory:
        assert memory.count_tokens([{"role": "user", "content": "abc"}]) == len("user\nabc\nassistant\n") + 3


@pytest.mark.parametrize("held", ["{", "[]", '{"chat_template": 3}', "{}"])
def test_a_chat_template_json_that_cannot_be_read_is_damage(held: str, tmp_path: Path) -> None:
    folder = directory(tmp_path / "x")
    _template_file(folder, "chat_template.json", TEMPLATE)
    (folder / "chat_template.json").write_text(held)
    with pytest.raises(DamagedModelError, match=r"chat_template\.json"):
        answer(folder)


def test_line_8_a_gptq_entry_beside_plain_weights_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    folder = directory(tmp_path / "x", quantization_config=entry)
    assert answer(folder) == answer(directory(tmp_path / "plain"))
    [note] = notes(folder, caplog)
    assert "packed by gptq" in note
    with pytest.raises(UnsupportedModelError, match="quant_method"):
        answer(directory(tmp_path / "y", quantization_config={"bits": 4}))


def test_line_8_a_context_that_config_does_not_tell_is_no_error(tmp_path: Path) -> None:
    folder = directory(tmp_path / "x", max_position_embeddings=None)
    assert answer(folder) == answer(directory(tmp_path / "plain"))
    with Memory(folder, ":memory:", config=SMALL) as memory:
        assert memory.doctor().facts["context_tokens"] is None


ODD: list[Any] = [None, "x", [1], {"rope_type": "x"}, {}, -1, 0, 1e30, True]
KEYS = (
    "max_position_embeddings num_hidden_layers vocab_size rope_theta rope_scaling hidden_size num_attention_heads "
    "num_key_value_heads head_dim eos_token_id quantization quantization_config rms_norm_eps model_type text_config "
    "layer_types sliding_window attention_bias tie_word_embeddings intermediate_size"
).split()


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_line_8_an_odd_value_in_config_loads_or_is_a_typed_error(value: Any, tmp_path: Path) -> None:
    folder = directory(tmp_path / "x")
    whole = json.loads((folder / "config.json").read_text())
    n_loaded, errors = 0, {}
    for key in KEYS:
        (folder / "config.json").write_text(json.dumps(whole | {key: value}))
        try:
            n_loaded += len(answer(folder)) > 0
        except AgentMemoryError as error:
            errors[key] = str(error)
    assert [key for key, said in errors.items() if str(folder) not in said] == []
    assert 0 < n_loaded < len(KEYS)


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value; of lists and vocabularies the first few."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs)[:12]:
        yield (*before, key)
        yield from _places(inner, (*before, key))


def _mutated(text: str, draw: random.Random) -> str:
    value = json.loads(text)
    *way, last = draw.choice(list(_places(value)))
    inside = value
    for key in way:
        inside = inside[key]
    if draw.random() < 0.2:
        del inside[last]
    else:
        inside[last] = draw.choice([*ODD, [], "", [None], 10**30, {"__float__": "NaN"}])
    return json.dumps(value)


def _mutate(folder: Path, seeds: range) -> dict[str, int]:
    (folder / "generation_config.json").write_text('{"eos_token_id": [258], "x": {"y": 1}}')
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")
    whole = {name: (folder / name).read_text() for name in names}
    outcomes = {"loaded": 0, "refused": 0}
    for seed in seeds:
        draw = random.Random(seed)
        name = draw.choice(names)
        (folder / name).write_text(_mutated(whole[name], draw))
        try:
            answer(folder)
            outcomes["loaded"] += 1
        except AgentMemoryError:
            outcomes["refused"] += 1
        (folder / name).write_text(whole[name])
    return outcomes


def test_line_8_random_changes_of_a_models_files_load_or_are_typed_errors(tmp_path: Path) -> None:
    assert min(_mutate(directory(tmp_path / "x"), range(40)).values()) > 0


@pytest.mark.slow
def test_line_8_many_random_changes_of_a_models_files(tmp_path: Path) -> None:
    assert min(_mutate(directory(tmp_path / "x"), range(100, 500)).values()) > 50


@pytest.mark.parametrize(
    "expression", ["1 / 0", "1 % 0", "messages[9].x.y", "'a' * -1 + 3", "raise_exception('no')", "[] | first + 1"]
)
def test_line_8_a_template_that_fails_is_a_typed_error_and_one_warning(
    expression: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = directory(tmp_path / "x")
    _template_file(folder, "chat_template.jinja", "{{ " + expression + " }}")
    [note] = notes(folder, caplog)
    assert "cannot write one question" in note
    with Memory(folder, ":memory:", config=SMALL) as memory:
        with pytest.raises(UnsupportedParameterError, match="chat template"):
            memory.generate("hi")
        with pytest.raises(UnsupportedParameterError, match="chat template"):
            memory.agent("a").say("hi")
        assert memory.generate("hi", raw=True, max_tokens=2).usage.prompt_tokens == 2


INDEX = "model.safetensors.index.json"


def _index(folder: Path, *files: str) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {f"w{i}": file for i, file in enumerate(files)}}))


def test_line_8_an_index_of_other_files_beside_a_whole_one_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, plain = directory(tmp_path / "x"), directory(tmp_path / "plain")
    _index(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert answer(folder) == answer(plain)
    [note] = notes(folder, caplog)
    assert INDEX in note
    assert notes(plain, caplog) == []


def test_an_index_whose_files_are_there_in_part_is_damage(tmp_path: Path) -> None:
    folder = directory(tmp_path / "x")
    _index(folder, "model.safetensors", "model-00002-of-00002.safetensors")
    with pytest.raises(DamagedModelError, match="lacks 1 weight files, such as model-00002"):
        answer(folder)
    os.rename(folder / "model.safetensors", folder / "model-00001-of-00002.safetensors")
    _index(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    with pytest.raises(DamagedModelError, match="lacks 1 weight files, such as model-00002"):
        answer(folder)


@pytest.mark.parametrize("held", ["{", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_cannot_be_read_is_damage(held: str, tmp_path: Path) -> None:
    folder = directory(tmp_path / "x")
    (folder / INDEX).write_text(held)
    with pytest.raises(DamagedModelError, match="index"):
        answer(folder)


def _ending(eos: str | None, template: str = TEMPLATE) -> Any:
    hf = tokenizer()
    hf.eos_token, hf.chat_template = eos, template
    return hf


def test_line_8_an_end_of_turn_that_does_not_end_replies_is_warned_of_with_its_cure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = directory(tmp_path / "x", hf=_ending("<|endoftext|>"))
    [note] = notes(folder, caplog)
    assert "ends a turn with '<|im_end|>' (258)" in note
    assert "'<|endoftext|>' (256)" in note
    cure = f'"eos_token_id": [256, 258] in {folder}/generation_config.json'
    assert cure in note
    (folder / "generation_config.json").write_text("{" + cure.partition(" in ")[0] + "}")
    assert notes(folder, caplog) == []


def test_line_8_a_tokenizer_without_an_end_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [note] = notes(directory(tmp_path / "x", hf=_ending(None)), caplog)
    assert "only with: none" in note
    paragraphs = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    [note] = notes(directory(tmp_path / "y", hf=_ending(None, paragraphs)), caplog)
    assert "names no token that ends a text" in note
    assert notes(directory(tmp_path / "z", hf=_ending("<|endoftext|>", paragraphs)), caplog) == []


def test_line_8_a_turn_that_ends_where_the_next_begins_is_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begins = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
    [note] = notes(directory(tmp_path / "x", hf=_ending("<|endoftext|>", begins)), caplog)
    assert "ends a turn with '<|im_start|>'" in note


def test_line_8_a_tokenizer_that_the_host_loaded_is_looked_at_too(caplog: pytest.LogCaptureFixture) -> None:
    [note] = notes(MLXRunner(tiny.model("llama"), _ending("<|endoftext|>")), caplog)
    assert "tokenizer.add_eos_token('<|im_end|>')" in note
    bare = tokenizer()
    bare.chat_template = None
    [note] = notes(MLXRunner(tiny.model("llama"), bare), caplog)
    assert "no chat template" in note

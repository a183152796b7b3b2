"""Calls of earlier turns: what a template of a format writes of them is read back as the same calls."""

from __future__ import annotations

from typing import Any

import pytest

from agent_memory.toolcall import parse
from agent_memory.toolcall.formats import KNOWN
from tests.parts.writers import found

pytest.importorskip("mlx_lm")

EACH = "{% for c in m.tool_calls %}{% set f = c.function %}"
COMMA = "{% if not loop.last %}, {% endif %}"
JSON = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
ITEMS = "{% for k, v in f.arguments | items %}"
#: Templates that write calls as the ones named in the formats' sources do: arguments as objects, or as text.
TEMPLATES = {
    "json_tools": f"{EACH}<tool_call>\n{JSON}\n</tool_call>{{# tool_call.name #}}{{% endfor %}}",
    "deepseek_v31": f"<｜tool▁calls▁begin｜>{EACH}"
    "{{ '<｜tool▁call▁begin｜>' + f.name + '<｜tool▁sep｜>' + f.arguments + '<｜tool▁call▁end｜>' }}"
    "{% endfor %}<｜tool▁calls▁end｜>",
    "deepseek_v3": f"<｜tool▁calls▁begin｜>{EACH}"
    "{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + f.name + '\n```json\n' + f.arguments + '\n```' }}"
    "<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>",
    "functionary_v31": f"{{# <{{start_tag}}={{function_name}}> #}}{EACH}"
    "{{ '<function=' + f.name + '>' + f.arguments + '</function>' }}{% endfor %}",
    "apertus": f"<|tools_prefix|>[{EACH}{{{{ '{{\"' + f.name + '\": ' + f.arguments + '}}' }}}}{COMMA}{{% endfor %}}]"
    "<|tools_suffix|>",
    "command_r7b": f"<|START_ACTION|>[{EACH}"
    '{"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
    f"{COMMA}{{% endfor %}}]<|END_ACTION|>",
    "nemotron": f"<TOOLCALL>[{EACH}{JSON}{COMMA}{{% endfor %}}]</TOOLCALL>",
    "seed_oss": f"{EACH}<seed:tool_call>\n<function={{{{ f.name }}}}>\n{ITEMS}<parameter={{{{ k }}}}>"
    "{{ v }}</parameter>\n{% endfor %}</function>\n</seed:tool_call>{% endfor %}",
    "qwen3_coder": f"{EACH}<tool_call>\n<function={{{{ f.name }}}}>\n{ITEMS}<parameter={{{{ k }}}}>\n"
    "{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}",
    "phi4_mini": f"{EACH}<|tool_call|>{{{{ f | tojson }}}}<|/tool_call|>{{% endfor %}}",
    "kimi_k2": f"<|tool_calls_section_begin|>{EACH}<|tool_call_begin|>functions.{{{{ f.name }}}}:{{{{ loop.index0 }}}}"
    "<|tool_call_argument_begin|>{{ f.arguments | tojson }}<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>",
}
ARGUMENTS = {"path": "Zürich/世界.txt", "count": 12345678901234567890, "note": 'it\'s "x"'}
TOOL = {
    "name": "save",
    "input_schema": {
        "type": "object",
        "properties": {"path": {"type": "string"}, "count": {"type": "integer"}, "note": {"type": "string"}},
    },
}


@pytest.mark.mlx
@pytest.mark.parametrize("format", TEMPLATES)
def test_what_a_template_writes_of_earlier_calls_is_read_back_whether_it_wants_objects_or_text(format: str) -> None:
    from agent_memory.runner.tokenizer import HFTokenizer
    from tests.parts.tinytokenizer import tokenizer

    made = tokenizer()
    made.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"
        + TEMPLATES[format]
        + "{% endif %}{% endfor %}"
    )
    wrapped = HFTokenizer(made)
    call: dict[str, Any] = {"id": "a1", "type": "function", "function": {"name": "save", "arguments": ARGUMENTS}}
    messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": "", "tool_calls": [call, call]}]
    text = wrapped.render(messages, generation_prompt=False)
    assert wrapped.call_choice.format == format == wrapped.tool_format
    assert KNOWN[format].forms[0].start in text
    assert found(parse(text, [TOOL], format)) == [("save", ARGUMENTS)] * 2


@pytest.mark.mlx
def test_a_configuration_overrules_what_the_template_tells() -> None:
    from agent_memory import ConfigError
    from agent_memory.runner.tokenizer import HFTokenizer
    from tests.parts.tinytokenizer import tokenizer

    made = tokenizer()
    made.chat_template = "[TOOL_CALLS]{{ messages[0].content }}"
    assert HFTokenizer(made).tool_format == "mistral"
    asked = HFTokenizer(made, "seed_oss")
    assert (asked.tool_format, asked.call_choice.reason) == ("seed_oss", "the configuration asks for it")
    assert asked.reasoning == ("<seed:think>", "</seed:think>")
    with pytest.raises(ConfigError, match="tool_format must be None or one of tool_use"):
        HFTokenizer(made, "xml")


@pytest.mark.mlx
def test_a_template_that_fails_for_other_reasons_is_not_tried_twice() -> None:
    from agent_memory import UnsupportedParameterError
    from agent_memory.runner.tokenizer import HFTokenizer
    from tests.parts.tinytokenizer import tokenizer

    made = tokenizer()
    made.chat_template = "{{ messages[0].content + 1 }}"
    with pytest.raises(UnsupportedParameterError, match="refuses these messages"):
        HFTokenizer(made).render([{"role": "user", "content": "a"}])

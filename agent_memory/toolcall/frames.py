"""The formats whose calls have JSON for arguments, in frames of marks that hold the names; and gpt-oss's channels."""

from __future__ import annotations

import re

from agent_memory.toolcall.forms import ChannelForm, Format, FramedForm, ObjectForm
from agent_memory.toolcall.marks import BLANKS, Shape, ahead, word

TEMPLATES = "ggml-org/llama.cpp:models/templates"
_OBJECT = ahead("{")
_FUNCTION_NAME = word(r"\w.:/-", "name")
_DEEPSEEK_BEGIN, _DEEPSEEK_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_DEEPSEEK_CALL, _DEEPSEEK_SEP, _DEEPSEEK_CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_KIMI_CALL, _KIMI_ARGUMENTS, _KIMI_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


def _kimi_name(written: str, call_id: str | None) -> tuple[str, str | None]:
    """``functions.name:0`` is the id of a call of ``name``."""
    found = re.fullmatch(r"(?:functions\.)?(.+?):\d+", written.strip())
    return (found[1] if found else ""), written.strip()


FRAMES: tuple[Format, ...] = (
    Format(
        name="harmony",
        models="gpt-oss",
        source="ye-NX/llama.cpp:models/templates/openai-gpt-oss-120b.jinja, "
        "sgl-project/sglang:python/sglang/srt/harmony_parser.py",
        forms=(ChannelForm(),),
    ),
    Format(
        name="mistral",
        models="Mistral 7B v0.3 and everything since, Devstral, Magistral, Ministral",
        source="mlx-lm:tool_parsers/mistral.py; vllm-project/vllm:vllm/tool_parsers/mistral_tool_parser.py; the "
        "variant with [CALL_ID]: ye-NX/llama.cpp:models/templates/Mistral-Small-3.2-24B-Instruct-2506.jinja",
        forms=(
            FramedForm(
                start="[TOOL_CALLS]",
                header=Shape(
                    (BLANKS, word(r"\w.-", "name"), BLANKS, "[ARGS]", _OBJECT),
                    (BLANKS, word(r"\w.-", "name"), "[CALL_ID]", word(r"\w-", "id"), "[ARGS]", _OBJECT),
                    (BLANKS, word(r"\w.-", "name"), _OBJECT),
                ),
                writes=("{name}[ARGS]", ""),
                list_form=ObjectForm(is_array=True),
            ),
        ),
    ),
    Format(
        name="deepseek_v3",
        models="DeepSeek V3, R1 and the R1 distillations",
        source=f"{TEMPLATES}/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
        forms=(
            FramedForm(
                start=_DEEPSEEK_BEGIN,
                header=Shape(
                    (BLANKS, _DEEPSEEK_CALL, word(r"\w"), _DEEPSEEK_SEP, _FUNCTION_NAME, BLANKS, "```json", _OBJECT)
                ),
                behind=Shape((BLANKS, "```", BLANKS, _DEEPSEEK_CALL_END)),
                end=_DEEPSEEK_END,
                writes=(f"{_DEEPSEEK_CALL}function{_DEEPSEEK_SEP}{{name}}\n```json\n", f"\n```{_DEEPSEEK_CALL_END}"),
            ),
        ),
        reasoning=("<think>", "</think>"),
    ),
    Format(
        name="deepseek_v31",
        models="DeepSeek V3.1",
        source=f"{TEMPLATES}/deepseek-ai-DeepSeek-V3.1.jinja",
        forms=(
            FramedForm(
                start=_DEEPSEEK_BEGIN,
                header=Shape((BLANKS, _DEEPSEEK_CALL, _FUNCTION_NAME, _DEEPSEEK_SEP, _OBJECT)),
                behind=Shape((BLANKS, _DEEPSEEK_CALL_END)),
                end=_DEEPSEEK_END,
                writes=(f"{_DEEPSEEK_CALL}{{name}}{_DEEPSEEK_SEP}", _DEEPSEEK_CALL_END),
            ),
        ),
        reasoning=("<think>", "</think>"),
    ),
    Format(
        name="kimi_k2",
        models="Kimi K2 and K2 Thinking",
        source="mlx-lm:tool_parsers/kimi_k2.py, ggml-org/llama.cpp:models/templates/Kimi-K2-Thinking.jinja",
        forms=(
            FramedForm(
                start="<|tool_calls_section_begin|>",
                header=Shape((BLANKS, _KIMI_CALL, word(r"^<\n", "name"), _KIMI_ARGUMENTS, _OBJECT)),
                behind=Shape((BLANKS, _KIMI_END)),
                end="<|tool_calls_section_end|>",
                named=_kimi_name,
                writes=(f"{_KIMI_CALL}functions.{{name}}:{{number}}{_KIMI_ARGUMENTS}", _KIMI_END),
            ),
        ),
        breaks_reasoning=True,
    ),
    Format(
        name="functionary_v31",
        models="Functionary 3.1",
        source="ye-NX/llama.cpp:models/templates/meetkai-functionary-medium-v3.1.jinja",
        forms=(
            FramedForm(
                start="<function=",
                header=Shape((_FUNCTION_NAME, ">", _OBJECT)),
                behind=Shape((BLANKS, "</function>")),
                writes=("{name}>", "</function>"),
                is_tight=True,
            ),
        ),
    ),
    Format(
        name="functionary_v32",
        models="Functionary 3.2",
        source="ye-NX/llama.cpp:models/templates/meetkai-functionary-medium-v3.2.jinja",
        forms=(
            FramedForm(
                start=">>>",
                header=Shape((_FUNCTION_NAME, "\n", _OBJECT)),
                writes=("{name}\n", ""),
                is_begun=True,
                is_tight=True,
            ),
        ),
        silent=(">>>all\n",),
    ),
)

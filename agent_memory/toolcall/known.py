"""The formats of calls, but for those of ``frames.py``: their forms, and their models' marks around thoughts.

Each names the file that it was read from: a chat template, or a peer's parser or test.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent_memory.toolcall.elementforms import ELEMENT_FORMS
from agent_memory.toolcall.forms import Format, LiteralForm, ObjectForm, Quote
from agent_memory.toolcall.found import Found
from agent_memory.toolcall.frames import TEMPLATES
from agent_memory.toolcall.literals import gemma_calls, python_calls
from agent_memory.toolcall.trees import NAMESPACE, tree_calls
from agent_memory.types import Tool


def _python(text: str, tools: Sequence[Tool] | None) -> list[Found]:
    return python_calls(text)


def _gemma(text: str, tools: Sequence[Tool] | None) -> list[Found]:
    return gemma_calls(text)


_PYTHON_QUOTES = (
    Quote('"""', '"""', escapes=True), Quote("'''", "'''", escapes=True),
    Quote('"', '"', escapes=True), Quote("'", "'", escapes=True),
)  # fmt: skip


def _pythonic(start: str, end: str) -> LiteralForm:
    return LiteralForm(
        start=start, end=end, quotes=_PYTHON_QUOTES, last="]", is_list=True, dialect="python", read=_python
    )


_LLAMA = ObjectForm(arguments_key="parameters", separator=";")

OBJECTS: tuple[Format, ...] = (
    Format(
        name="tool_use",
        models="models whose template knows no tools",
        source="prompt/toolprompt.py of this library",
        forms=(ObjectForm(wrapper="tool_use", arguments_key="input"),),
    ),
    Format(
        name="function_call",
        models="models that were told so in their prompt",
        source="OpenAI's first function calling",
        forms=(ObjectForm(wrapper="function_call"),),
    ),
    Format(
        name="json_tools",
        models="Hermes 2 and 3, Qwen 2.5 and 3, Granite 4, SmolLM3",
        source="mlx-lm:tool_parsers/json_tools.py, vllm-project/vllm:tests/tool_parsers/test_granite4_tool_parser.py",
        forms=(ObjectForm(start="<tool_call>", end="</tool_call>"),),
    ),
    Format(
        name="llama3",
        models="Llama 3.1, 3.2, 3.3 and 4",
        source="the prompt format pages of Llama's model cards",
        forms=(
            _LLAMA,
            ObjectForm(start="<|python_tag|>", arguments_key="parameters", separator=";"),
        ),
    ),
    Format(
        name="granite",
        models="Granite 3.0 to 3.3",
        source="ye-NX/llama.cpp:models/templates/ibm-granite-granite-3.3-2B-Instruct.jinja, "
        "vllm-project/vllm:vllm/tool_parsers/granite_tool_parser.py",
        forms=(
            ObjectForm(start="<|tool_call|>", is_array=True),
            ObjectForm(start="<tool_call>", end="</tool_call>", is_array=True),
        ),
        reasoning=("<think>", "</think>"),
        silent=("<response>", "</response>"),
    ),
    Format(
        name="phi4_mini",
        models="Phi-4-mini",
        source=f"{TEMPLATES}/llama-cpp-microsoft-Phi-4-mini-instruct.jinja, "
        "vllm-project/vllm:examples/tool_chat_template_phi4_mini.jinja",
        forms=(
            ObjectForm(start="<|tool_call|>", end="<|/tool_call|>"),
            ObjectForm(start="functools", is_array=True),
        ),
    ),
    Format(
        name="firefunction",
        models="Firefunction 2",
        source="ggerganov/llama.cpp:models/templates/fireworks-ai-llama-3-firefunction-v2.jinja",
        forms=(ObjectForm(start="functools", is_array=True),),
    ),
    Format(
        name="nemotron",
        models="Nemotron Nano 2, Llama 3.3 Nemotron Super 1.5",
        source=f"{TEMPLATES}/NVIDIA-Nemotron-Nano-v2.jinja",
        forms=(ObjectForm(start="<TOOLCALL>", end="</TOOLCALL>", is_array=True),),
        reasoning=("<think>", "</think>"),
    ),
    Format(
        name="apriel",
        models="Apriel 1.5 and 1.6",
        source=f"{TEMPLATES}/unsloth-Apriel-1.5.jinja, Apriel-1.6-15b-Thinker-fixed.jinja",
        forms=(ObjectForm(start="<tool_calls>", end="</tool_calls>", is_array=True),),
        reasoning=("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
        silent=("[END FINAL RESPONSE]",),
    ),
    Format(
        name="command_r",
        models="Command R and R+",
        source="vllm-project/vllm:examples/command_r_tool_chat_template.jinja",
        forms=(
            ObjectForm(
                start="Action:\n```json", end="```", name_key="tool_name", arguments_key="parameters", is_array=True
            ),
        ),
    ),
    Format(
        name="command_r7b",
        models="Command R7B, Command A, Cohere 2 MoE",
        source=f"{TEMPLATES}/CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja, "
        "sgl-project/sglang:python/sglang/srt/function_call/cohere_command4_detector.py",
        forms=(
            ObjectForm(
                start="<|START_ACTION|>",
                end="<|END_ACTION|>",
                name_key="tool_name",
                arguments_key="parameters",
                is_array=True,
            ),
        ),
        reasoning=("<|START_THINKING|>", "<|END_THINKING|>"),
        silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    Format(
        name="apertus",
        models="Apertus",
        source="vllm-project/vllm:vllm/tool_parsers/apertus_tool_parser.py, examples/tool_chat_template_apertus.jinja",
        forms=(ObjectForm(start="<|tools_prefix|>", end="<|tools_suffix|>", is_array=True, is_keyed=True),),
        reasoning=("<|inner_prefix|>", "<|inner_suffix|>"),
    ),
    Format(
        name="gigachat",
        models="GigaChat 3 and 3.1",
        source=f"{TEMPLATES}/GigaChat3-10B-A1.8B.jinja, "
        "vllm-project/vllm:tests/tool_parsers/test_gigachat3_tool_parser.py",
        forms=(
            ObjectForm(start="<|function_call|>"),
            ObjectForm(start="function call<|role_sep|>"),
        ),
        silent=("<|message_sep|>",),
    ),
)

LITERALS: tuple[Format, ...] = (
    Format(
        name="pythonic",
        models="LFM2 and LFM2.5",
        source=f"mlx-lm:tool_parsers/pythonic.py, {TEMPLATES}/llama-cpp-lfm2.jinja",
        forms=(_pythonic("<|tool_call_start|>", "<|tool_call_end|>"),),
    ),
    Format(
        name="llama_pythonic",
        models="Llama 3.2 and 4, where the template asks for Python",
        source="vllm-project/vllm:vllm/tool_parsers/llama4_pythonic_tool_parser.py, "
        "examples/tool_chat_template_llama4_pythonic.jinja",
        forms=(_pythonic("", ""), _pythonic("<|python_start|>", "<|python_end|>")),
    ),
    Format(
        name="function_gemma",
        models="FunctionGemma",
        source="mlx-lm:tool_parsers/function_gemma.py",
        forms=(
            LiteralForm(
                start="<start_function_call>",
                end="<end_function_call>",
                quotes=(Quote("<escape>", "<escape>"),),
                last="}",
                dialect="function_gemma",
                read=_gemma,
            ),
        ),
    ),
    Format(
        name="gemma4",
        models="Gemma 4",
        source="mlx-lm:tool_parsers/gemma4.py",
        forms=(
            LiteralForm(
                start="<|tool_call>",
                end="<tool_call|>",
                quotes=(Quote('<|"|>', '<|"|>'),),
                last="}",
                dialect="gemma4",
                read=_gemma,
            ),
        ),
    ),
)


ELEMENTS: tuple[Format, ...] = (
    Format(
        name="qwen3_coder",
        models="Qwen3-Coder, Qwen3.5, Nemotron 3, Step 3.5",
        source="mlx-lm:tool_parsers/qwen3_coder.py, vllm-project/vllm:tests/tool_parsers/test_step3p5_tool_parser.py, "
        "zommiommy/llama.cpp:models/templates/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja, "
        "tnhnyzc/llama.cpp:models/templates/stepfun-ai-Step-3.5-Flash.jinja",
        forms=(ELEMENT_FORMS["qwen3_coder"], ELEMENT_FORMS["qwen3_coder, bare"]),
    ),
    Format(
        name="seed_oss",
        models="Seed-OSS",
        source=f"{TEMPLATES}/ByteDance-Seed-OSS.jinja",
        forms=(ELEMENT_FORMS["seed_oss"],),
        reasoning=("<seed:think>", "</seed:think>"),
        silent=("<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>"),
    ),
    Format(
        name="minimax_m2",
        models="MiniMax M2",
        source="mlx-lm:tool_parsers/minimax_m2.py",
        forms=(ELEMENT_FORMS["minimax_m2"],),
    ),
    Format(
        name="minimax_m3",
        models="MiniMax M3",
        source="vllm-project/vllm:tests/tool_parsers/test_minimax_m3_tool_parser.py",
        forms=(
            LiteralForm(
                start=f"{NAMESPACE}<tool_call>",
                end=f"{NAMESPACE}</tool_call>",
                quotes=(),
                last=">",
                dialect="tree",
                read=tree_calls,
            ),
        ),
    ),
    Format(
        name="deepseek_v32",
        models="DeepSeek V3.2",
        source=f"{TEMPLATES}/DeepSeek-V3.2.jinja",
        forms=(ELEMENT_FORMS["deepseek_v32"],),
        reasoning=("<think>", "</think>"),
    ),
    Format(
        name="deepseek_v4",
        models="DeepSeek V4",
        source="sgl-project/sglang:python/sglang/srt/function_call/deepseekv4_detector.py",
        forms=(ELEMENT_FORMS["deepseek_v4"],),
        reasoning=("<think>", "</think>"),
    ),
    Format(
        name="glm47",
        models="GLM 4.5, 4.6 and 4.7",
        source="mlx-lm:tool_parsers/glm47.py",
        forms=(ELEMENT_FORMS["glm47"],),
    ),
    Format(
        name="laguna",
        models="Laguna",
        source="mlx-lm:tool_parsers/laguna.py",
        forms=(ELEMENT_FORMS["glm47"],),
    ),
    Format(
        name="longcat",
        models="LongCat Flash",
        source="mlx-lm:tool_parsers/longcat.py",
        forms=(ELEMENT_FORMS["longcat"],),
    ),
    Format(
        name="minicpm5",
        models="MiniCPM 5",
        source="mlx-lm:tool_parsers/minicpm5.py",
        forms=(ELEMENT_FORMS["minicpm5"],),
    ),
    Format(
        name="muse_spark",
        models="Muse Spark",
        source="mlx-lm:tool_parsers/muse_spark.py",
        forms=(ELEMENT_FORMS["muse_spark"],),
    ),
    Format(
        name="kimi_k3",
        models="Kimi K3",
        source=f"mlx-lm:tool_parsers/kimi_k3.py, {TEMPLATES}/Kimi-K3.jinja",
        forms=(ELEMENT_FORMS["kimi_k3"],),
        reasoning=("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        silent=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"),
    ),
)

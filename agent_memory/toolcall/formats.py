"""The formats of calls, by name: what forms each has, and which marks the models that use it put around their thoughts.

Every format names the file it was read from: a chat template, or a peer's parser or test. ``choice.py`` tells which one
a model has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import field, frozen

from agent_memory.errors import UnsupportedParameterError
from agent_memory.toolcall.elementforms import ELEMENT_FORMS
from agent_memory.toolcall.forms import ChannelForm, ElementForm, Form, FramedForm, LiteralForm, ObjectForm, Quote
from agent_memory.toolcall.found import Found, from_pair
from agent_memory.toolcall.literals import gemma_calls, python_calls
from agent_memory.toolcall.marks import BLANKS, Part, Shape, ahead, word
from agent_memory.toolcall.trees import NAMESPACE, tree_calls
from agent_memory.types import Tool


@frozen(kw_only=True)
class Format:
    """How models of one kind write calls. ``source``: where that was read; ``models``: some that do.

    ``reasoning``: the marks of their thoughts, where a tokenizer's vocabulary does not tell. ``silent``: marks that are
    no part of the answer. ``breaks_reasoning``: a start mark ends the thoughts it stands in.
    """

    name: str
    models: str
    source: str
    forms: tuple[Form, ...] = field(repr=False)
    reasoning: tuple[str, str] | None = None
    silent: tuple[str, ...] = ()
    breaks_reasoning: bool = False


_OBJECT = ahead("{")
_FUNCTION_NAME = word(r"\w.:/-", "name")
_JSON_ARRAY = ObjectForm(is_array=True)


def _kimi_name(written: str, call_id: str | None) -> tuple[str, str | None]:
    """``functions.name:0`` is the id of a call of ``name``."""
    found = re.fullmatch(r"(?:functions\.)?(.+?):\d+", written.strip())
    return (found[1] if found else ""), written.strip()


def _python(text: str, tools: Sequence[Tool] | None) -> list[Found]:
    return python_calls(text)


def _gemma(text: str, tools: Sequence[Tool] | None) -> list[Found]:
    return gemma_calls(text)


def _framed(start: str, header: Sequence[str | Part], behind: Sequence[str | Part], **more: object) -> FramedForm:
    shape = Shape(tuple(behind)) if behind else None
    return FramedForm(start=start, header=Shape(tuple(header)), behind=shape, **more)  # type: ignore[arg-type]


_PYTHON_QUOTES = (
    Quote('"""', '"""', escapes=True), Quote("'''", "'''", escapes=True),
    Quote('"', '"', escapes=True), Quote("'", "'", escapes=True),
)  # fmt: skip


def _pythonic(start: str, end: str) -> LiteralForm:
    return LiteralForm(
        start=start, end=end, quotes=_PYTHON_QUOTES, last="]", is_list=True, dialect="python", read=_python
    )


_DEEPSEEK_BEGIN, _DEEPSEEK_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_DEEPSEEK_CALL, _DEEPSEEK_SEP, _DEEPSEEK_CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_KIMI_CALL, _KIMI_ARGUMENTS, _KIMI_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_LLAMA = ObjectForm(arguments_key="parameters", separator=";")
_LLAMA_TEMPLATES = "ggml-org/llama.cpp:models/templates"

_OBJECTS: tuple[Format, ...] = (
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
        models="Hermes 2 and 3, Qwen 2.5 and 3, Granite 4, SmolLM3, Reka Edge",
        source="vllm-project/vllm:examples/tool_chat_template_hermes.jinja, tests/tool_parsers/test_granite4_tool_parser.py",
        forms=(ObjectForm(start="<tool_call>", end="</tool_call>"),),
    ),
    Format(
        name="llama3",
        models="Llama 3.1, 3.2, 3.3 and 4",
        source="Meta's model cards; vllm-project/vllm:examples/tool_chat_template_llama3.1_json.jinja",
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
        source=f"{_LLAMA_TEMPLATES}/llama-cpp-microsoft-Phi-4-mini-instruct.jinja, "
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
        source=f"{_LLAMA_TEMPLATES}/NVIDIA-Nemotron-Nano-v2.jinja",
        forms=(ObjectForm(start="<TOOLCALL>", end="</TOOLCALL>", is_array=True),),
        reasoning=("<think>", "</think>"),
    ),
    Format(
        name="apriel",
        models="Apriel 1.5 and 1.6",
        source=f"{_LLAMA_TEMPLATES}/unsloth-Apriel-1.5.jinja, Apriel-1.6-15b-Thinker-fixed.jinja",
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
        source=f"{_LLAMA_TEMPLATES}/CohereForAI-c4ai-command-r7b-12-2024-tool_use.jinja, "
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
        source=f"{_LLAMA_TEMPLATES}/GigaChat3-10B-A1.8B.jinja, "
        "vllm-project/vllm:tests/tool_parsers/test_gigachat3_tool_parser.py",
        forms=(
            ObjectForm(start="<|function_call|>"),
            ObjectForm(start="function call<|role_sep|>"),
        ),
        silent=("<|message_sep|>",),
    ),
)

_FRAMES: tuple[Format, ...] = (
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
        "variant with [CALL_ID]: ggml-org/llama.cpp:tests/test-chat.cpp",
        forms=(
            FramedForm(
                start="[TOOL_CALLS]",
                header=Shape(
                    (BLANKS, word(r"\w.-", "name"), BLANKS, "[ARGS]", _OBJECT),
                    (BLANKS, word(r"\w.-", "name"), "[CALL_ID]", word(r"\w-", "id"), "[ARGS]", _OBJECT),
                    (BLANKS, word(r"\w.-", "name"), _OBJECT),
                ),
                writes=("{name}[ARGS]", ""),
                list_form=_JSON_ARRAY,
            ),
        ),
    ),
    Format(
        name="deepseek_v3",
        models="DeepSeek V3, R1 and the R1 distillations",
        source=f"{_LLAMA_TEMPLATES}/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
        forms=(
            _framed(
                _DEEPSEEK_BEGIN,
                (BLANKS, _DEEPSEEK_CALL, word(r"\w"), _DEEPSEEK_SEP, _FUNCTION_NAME, BLANKS, "```json", _OBJECT),
                (BLANKS, "```", BLANKS, _DEEPSEEK_CALL_END),
                end=_DEEPSEEK_END,
                writes=(f"{_DEEPSEEK_CALL}function{_DEEPSEEK_SEP}{{name}}\n```json\n", f"\n```{_DEEPSEEK_CALL_END}"),
            ),
        ),
        reasoning=("<think>", "</think>"),
    ),
    Format(
        name="deepseek_v31",
        models="DeepSeek V3.1",
        source=f"{_LLAMA_TEMPLATES}/deepseek-ai-DeepSeek-V3.1.jinja",
        forms=(
            _framed(
                _DEEPSEEK_BEGIN,
                (BLANKS, _DEEPSEEK_CALL, _FUNCTION_NAME, _DEEPSEEK_SEP, _OBJECT),
                (BLANKS, _DEEPSEEK_CALL_END),
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
            _framed(
                "<|tool_calls_section_begin|>",
                (BLANKS, _KIMI_CALL, word(r"^<\n", "name"), _KIMI_ARGUMENTS, _OBJECT),
                (BLANKS, _KIMI_END),
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
            _framed(
                "<function=",
                (_FUNCTION_NAME, ">", _OBJECT),
                (BLANKS, "</function>"),
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
            _framed(
                ">>>", (_FUNCTION_NAME, "\n", _OBJECT), (), writes=("{name}\n", ""), is_begun=True, is_tight=True
            ),
        ),
        silent=(">>>all\n",),
    ),
)


_LITERALS: tuple[Format, ...] = (
    Format(
        name="pythonic",
        models="LFM2 and LFM2.5",
        source=f"mlx-lm:tool_parsers/pythonic.py, {_LLAMA_TEMPLATES}/llama-cpp-lfm2.jinja",
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
        source=f"mlx-lm:tool_parsers/gemma4.py, {_LLAMA_TEMPLATES}/gemma4.jinja",
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


def _m3(text: str, tools: Sequence[Tool] | None) -> list[Found]:
    return tree_calls(text, tools)


_ELEMENTS: tuple[Format, ...] = (
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
        source=f"{_LLAMA_TEMPLATES}/ByteDance-Seed-OSS.jinja",
        forms=(ELEMENT_FORMS["seed_oss"],),
        reasoning=("<seed:think>", "</seed:think>"),
        silent=("<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>"),
    ),
    Format(
        name="minimax_m2",
        models="MiniMax M2",
        source=f"mlx-lm:tool_parsers/minimax_m2.py, {_LLAMA_TEMPLATES}/unsloth-MiniMax-M2.jinja",
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
                read=_m3,
            ),
        ),
    ),
    Format(
        name="deepseek_v32",
        models="DeepSeek V3.2",
        source=f"{_LLAMA_TEMPLATES}/DeepSeek-V3.2.jinja",
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
        source=f"mlx-lm:tool_parsers/glm47.py, {_LLAMA_TEMPLATES}/GLM-4.6.jinja",
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
        source=f"mlx-lm:tool_parsers/kimi_k3.py, {_LLAMA_TEMPLATES}/Kimi-K3.jinja",
        forms=(ELEMENT_FORMS["kimi_k3"],),
        reasoning=("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        silent=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>", "<|end_of_msg|>"),
    ),
)

KNOWN: dict[str, Format] = {one.name: one for one in (*_OBJECTS, *_FRAMES, *_LITERALS, *_ELEMENTS)}
FORMATS: tuple[str, ...] = tuple(KNOWN)  #: every name that ``format=`` takes
_ANY = ("tool_use", "function_call", "json_tools", "llama3")


def forms(name: str | None) -> tuple[Form, ...]:
    """The forms of a format; of None, the JSON objects that models without a known format write.

    Raises UnsupportedParameterError for an unknown name.
    """
    if name is None:
        return tuple(form for one in _ANY for form in KNOWN[one].forms)
    return format_of(name).forms


def format_of(name: str) -> Format:
    """A format by its name. Raises UnsupportedParameterError for an unknown one."""
    if name not in KNOWN:
        raise UnsupportedParameterError(f"format must be None or one of {', '.join(FORMATS)}; got {name!r}")
    return KNOWN[name]

"""Chat templates that write tools and calls natively, reduced to what matters here: where they write what, and when.

Each behaves as its source does: which block stands where, what ends a turn, what is dropped from earlier turns. The
texts are this project's own.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen
class Native:
    """One template: its special tokens, those that end a reply, and how a call is written in five spellings."""

    name: str
    source: str
    template: str
    specials: tuple[str, ...]
    ends: tuple[str, ...]  #: tokens at which the model stops; the first ends an answer
    call: str  #: with {name} and {args}
    call_end: str = ""  #: the token that ends a reply with calls, where it is another


_QWEN = """
{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
{{- '# Tools\\n<tools>' }}{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(last=messages|length - 1, seeking=true) %}
{%- for m in messages[::-1] %}{% if ns.seeking and m.role == 'user' %}{% set ns.seeking = false %}
{%- set ns.last = messages|length - 1 - loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or m.reasoning_content) %}
{{- '<think>\\n' + (m.reasoning_content or '').strip('\\n') + '\\n</think>\\n\\n' }}{% endif %}{{ m.content }}
{%- for tool_call in m.tool_calls or [] %}{% if not loop.first or m.content %}{{ '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + tool_call.function.name + '", "arguments": ' + tool_call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}{% if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""

_LLAMA = """{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools %}{{ 'Environment: ipython\\n' }}{% endif %}{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n' }}
{%- set rest = messages %}{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}
{%- set rest = messages[1:] %}{% endif %}{{ '<|eot_id|>' }}
{%- if tools %}{{ '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.\\n\\n' }}
{%- for t in tools %}{{ t | tojson(indent=4) + '\\n\\n' }}{% endfor %}{{ rest[0].content | trim + '<|eot_id|>' }}
{%- set rest = rest[1:] %}{% endif %}
{%- for m in rest %}{% if m.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + m.content | tojson + '<|eot_id|>' }}
{%- elif m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + m.tool_calls[0].function.name }}
{{- '", "parameters": ' + m.tool_calls[0].function.arguments | tojson + '}<|eot_id|>' }}
{%- else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

_MISTRAL = """{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}
{%- set told = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
{%- set asked = rest | selectattr('role', 'equalto', 'user') | list %}{{ '<s>' }}
{%- for m in rest %}{% if m.role == 'user' %}
{%- if tools and m == asked[-1] %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST]' + (told if loop.last else '') + m.content + '[/INST]' }}
{%- elif m.tool_calls %}{{ '[TOOL_CALLS][' }}{% for c in m.tool_calls %}{% set out = c.function | tojson %}
{{- out[:-1] + ', "id": "' + c.id[-9:] + '"}' }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']</s>' }}
{%- elif m.role == 'assistant' %}{{ m.content + '</s>' }}
{%- else %}{{ '[TOOL_RESULTS]{"content": ' + m.content + ', "call_id": "' + m.tool_call_id[-9:] + '"}[/TOOL_RESULTS]' }}
{%- endif %}{% endfor %}"""

_GRANITE = """{%- set rest = messages %}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}
{%- set told = messages[0].content %}{% else %}
{%- set told = "Today's Date: " + strftime_now('%B %d, %Y') + '.' %}{% endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + told + '<|end_of_text|>\\n' }}
{%- if tools %}{{ '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\\n' }}
{%- endif %}{% for m in rest %}
{{- '<|start_of_role|>' + ('tool_response' if m.role == 'tool' else m.role) + '<|end_of_role|>' + m.content }}
{%- if m.tool_calls %}{{ '<|tool_call|>[' }}{% for c in m.tool_calls %}{{ c.function | tojson }}
{%- if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' }}{% endif %}{{ '<|end_of_text|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

_PHI = """{%- set told = messages[0].content if messages[0].role == 'system' else '' %}
{%- if told or tools %}{{ '<|system|>' + told }}
{%- for t in tools or [] %}{{ '<|tool|>' + t.function | tojson + '<|/tool|>' }}
{%- endfor %}{{ '<|end|>' }}{% endif %}
{%- for m in messages %}{% if m.role == 'tool' %}{{ '<|tool_response|>' + m.content | tojson + '<|end|>' }}
{%- elif m.role != 'system' %}{{ '<|' + m.role + '|>' }}{% if m.content %}{{ m.content }}{% endif %}
{%- for c in m.tool_calls or [] %}{{ '<|tool_call|>' + c.function | tojson + '<|/tool_call|>' }}{% endfor %}
{{- '<|end|>' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"""

_HARMONY = """{{ '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}
{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}
{%- if tools or messages[0].role == 'system' %}{{ '<|start|>developer<|message|>' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- for t in tools or [] %}{{ '\\ntype ' + t.function.name + ' = ' + t.function.parameters | tojson }}{% endfor %}
{{- '<|end|>' }}
{%- endif %}{% set last = namespace(name=none) %}
{%- for m in rest %}{% if m.role == 'assistant' %}{% if m.tool_calls %}
{%- set later = namespace(found=false) %}{% for f in rest[loop.index:] %}
{%- if f.role == 'assistant' and not f.tool_calls %}{% set later.found = true %}{% endif %}{% endfor %}
{%- if m.reasoning_content and not later.found %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.reasoning_content + '<|end|>' }}{% endif %}
{%- set last.name = m.tool_calls[0].function.name %}
{{- '<|start|>assistant to=functions.' + last.name + '<|channel|>commentary json<|message|>' }}
{{- m.tool_calls[0].function.arguments | tojson + '<|call|>' }}
{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
{%- set last.name = none %}{% endif %}
{%- elif m.role == 'tool' %}{% if last.name is none %}{{ raise_exception('no call before this result') }}{% endif %}
{{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' }}
{{- m.content | tojson + '<|end|>' }}
{%- else %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

_LLAMA_CPP = "models/templates"
NATIVE = {
    one.name: one
    for one in (
        Native(
            "qwen",
            f"ye-NX/llama.cpp:{_LLAMA_CPP}/Qwen-Qwen3-0.6B.jinja, NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja",
            _QWEN,
            ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
            ("<|im_end|>", "<|endoftext|>"),
            '<tool_call>\n{{"name": "{name}", "arguments": {args}}}\n</tool_call>',
        ),
        Native(
            "llama",
            f"ye-NX/llama.cpp:{_LLAMA_CPP}/meta-llama-Llama-3.2-3B-Instruct.jinja (the text of Llama 3.1's)",
            _LLAMA,
            ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
            ("<|eot_id|>",),
            '{{"name": "{name}", "parameters": {args}}}',
        ),
        Native(
            "mistral",
            f"ggerganov/llama.cpp:{_LLAMA_CPP}/mistralai-Mistral-Nemo-Instruct-2407.jinja",
            _MISTRAL,
            (
                "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
                "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
            ),
            ("</s>",),
            '[TOOL_CALLS][{{"name": "{name}", "arguments": {args}}}]',
        ),
        Native(
            "granite",
            f"ye-NX/llama.cpp:{_LLAMA_CPP}/ibm-granite-granite-3.3-2B-Instruct.jinja",
            _GRANITE,
            ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
            ("<|end_of_text|>",),
            '<|tool_call|>[{{"name": "{name}", "arguments": {args}}}]',
        ),
        Native(
            "phi4_mini",
            f"ggml-org/llama.cpp:{_LLAMA_CPP}/llama-cpp-microsoft-Phi-4-mini-instruct.jinja",
            _PHI,
            (
                "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|/tool|>", "<|tool_call|>",
                "<|/tool_call|>", "<|tool_response|>", "<|endoftext|>",
            ),
            ("<|end|>", "<|endoftext|>"),
            '<|tool_call|>{{"name": "{name}", "arguments": {args}}}<|/tool_call|>',
        ),
        Native(
            "harmony",
            f"ye-NX/llama.cpp:{_LLAMA_CPP}/openai-gpt-oss-120b.jinja",
            _HARMONY,
            ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>", "<|constrain|>"),
            ("<|return|>", "<|call|>"),
            " to=functions.{name}<|channel|>commentary json<|message|>{args}",
            "<|call|>",
        ),
    )
}  # fmt: skip


def backend(native: Native) -> Any:
    """A byte-level tokenizer with a few merges and the template's special tokens, as Hugging Face loads one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [
        tuple(pair.split("|")) for pair in 't|h th|e i|n o|r e|r "|: Ġ|{ {|" a|l l|l c|a ca|ll Ġ|" "|} }|}'.split(" ")
    ]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    for left, right in pairs:
        vocabulary.setdefault(left + right, len(vocabulary))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in native.specials])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=native.ends[0])
    fast.chat_template = native.template
    return fast

"""The formats that are known: one description each, from which all else follows.

Marks and shapes are those of the families' published chat templates.
"""

from __future__ import annotations

import re
from typing import TypeVar

from headstock.text.parsers.bodies import (
    Tag,
    read_bare,
    read_json,
    read_named,
    read_tagged,
)
from headstock.text.parsers.gemma import read_gemma
from headstock.text.parsers.parts import (
    NUMBER,
    Call,
    CallFormat,
    ReasoningFormat,
    Tagged,
    Tools,
    Writing,
)

_NAME = r"\s*(?:functions\.)?([\w.\-/]+)"
_DSML = "｜DSML｜"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.DOTALL)


_QWEN_XML = (
    Tag(_pattern(r"<function=(?P<name>[^>\n]{1,256})>"), "</function>"),
    Tag(_pattern(r"<parameter=(?P<name>[^>\n]{1,256})>\n?"), "</parameter>", is_trimmed=True),
)
_GLM = (
    Tag(_pattern(r"(?P<name>[\w.\-/]{1,256})\s*(?=<arg_key>|\Z)"), ""),
    Tag(_pattern(r"<arg_key>(?P<name>[^<]{1,256})</arg_key>\s*<arg_value>"), "</arg_value>"),
)
_MINIMAX = (
    Tag(_pattern(r'<invoke name="?(?P<name>[^">\n]{1,256})"?>'), "</invoke>"),
    Tag(
        _pattern(r'<parameter name="?(?P<name>[^">\n]{1,256})"?>\n?'),
        "</parameter>",
        is_trimmed=True,
    ),
)
_DEEPSEEK_32 = (
    Tag(_pattern(rf'<{_DSML}invoke name="(?P<name>[^"]{{1,256}})">'), f"</{_DSML}invoke>"),
    Tag(
        _pattern(
            rf'<{_DSML}parameter name="(?P<name>[^"]{{1,256}})"'
            r'(?: string="(?P<is_text>true|false)")?>'
        ),
        f"</{_DSML}parameter>",
    ),
)
_DEEPSEEK_HEADS = (
    _pattern(r"\s*<｜tool▁call▁begin｜>function<｜tool▁sep｜>([^\n<]+)\n```json\s*(?=\{)"),
    _pattern(r"\s*<｜tool▁call▁begin｜>([^\n<]+)<｜tool▁sep｜>\s*(?=\{)"),
)
_DEEPSEEK_TAIL = _pattern(r"\s*(?:```)?\s*<｜tool▁call▁end｜>\s*")
_KIMI_HEAD = _pattern(
    rf"\s*<\|tool_call_begin\|>{_NAME}(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*(?=\{{)"
)
_KIMI_TAIL = _pattern(r"\s*<\|tool_call_end\|>\s*")
_MISTRAL_HEAD = _pattern(rf"\s*(?:\[TOOL_CALLS\])?{_NAME}(?:\[CALL_ID\]\w+)?\s*\[ARGS\]\s*(?=\{{)")
_GEMMA_QUOTE = '<|"|>'
_ESCAPE = "<escape>"
_NOTHING = _pattern(r"\s*")
_HARMONY_HEAD = _pattern(rf"{_NAME}[^{{]*?<\|message\|>\s*(?=\{{)")


def _qwen_xml(body: str, tools: Tools) -> list[Call] | None:
    return read_tagged(body, tools, *_QWEN_XML)


def _glm(body: str, tools: Tools) -> list[Call] | None:
    return read_tagged(body, tools, *_GLM)


def _minimax(body: str, tools: Tools) -> list[Call] | None:
    return read_tagged(body, tools, *_MINIMAX)


def _deepseek_32(body: str, tools: Tools) -> list[Call] | None:
    return read_tagged(body, tools, *_DEEPSEEK_32)


def _deepseek(body: str, tools: Tools) -> list[Call] | None:
    return read_named(body, _DEEPSEEK_HEADS, _DEEPSEEK_TAIL) or None


def _kimi(body: str, tools: Tools) -> list[Call] | None:
    return read_named(body, (_KIMI_HEAD,), _KIMI_TAIL) or None


def _mistral(body: str, tools: Tools) -> list[Call] | None:
    return read_json(body, tools) or read_named(body, (_MISTRAL_HEAD,), _NOTHING) or None


def _gemma4(body: str, tools: Tools) -> list[Call] | None:
    return read_gemma(body, _GEMMA_QUOTE)


def _function_gemma(body: str, tools: Tools) -> list[Call] | None:
    return read_gemma(body, _ESCAPE)


def _gemma_writing(quote: str) -> Writing:
    return Writing(
        head="call:",
        named="{",
        tagged=Tagged(named=f":{quote}", named_json=":", after=quote, after_json="", between=","),
        tail="}",
        apart="",
    )


def _harmony(body: str, tools: Tools) -> list[Call] | None:
    return read_named(body, (_HARMONY_HEAD,), _NOTHING) or None


def _dsml(name: str, section: str) -> CallFormat:
    """Return the format of the DeepSeek models whose calls stand in a section of this name."""
    return CallFormat(
        name=name,
        begin=f"<{_DSML}{section}>",
        end=f"</{_DSML}{section}>",
        read=_deepseek_32,
        marks=(_DSML, f"{section}>"),
        writings=(
            Writing(
                opens="\n",
                head=f'<{_DSML}invoke name="',
                named='">\n',
                tagged=Tagged(
                    before=f'<{_DSML}parameter name="',
                    named='" string="true">',
                    named_json='" string="false">',
                    after=f"</{_DSML}parameter>",
                    space="\n",
                    never=(f"</{_DSML}invoke>",),
                ),
                tail=f"</{_DSML}invoke>",
                between="\n",
                closes="\n",
            ),
        ),
    )


_LIST = Writing(
    opens="[", head='{"name": "', named='", "arguments": ', tail="}", between=", ", closes="]"
)
_LLAMA = Writing(head='{"name": "', named='", "parameters": ', tail="}", between="; ")
CALL_FORMATS = (
    CallFormat(
        name="harmony",
        begin="<|channel|>commentary to=functions.",
        others=("<|start|>assistant to=functions.", "<|channel|>analysis to=functions."),
        at_start=" to=functions.",  # the prompt ends with <|start|>assistant
        end="<|call|>",
        read=_harmony,
        marks=("<|channel|>", "<|message|>", "commentary"),
        writings=(Writing(named=" <|constrain|>json<|message|>"),),
    ),
    _dsml("deepseek_v32", "function_calls"),
    _dsml("deepseek_v4", "tool_calls"),
    CallFormat(
        name="deepseek_v3",
        begin="<｜tool▁calls▁begin｜>",
        end="<｜tool▁calls▁end｜>",
        read=_deepseek,
        marks=("<｜tool▁calls▁begin｜>",),
        writings=(
            Writing(
                head="<｜tool▁call▁begin｜>",
                named="<｜tool▁sep｜>",
                tail="<｜tool▁call▁end｜>",
                between="",
            ),
            Writing(
                head="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
                named="\n```json\n",
                tail="\n```<｜tool▁call▁end｜>",
                between="\n",
            ),
        ),
    ),
    CallFormat(
        name="kimi_k2",
        begin="<|tool_calls_section_begin|>",
        end="<|tool_calls_section_end|>",
        read=_kimi,
        marks=("<|tool_calls_section_begin|>",),
        writings=(
            Writing(
                head="<|tool_call_begin|>functions.",
                named=f":{NUMBER}<|tool_call_argument_begin|>",
                tail="<|tool_call_end|>",
                between="",
            ),
        ),
    ),
    CallFormat(
        name="minimax_m2",
        begin="<minimax:tool_call>",
        end="</minimax:tool_call>",
        read=_minimax,
        marks=("<invoke name=",),
        writings=(
            Writing(
                opens="\n",
                head='<invoke name="',
                named='">\n',
                tagged=Tagged(
                    before='<parameter name="',
                    named='">',
                    after="</parameter>",
                    space="\n",
                    never=("</invoke>",),
                ),
                tail="</invoke>",
                between="\n",
                closes="\n",
            ),
        ),
    ),
    CallFormat(
        name="qwen3_xml",
        begin="<tool_call>",
        end="</tool_call>",
        read=_qwen_xml,
        marks=("<tool_call>", "<function="),
        writings=(
            Writing(
                opens="\n",
                head="<function=",
                named=">\n",
                tagged=Tagged(
                    before="<parameter=",
                    named=">\n",
                    after="</parameter>",
                    space="\n",
                    never=("</function>",),
                ),
                tail="</function>",
                closes="\n",
                apart="\n",
            ),
        ),
    ),
    CallFormat(
        name="glm45",
        begin="<tool_call>",
        end="</tool_call>",
        read=_glm,
        marks=("<tool_call>", "<arg_key>"),
        writings=(
            Writing(
                named="\n",
                tagged=Tagged(
                    before="<arg_key>",
                    named="</arg_key>\n<arg_value>",
                    after="</arg_value>",
                    space="\n",
                ),
                apart="\n",
            ),
            Writing(  # since GLM 4.7
                named="",
                tagged=Tagged(
                    before="<arg_key>", named="</arg_key><arg_value>", after="</arg_value>"
                ),
                apart="",
            ),
        ),
    ),
    CallFormat(
        name="hermes",
        begin="<tool_call>",
        end="</tool_call>",
        read=read_json,
        marks=("<tool_call>",),
        writings=(
            Writing(
                opens="\n",
                head='{"name": "',
                named='", "arguments": ',
                tail="}",
                closes="\n",
                apart="\n",
            ),
        ),
    ),
    CallFormat(
        name="gemma4",
        begin="<|tool_call>",
        end="<tool_call|>",
        read=_gemma4,
        marks=("<|tool_call>",),
        writings=(_gemma_writing(_GEMMA_QUOTE),),
    ),
    CallFormat(
        name="function_gemma",
        begin="<start_function_call>",
        end="<end_function_call>",
        read=_function_gemma,
        marks=("<start_function_call>",),
        writings=(_gemma_writing(_ESCAPE),),
    ),
    CallFormat(
        name="nemotron",
        begin="<TOOLCALL>",
        end="</TOOLCALL>",
        read=read_json,
        marks=("<TOOLCALL>",),
        writings=(_LIST,),
    ),
    CallFormat(
        name="granite",
        begin="<|tool_call|>",
        end="",
        read=read_json,
        marks=("<|tool_call|>",),
        writings=(_LIST,),
    ),
    CallFormat(
        name="mistral",
        begin="[TOOL_CALLS]",
        end="",
        read=_mistral,
        marks=("[TOOL_CALLS]",),
        writings=(
            Writing(named="[ARGS]", between="[TOOL_CALLS]"),
            _LIST,
        ),
    ),
    CallFormat(
        name="pythonic",
        begin="",
        end="",
        read=read_bare,
        marks=("tools", "func_name1("),
        writings=(
            Writing(
                opens="[",
                named="(",
                tagged=Tagged(named="=", between=", ", is_python=True),
                tail=")",
                between=", ",
                closes="]",
            ),
        ),
    ),
    CallFormat(
        name="llama3",
        begin="",
        end="",
        read=read_bare,
        marks=("tools", "parameters", "<|start_header_id|>"),
        writings=(_LLAMA,),
    ),
    CallFormat(
        name="llama4",
        begin="",
        end="",
        read=read_bare,
        marks=("tools", "<|header_start|>"),
        writings=(_LLAMA,),
    ),
)
REASONING_FORMATS = (
    ReasoningFormat(
        name="harmony",
        begin="<|channel|>analysis<|message|>",
        end="<|end|>",
        marks=("<|channel|>", "<|message|>", "analysis"),
        drops=(
            "<|start|>assistant",
            "<|channel|>final<|message|>",
            "<|channel|>commentary<|message|>",  # said before a call
            "<|end|>",
        ),
        follows="<|start|>assistant",
    ),
    ReasoningFormat(
        name="gemma4",
        begin="<|channel>thought",
        end="<channel|>",
        marks=("<|channel>", "<channel|>"),
    ),
    ReasoningFormat(name="mistral", begin="[THINK]", end="[/THINK]", marks=("[THINK]", "[/THINK]")),
    ReasoningFormat(name="kimi", begin="◁think▷", end="◁/think▷", marks=("◁think▷", "◁/think▷")),
    ReasoningFormat(name="think", begin="<think>", end="</think>", marks=("<think>",)),
)
ALIASES = {
    "deepseek-r1": "think", "deepseek-v3": "think", "qwen3": "think", "qwen3-thinking": "think",
    "glm45": "think", "minimax": "think", "nemotron": "think", "gpt-oss": "harmony",
    "qwen": "hermes", "qwen25": "hermes", "qwen3_coder": "qwen3_xml", "deepseekv3": "deepseek_v3",
    "deepseekv31": "deepseek_v3", "deepseekv32": "deepseek_v32", "glm": "glm45",
    "minimax-m2": "minimax_m2", "functiongemma": "function_gemma", "magistral": "mistral",
    "gemma": "gemma4", "deepseek_r1": "think", "qwen3_coder_xml": "qwen3_xml",
    "deepseek_v31": "deepseek_v3", "deepseekv4": "deepseek_v4", "glm47": "glm45",
    "llama3_json": "llama3", "llama4_json": "llama4", "llama4_pythonic": "pythonic",
    "kimi_k2": "think", "minimax_m2": "think", "deepseek_v3": "think", "openai_gptoss": "harmony",
    "openai": "harmony", "nemotron_v3": "think", "nano_v3": "think",
}  # fmt: skip
"""Names that other engines have for these formats; one may stand for thoughts and for calls."""
Format = TypeVar("Format", CallFormat, ReasoningFormat)


def find_format(name: str, formats: tuple[Format, ...]) -> Format | None:
    """Return the format of a name, ours or another engine's."""
    by_name = {known.name: known for known in formats}
    return by_name.get(name) or by_name.get(ALIASES.get(name, ""))


def detect(template: str, formats: tuple[Format, ...]) -> Format | None:
    """Return the first of ``formats`` whose marks a chat template has."""
    return next((known for known in formats if all(m in template for m in known.marks)), None)

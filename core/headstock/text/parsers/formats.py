"""The formats that are known: one description each, from which all else follows.

Marks and shapes are those of the families' published chat templates.
"""

from __future__ import annotations

import re
from typing import TypeVar

from headstock.text.parsers.bodies import (
    read_bare,
    read_json,
    read_named,
    read_tagged,
)
from headstock.text.parsers.parts import Call, CallFormat, ReasoningFormat, Tools

_NAME = r"\s*(?:functions\.)?([\w.\-/]+)"
_DSML = "｜DSML｜"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.DOTALL)


_QWEN_XML = (
    _pattern(r"\s*<function=(?P<name>[^>\n]+)>(?P<body>.*?)</function>\s*"),
    _pattern(r"<parameter=(?P<name>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"),
)
_GLM = (
    _pattern(r"\A\s*(?P<name>[\w.\-/]+)\s*(?P<body>(?:<arg_key>.*)?)\Z"),
    _pattern(r"<arg_key>(?P<name>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"),
)
_MINIMAX = (
    _pattern(r'\s*<invoke name="?(?P<name>[^">\n]+)"?>(?P<body>.*?)</invoke>\s*'),
    _pattern(r'<parameter name="?(?P<name>[^">\n]+)"?>\n?(?P<value>.*?)\n?</parameter>'),
)
_DEEPSEEK_32 = (
    _pattern(rf'\s*<{_DSML}invoke name="(?P<name>[^"]+)">(?P<body>.*?)</{_DSML}invoke>\s*'),
    _pattern(
        rf'<{_DSML}parameter name="(?P<name>[^"]+)"(?: string="(?P<is_text>true|false)")?>'
        rf"(?P<value>.*?)</{_DSML}parameter>"
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


def _harmony(body: str, tools: Tools) -> list[Call] | None:
    return read_named(body, (_HARMONY_HEAD,), _NOTHING) or None


CALL_FORMATS = (
    CallFormat(
        name="harmony",
        begin="<|channel|>commentary to=functions.",
        end="<|call|>",
        read=_harmony,
        marks=("<|channel|>", "<|message|>", "commentary"),
    ),
    CallFormat(
        name="deepseek_v32",
        begin=f"<{_DSML}function_calls>",
        end=f"</{_DSML}function_calls>",
        read=_deepseek_32,
        marks=(f"<{_DSML}",),
    ),
    CallFormat(
        name="deepseek_v3",
        begin="<｜tool▁calls▁begin｜>",
        end="<｜tool▁calls▁end｜>",
        read=_deepseek,
        marks=("<｜tool▁calls▁begin｜>",),
    ),
    CallFormat(
        name="kimi_k2",
        begin="<|tool_calls_section_begin|>",
        end="<|tool_calls_section_end|>",
        read=_kimi,
        marks=("<|tool_calls_section_begin|>",),
    ),
    CallFormat(
        name="minimax_m2",
        begin="<minimax:tool_call>",
        end="</minimax:tool_call>",
        read=_minimax,
        marks=("<invoke name=",),
    ),
    CallFormat(
        name="qwen3_xml",
        begin="<tool_call>",
        end="</tool_call>",
        read=_qwen_xml,
        marks=("<tool_call>", "<function="),
    ),
    CallFormat(
        name="glm45",
        begin="<tool_call>",
        end="</tool_call>",
        read=_glm,
        marks=("<tool_call>", "<arg_key>"),
    ),
    CallFormat(
        name="hermes",
        begin="<tool_call>",
        end="</tool_call>",
        read=read_json,
        marks=("<tool_call>",),
    ),
    CallFormat(
        name="granite",
        begin="<|tool_call|>",
        end="",
        read=read_json,
        marks=("<|tool_call|>",),
    ),
    CallFormat(
        name="mistral",
        begin="[TOOL_CALLS]",
        end="",
        read=_mistral,
        marks=("[TOOL_CALLS]",),
    ),
    CallFormat(
        name="llama3",
        begin="",
        end="",
        read=read_bare,
        marks=("tools", "parameters", "<|start_header_id|>"),
    ),
    CallFormat(
        name="llama4",
        begin="",
        end="",
        read=read_bare,
        marks=("tools", "<|header_start|>"),
    ),
    CallFormat(name="pythonic", begin="", end="", read=read_bare, marks=("tools", "func_name1(")),
)
REASONING_FORMATS = (
    ReasoningFormat(
        name="harmony",
        begin="<|channel|>analysis<|message|>",
        end="<|end|>",
        marks=("<|channel|>", "<|message|>", "analysis"),
        drops=("<|start|>assistant", "<|channel|>final<|message|>"),
    ),
    ReasoningFormat(name="kimi", begin="◁think▷", end="◁/think▷", marks=("◁think▷", "◁/think▷")),
    ReasoningFormat(name="think", begin="<think>", end="</think>", marks=("<think>",)),
)
ALIASES = {
    "deepseek-r1": "think", "deepseek-v3": "think", "qwen3": "think", "qwen3-thinking": "think",
    "glm45": "think", "minimax": "think", "nemotron": "think", "gpt-oss": "harmony",
    "qwen": "hermes", "qwen25": "hermes", "qwen3_coder": "qwen3_xml", "deepseekv3": "deepseek_v3",
    "deepseekv31": "deepseek_v3", "deepseekv32": "deepseek_v32", "glm": "glm45",
    "minimax-m2": "minimax_m2",
}  # fmt: skip
"""Names that other engines have for these formats."""
Format = TypeVar("Format", CallFormat, ReasoningFormat)


def detect(template: str, formats: tuple[Format, ...]) -> Format | None:
    """Return the first of ``formats`` whose marks a chat template has."""
    return next((known for known in formats if all(m in template for m in known.marks)), None)

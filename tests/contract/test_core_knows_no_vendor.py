"""The core holds no vendor: no vendor name, no device check, no environment read below the edge."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VENDOR = re.compile(
    r"torch\.(cuda|xpu|npu|accelerator)|torch_(npu|xla)|is_(cuda|rocm|hip|npu|xpu|tpu)"
    r"|device\.type\b|\.is_cpu\b"
    r"|\b(nvidia|cuda|rocm|hip|ascend|tpu|xeon|npu|nccl|hccl)\b",
    re.IGNORECASE,
)
ENVIRONMENT = re.compile(r"\bos\.(environ|getenv)\b")
SOURCES = sorted([*ROOT.glob("core/**/*.py"), *ROOT.glob("models/**/*.py")])
KIT = ROOT / "core/headstock/testing"
"""Its tests ask where a tensor lies: that is what they test."""
EDGE = ROOT / "core/headstock/config/environment.py"


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Names, operators and strings line by line, without comments and docstrings."""
    lines: dict[int, list[str]] = {}
    previous = tokenize.INDENT
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        is_docstring = token.type == tokenize.STRING and previous in (
            tokenize.INDENT,
            tokenize.NEWLINE,
            tokenize.NL,
            tokenize.DEDENT,
        )
        if token.type not in (tokenize.COMMENT, tokenize.NL) and not is_docstring:
            lines.setdefault(token.start[0], []).append(token.string)
        if token.type not in (tokenize.COMMENT,):
            previous = token.type
    return [(number, "".join(parts)) for number, parts in lines.items()]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_names_no_vendor(path: Path) -> None:
    lines = code_lines(path)
    if path.is_relative_to(KIT):
        lines = [(n, line.replace("device.type", "")) for n, line in lines]
    found = [f"{n}: {line}" for n, line in lines if VENDOR.search(line)]
    assert not found, f"{path}: {found}"


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p != EDGE], ids=lambda p: str(p.relative_to(ROOT))
)
def test_file_reads_no_environment(path: Path) -> None:
    found = [f"{n}: {line}" for n, line in code_lines(path) if ENVIRONMENT.search(line)]
    assert not found, f"{path}: {found}"


def test_the_grep_sees_a_vendor() -> None:
    assert VENDOR.search("if torch.cuda.is_available():")
    assert VENDOR.search('backend == "rocm"')
    assert VENDOR.search('if x.device.type == "cpu":')

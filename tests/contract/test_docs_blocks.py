"""Every block of commands or Python on a page is run by a test, or says why not.

A comment before a block says what becomes of it: ``<!-- not run: REASON -->``, or
``<!-- run by: tests/… -->``, or a mark that a test of the page looks for (``<!-- file: … -->``). A
block without one is run here: commands in an empty folder, one after another, with
``headstock serve`` on a free port; Python after the blocks before it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headstock.checkpoint.pull import cached_path, find
from tests.e2e.served import Served

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "docker/README.md",
        ROOT / "examples/README.md",
    ]
)
RUN_BY = {
    ("README.md", "python"): "test_docs_quickstart",
    ("docs/quickstart.md", "python"): "test_docs_quickstart",
    ("docs/http-api.md", "console"): "test_docs_quickstart",
    ("docs/language.md", "python"): "test_docs_language",
    ("docs/speculation.md", "python"): "test_docs_speculation",
    ("docs/adding-a-model.md", "python"): "test_docs_model",
}
"""Pages with a test that runs all of their blocks of one kind."""
BLOCK = re.compile(r"(?:<!-- ([^\n]+?) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KINDS = ("console", "bash", "sh", "shell", "python")
ADDRESS = "http://127.0.0.1:30000"
SMALL = {
    "HEADSTOCK_CACHE_TOKENS": "4096",
    "HEADSTOCK_MAX_MODEL_LEN": "2048",
    "HEADSTOCK_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
"""For what serves: enough, and little memory."""
TIMEOUT_S = 240


@dataclass(frozen=True)
class Block:
    """A block of code of a page, and what stands before it."""

    page: str
    number: int
    kind: str
    mark: str
    code: str

    @property
    def name(self) -> str:
        return f"{self.page}-{self.number}"

    @property
    def is_run_here(self) -> bool:
        return not self.mark and (self.page, self.kind) not in RUN_BY


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for number, (mark, kind, code) in enumerate(BLOCK.findall(text)):
            if kind in KINDS:
                yield Block(str(page.relative_to(ROOT)), number, kind, mark, code)


ALL = list(blocks())
HERE = [block for block in ALL if block.is_run_here]


@pytest.mark.parametrize("block", [b for b in ALL if b.mark], ids=lambda block: block.name)
def test_marks_say_who_runs_a_block_or_why_nothing_does(block: Block) -> None:
    what, _, rest = block.mark.partition(": ")
    if what == "not run":
        assert len(rest.split()) >= 3, f"{block.name}: a reason is a sentence"
    elif what == "run by":
        assert (ROOT / rest).is_file(), rest
    else:
        own = Path(__file__).name
        tests = [p for p in ROOT.glob("tests/contract/test_docs_*.py") if p.name != own]
        texts = [path.read_text(encoding="utf-8") for path in tests]
        name = block.page.rsplit("/", maxsplit=1)[-1]
        assert any(f'"{name}"' in text for text in texts)


def test_the_tests_that_run_a_page_name_it() -> None:
    for (page, _), test in RUN_BY.items():
        text = (ROOT / f"tests/contract/{test}.py").read_text(encoding="utf-8")
        assert f'"{page.rsplit("/", maxsplit=1)[-1]}"' in text, (page, test)


def commands(code: str) -> list[str]:
    """Return the commands of a block: continued lines joined, remarks and output left out."""
    found: list[str] = []
    is_continued = False
    for line in code.splitlines():
        if is_continued:
            found[-1] += "\n" + line
        elif line.startswith("$ "):
            found.append(re.sub(r"\s{2,}# .*$", "", line[2:]))
        else:
            continue
        is_continued = line.endswith("\\") or found[-1].count("'") % 2 == 1
    return found


@pytest.mark.parametrize(
    "block", [b for b in HERE if b.kind != "python"], ids=lambda block: block.name
)
def test_blocks_of_commands_have_commands(block: Block) -> None:
    assert block.kind == "console", f"{block.name}: commands are shown as console"
    assert commands(block.code)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the programs that the pages call: this interpreter's."""
    folder = tmp_path_factory.mktemp("programs")
    words = {"headstock": "-m headstock.cli", "python": "", "pytest": "-m pytest"}
    for name, first in words.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {first} "$@"\n')
        path.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [b for b in HERE if b.kind != "python"], ids=lambda block: block.name
)
def test_commands_run(
    block: Block, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cached_path(find("smollm2")).is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    if "curl " in block.code and shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    server: Served | None = None
    try:
        for command in commands(block.code):
            if command.startswith("headstock serve"):
                if server is not None:
                    server.close()
                flags = command.split()[2:]
                server = Served(*without_port(flags))
                continue
            url = ADDRESS if server is None else server.url
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command.replace(ADDRESS, url)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    finally:
        if server is not None:
            server.close()


def without_port(flags: list[str]) -> list[str]:
    """Return flags without a port: the test's server takes a free one."""
    if "--port" not in flags:
        return flags
    at = flags.index("--port")
    return flags[:at] + flags[at + 2 :]


PYTHON_PAGES = sorted({block.page for block in HERE if block.kind == "python"})


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_runs(page: str) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in HERE:
        if block.page == page and block.kind == "python":
            exec(compile(block.code, block.name, "exec"), names)

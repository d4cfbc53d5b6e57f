"""Every block of docs/language.md runs as it stands, in order."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import headstock
from headstock.checkpoint.pull import cached_path, find
from headstock.config.environment import OTHERS
from tests.e2e.served import SMALL, Served, served

PAGE = Path(__file__).parents[2] / "docs" / "language.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    if not cached_path(find("smollm2")).is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    with served("smollm2", *SMALL) as server:
        yield server


def test_every_block_runs(server: Served, tmp_path: Path) -> None:
    names: dict[str, object] = {"__name__": "language"}
    printed: list[str] = []
    for number, code in enumerate(BLOCK.findall(TEXT)):
        file = tmp_path / f"block_{number}.py"  # errors show a program's line, which is in a file
        file.write_text(code.replace("http://127.0.0.1:30000", server.url))
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(file.read_text(), str(file), "exec"), names)
        printed.append(output.getvalue())
    text = "".join(printed)
    assert "Paris" in printed[0]
    assert "2 + 2 is" in text
    assert "-1.0" not in text
    assert len(printed) == TEXT.count("```python")


def test_every_name_of_the_language_is_on_the_page() -> None:
    for name in headstock.__all__:
        if name.startswith("__") or name in ("ProgramState", "flush_cache", "get_server_info"):
            continue
        if name.endswith(("_begin", "_end", "_int", "_string")):
            continue
        assert re.search(rf"\b{name}\b", TEXT), name


def test_variables_of_other_services_are_documented() -> None:
    for name in OTHERS:
        if name.endswith("_API_KEY"):
            assert name in TEXT

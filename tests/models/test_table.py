"""The pages of models and of formats list what the tests compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.table import PAGES, page


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_the_tables_of_the_page_are_those_of_the_tests(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert page(text) == text, "run `python -m tests.models.table`"

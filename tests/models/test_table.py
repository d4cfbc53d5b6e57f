"""The page of models lists what the tests compare."""

from __future__ import annotations

from tests.models.table import PAGE, page


def test_the_tables_of_the_page_are_those_of_the_tests() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run `python -m tests.models.table`"

"""The configuration reference is what the schema says."""

from __future__ import annotations

from pathlib import Path

from headstock.config.options import options
from headstock.config.reference import render

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_reference_is_generated_from_the_schema() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == render(), (
        "run: python -m headstock.config.reference docs/configuration.md"
    )


def test_the_reference_has_every_setting() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    assert all(f"### {option.path}\n" in text for option in options())

"""docs/backends.md is what the kept reports say, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from headstock.testing.table import WAYS, in_tree, keep, page, read

DOCS = Path(__file__).parents[2] / "docs"


def report(**changes):
    result = {"test": "test_3_ops.py::x", "outcome": "passed", "op": "linear", "num_cases": 7}
    result |= {"dtype": "float32", "kinds": ["dense"]}
    whole = {"backend": "acme", "device": "acme 1", "headstock": "0.1.0", "counts": {"passed": 1}}
    return whole | {"results": [result]} | changes


def test_the_page_is_generated_from_the_reports() -> None:
    kept = read(DOCS / "reports")
    assert kept
    assert (DOCS / "backends.md").read_text(encoding="utf-8") == page(kept, in_tree())


def test_an_op_is_in_its_row_with_dtypes_and_kinds() -> None:
    text = page([keep(report(), "hardware")])
    assert "| products | f32; dense |" in text
    assert "| attention | reference |" in text
    assert "| served tokens | not run |" in text


def test_a_report_with_failures_is_refused() -> None:
    with pytest.raises(ValueError, match="tests that failed"):
        keep(report(counts={"failed": 1}), "hardware")


def test_a_report_can_be_kept_as_another_backends() -> None:
    text = page([keep(report(), "stand-in kernels", "other")], ["acme", "other"])
    assert "other, stand-in kernels" in text
    assert "No report is kept of: `acme`." in text


def test_backends_without_a_report_are_named() -> None:
    text = page([keep(report(), "schema")], ["acme", "other"])
    assert "No report is kept of: `other`." in text


def test_every_way_is_explained() -> None:
    text = page([keep(report(), "schema")])
    assert all(f"*{way}*" in text for way in WAYS)

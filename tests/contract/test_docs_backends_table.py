"""docs/backends.md is what the kept reports say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headstock.testing.table import WAYS, in_tree, joined, keep, main, page, read

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


def test_parts_of_a_kit_are_kept_as_one(tmp_path: Path) -> None:
    engine = {"test": "test_7_engine.py::y", "outcome": "passed"}
    parts = [report(), report(results=[engine], counts={"passed": 1, "skipped": 2})]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, part in zip(files, parts, strict=True):
        file.write_text(json.dumps(part))
    into = tmp_path / "kept"
    into.mkdir()
    assert main(["keep", *map(str, files), "hardware", str(into)]) == 0
    text = page(read(into))
    assert "| products | f32; dense |" in text
    assert "| served tokens | 1 tests pass |" in text
    assert joined(parts)["counts"] == {"passed": 2, "skipped": 2}


@pytest.mark.parametrize("name", ["backend", "device", "headstock"])
def test_parts_of_different_kits_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"differ in {name}"):
        joined([report(), report(results=[], **{name: "other"})])


def test_a_part_that_opened_no_device_joins_the_others() -> None:
    loading = report(results=[])
    del loading["device"], loading["headstock"]
    assert joined([loading, report()])["device"] == "acme 1"


def test_a_test_that_is_in_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="share 1 tests: test_3_ops"):
        joined([report(), report()])


def test_a_part_with_failures_is_refused() -> None:
    with pytest.raises(ValueError, match="tests that failed"):
        keep(joined([report(), report(results=[], counts={"failed": 1})]), "hardware")

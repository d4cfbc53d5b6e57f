"""Every kernel compiles for GPUs that are not here, and takes what docs/rocm.md says."""

from __future__ import annotations

import importlib.util
import json
from importlib import metadata
from pathlib import Path

import pytest
import usage_table

if importlib.util.find_spec("triton") is None:  # importing it would choose for other tests
    pytest.skip("no triton", allow_module_level=True)
QUICK = ("gfx942", "sm_90")
PAGE = usage_table.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", QUICK)
def test_a_variant_of_every_kernel_compiles(target: str, tmp_path: Path) -> None:
    file = tmp_path / "usage.json"
    done = usage_table.compile_for(target, file, tmp_path / "cache", "--first")
    assert done.returncode == 0, done.stderr[-2000:]
    names = [row["kernel"] for row in json.loads(file.read_text())]
    assert sorted(names) == sorted(usage_table.written(PAGE)[target])


@pytest.mark.slow
@pytest.mark.parametrize("target", usage_table.TARGETS)
def test_every_kernel_compiles_and_takes_what_the_page_says(target: str, tmp_path: Path) -> None:
    file = tmp_path / "usage.json"
    done = usage_table.compile_for(target, file, tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-2000:]
    kind, arch = usage_table.TARGETS[target], target.removeprefix("sm_")
    assert f"kernels compiled for {kind} {arch}" in done.stdout
    said = usage_table.COMPILER.search(PAGE)
    assert said is not None
    if said[1] != metadata.version("triton"):
        return  # another compiler takes other registers
    found = usage_table.column(json.loads(file.read_text()))
    wrong = usage_table.difference(usage_table.written(PAGE)[target], found)
    remedy = f"python -m tests.kernels.triton_kernels.usage_table {target}"
    assert not wrong, "\n".join([*wrong, f"-> {remedy}"])


def test_the_table_is_as_it_is_written() -> None:
    columns = usage_table.written(PAGE)
    assert list(columns) == list(usage_table.TARGETS)
    assert usage_table.table(columns) in PAGE


def test_no_kernel_spills_but_those_that_are_known_to() -> None:
    assert usage_table.spilling(usage_table.written(PAGE)) == usage_table.SPILLING


def test_a_cell_that_is_not_what_was_compiled_is_named() -> None:
    rows = [
        {"kernel": "k", "registers": 8, "spilled": 0, "shared": 2048},
        {"kernel": "k", "registers": 4, "spilled": 3, "shared": 4096},
    ]
    found = usage_table.column(rows)
    assert found == {"k": "8, 4, **3**"}
    assert usage_table.difference({"k": "8, 4", "gone": "1, 0"}, found) == [
        "gone: 1, 0 on the page, - compiled",
        "k: 8, 4 on the page, 8, 4, **3** compiled",
    ]

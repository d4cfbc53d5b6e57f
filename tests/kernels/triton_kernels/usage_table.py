"""The table of docs/rocm.md: what the compiler says of each kernel, for GPUs that are not here.

``python -m tests.kernels.triton_kernels.usage_table`` compiles every kernel for every target, which
takes some minutes each, and writes the table. Names of targets after it write their columns alone.
"""

# ruff: noqa: T201 - it says what it is at
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "rocm.md"
SCRIPT = Path(__file__).parent / "triton_cross_compile.py"
BEGIN, END = "<!-- usage: python -m tests.kernels.triton_kernels.usage_table -->", "<!-- end -->"
TARGETS = {
    "gfx90a": "hip", "gfx942": "hip", "gfx950": "hip", "gfx1100": "hip", "gfx1201": "hip",
    "sm_80": "cuda", "sm_90": "cuda", "sm_100": "cuda", "sm_120": "cuda",
}  # fmt: skip
"""Columns, in their order, and Triton's name for who makes them."""
SPILLING = {
    "gfx1100": {
        "attend_nodes", "attend_queries", "chunk_kernel", "down_kernel", "gate_up_kernel",
        "tiles_kernel",
    },
    "gfx1201": {"chunk_kernel"},
}  # fmt: skip
"""Kernels whose registers lie in memory there: their tiles are made for other GPUs. A spill of any
other kernel, or elsewhere, fails the build."""
COMPILER = re.compile(r"\(Triton ([\d.]+)\)")
ABSENT = "-"
"""Of a kernel that is not launched there."""

Columns = dict[str, dict[str, str]]
"""Cells by target and kernel."""


def compile_for(
    target: str, file: Path, cache: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Compile every kernel for ``target`` in a process of its own; ``file`` gets what they take."""
    arch = target.removeprefix("sm_")
    return subprocess.run(
        [sys.executable, SCRIPT, TARGETS[target], arch, "--usage", file, *options],
        env={"TRITON_CACHE_DIR": str(cache), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )


def column(rows: Iterable[Mapping[str, object]]) -> dict[str, str]:
    """Return the cell of each kernel: the most that any of its variants takes."""
    most: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        figures = [int(str(row[name])) for name in ("registers", "spilled", "shared")]
        kernel = str(row["kernel"])
        most[kernel] = list(map(max, most[kernel], figures))
    return {kernel: cell(*figures) for kernel, figures in most.items()}


def cell(registers: int, spilled: int, shared: int) -> str:
    """Return "registers, KiB shared", and what is spilled, if anything is."""
    text = f"{registers}, {shared / 1024:.0f}"
    return f"{text}, **{spilled}**" if spilled else text


def spilling(columns: Columns) -> dict[str, set[str]]:
    """Return the kernels of which something is spilled, by target."""
    found = {
        target: {kernel for kernel, figures in cells.items() if "**" in figures}
        for target, cells in columns.items()
    }
    return {target: kernels for target, kernels in found.items() if kernels}


def written(text: str) -> Columns:
    """Return what the page says."""
    table = text.split(BEGIN)[1].split(END)[0].strip().splitlines()
    titles, _, *rows = ([part.strip() for part in line.strip("|").split("|")] for line in table)
    found: Columns = {target: {} for target in titles[1:]}
    for kernel, *cells in rows:
        for target, figures in zip(titles[1:], cells, strict=True):
            if figures != ABSENT:
                found[target][kernel.strip("`")] = figures
    return found


def table(columns: Columns) -> str:
    """Return a row a kernel, a column a target."""
    titles = [target for target in TARGETS if target in columns]
    lines = ["| kernel | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for kernel in sorted({kernel for cells in columns.values() for kernel in cells}):
        cells = [columns[target].get(kernel, ABSENT) for target in titles]
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(said: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Say of each kernel how a column of the page is not what was found."""
    return [
        f"{kernel}: {said.get(kernel, ABSENT)} on the page, {found.get(kernel, ABSENT)} compiled"
        for kernel in sorted({*said, *found})
        if said.get(kernel) != found.get(kernel)
    ]


def main(targets: Sequence[str]) -> None:
    """Compile for ``targets``, or for all, and write their columns."""
    from triton import __version__

    text = PAGE.read_text(encoding="utf-8")
    columns = written(text)
    with tempfile.TemporaryDirectory() as folder:
        for target in targets or TARGETS:
            file = Path(folder) / f"{target}.json"
            done = compile_for(target, file, Path(folder) / "cache")
            if not file.exists():
                raise SystemExit(f"{target}: {done.stderr[-2000:]}")
            columns[target] = column(json.loads(file.read_text()))
            print(f"{target}: {len(columns[target])} kernels")
    before, rest = text.split(BEGIN)
    after = rest.split(END, 1)[1]
    before = COMPILER.sub(f"(Triton {__version__})", before)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(columns)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

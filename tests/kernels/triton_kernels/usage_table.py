"""Writes the table of docs/rocm.md from what the compiler said of each kernel.

python tests/kernels/triton_kernels/triton_cross_compile.py hip gfx942 --usage build/gfx942.json
python -m tests.kernels.triton_kernels.usage_table build/*.json
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "rocm.md"
BEGIN, END = "<!-- usage: python -m tests.kernels.triton_kernels.usage_table -->", "<!-- end -->"
ORDER = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "80", "90", "100", "120")

Most = dict[str, list[int]]
"""Registers, spilled and shared memory, by kernel: the most that a variant takes."""


def most(rows: Sequence[dict[str, object]]) -> Most:
    """Return the most that any variant of each kernel takes."""
    found: Most = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        figures = [int(str(row[name])) for name in ("registers", "spilled", "shared")]
        found[str(row["kernel"])] = list(map(max, found[str(row["kernel"])], figures))
    return found


def table(by_arch: dict[str, Most]) -> str:
    """Return a row a kernel, a column an architecture."""
    archs = [arch for arch in ORDER if arch in by_arch]
    titles = [arch if arch.startswith("gfx") else f"sm_{arch}" for arch in archs]
    lines = ["| kernel | " + " | ".join(titles) + " |", "|---" * (len(archs) + 1) + "|"]
    for kernel in sorted({kernel for found in by_arch.values() for kernel in found}):
        cells = [cell(by_arch[arch].get(kernel)) for arch in archs]
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(figures: list[int] | None) -> str:
    """Return "registers, KiB shared", and what is spilled, if anything is."""
    if figures is None:
        return "-"
    registers, spilled, shared = figures
    text = f"{registers}, {shared / 1024:.0f}"
    return f"{text}, **{spilled}**" if spilled else text


def main(paths: Sequence[str]) -> None:
    by_arch = {}
    for path in map(Path, paths):
        by_arch[path.stem.rpartition("-")[2]] = most(json.loads(path.read_text()))
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END, 1)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(by_arch)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Compiles and runs machine_limits.cpp: what this processor reaches at most.

python benchmarks/machine_limits.py [THREADS]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from headstock_xeon.build import find_compiler

SOURCE = Path(__file__).with_suffix(".cpp")


def compile_limits(folder: Path) -> Path:
    """Return the program, made in ``folder``."""
    compiler, _ = find_compiler()
    made = folder / "machine_limits"
    flags = ("-std=c++17", "-O2", "-mavx2", "-mfma", "-pthread")
    subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(made)], check=True)
    return made


def measure_limits(threads: int) -> dict[str, float]:
    """Return bytes and operations a second, all threads together."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(compile_limits(Path(folder))), str(threads)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


if __name__ == "__main__":
    print(json.dumps(measure_limits(int(sys.argv[1]) if len(sys.argv) > 1 else 2), indent=1))

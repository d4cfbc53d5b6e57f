"""Writes the schemas of torch-npu that the ascend backend calls: ``python record_schemas.py``.

Runs where torch-npu imports; tests/hardware/ascend makes such a place without an NPU.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
BACKEND = ROOT / "backends/ascend/headstock_ascend"
SCHEMAS = Path(__file__).parent / "headstock_npu_on_cpu/schemas.txt"


def called() -> list[str]:
    """Return the names of the ops that the backend's source calls."""
    source = "".join(path.read_text() for path in BACKEND.glob("*.py"))
    return sorted(set(re.findall(r"ops\.npu\.(\w+)", source)))


def recorded() -> str:
    """Return their schemas as the installed torch-npu has them, a line each."""
    import torch_npu

    schemas = [str(getattr(torch.ops.npu, name).default._schema) for name in called()]
    return "\n".join([f"# torch-npu {torch_npu.__version__}", *schemas]) + "\n"


if __name__ == "__main__":
    SCHEMAS.write_text(recorded())

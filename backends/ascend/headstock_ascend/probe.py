"""Are there Ascend NPUs? Read from the driver's device files. Probe only: nothing serves yet."""

from __future__ import annotations

import re
from pathlib import Path

from headstock.plugins.installed import is_installed
from headstock.plugins.probe import Probe, ProbedDevice, Status

SCORE = 100
DEVICE = re.compile(r"davinci(\d+)")


def probe(root: Path = Path("/")) -> Probe:
    """Look at the machine whose file system is at ``root``. Never AVAILABLE."""
    names = (DEVICE.fullmatch(path.name) for path in root.glob("dev/davinci*"))
    numbers = sorted(int(name.group(1)) for name in names if name)
    if not numbers:
        return Probe(status=Status.ABSENT, reason="no /dev/davinci*", score=SCORE)
    extra = "" if is_installed("torch_npu") else ", torch_npu is not installed"
    return Probe(
        status=Status.ABSENT,
        reason=f"probe only: {len(numbers)} NPUs found{extra}, no kernels yet",
        remedy="Serve with another backend meanwhile.",
        score=SCORE,
        devices=tuple(
            ProbedDevice(index=number, name=f"davinci{number}", arch="unknown")
            for number in numbers
        ),
    )

"""Each backend's package is small, and has the parts that the others have, under the same names."""

from __future__ import annotations

from pathlib import Path

import pytest

BACKENDS = Path(__file__).parents[2] / "backends"
PACKAGES = [
    BACKENDS / name / f"headstock_{name}" for name in ("cuda", "rocm", "xeon", "tpu", "ascend")
]
MOST_LINES = 2500
"""Without blank ones."""
PARTS = {"__init__.py", "probe.py", "device.py", "register.py"}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_backend_is_small_and_has_the_parts_of_the_others(package: Path) -> None:
    files = list(package.rglob("*.py"))
    texts = [file.read_text(encoding="utf-8").splitlines() for file in files]
    lines = sum(bool(line.strip()) for text in texts for line in text)
    assert lines < MOST_LINES, f"{package.name} has {lines} lines"
    assert {file.name for file in files} >= PARTS


def test_every_backend_is_looked_at() -> None:
    shared = {"triton"}
    assert {package.parent.name for package in PACKAGES} | shared == {
        folder.name for folder in BACKENDS.iterdir() if folder.is_dir()
    }

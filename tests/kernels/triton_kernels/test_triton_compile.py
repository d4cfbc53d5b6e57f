"""Every kernel compiles for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:  # importing it would choose for other tests
    pytest.skip("no triton", allow_module_level=True)
SCRIPT = Path(__file__).parent / "triton_cross_compile.py"


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "arch"),
    [
        pytest.param("cuda", "80", marks=SLOW),
        ("cuda", "90"),
        pytest.param("cuda", "100", marks=SLOW),
        pytest.param("cuda", "120", marks=SLOW),
        pytest.param("hip", "gfx90a", marks=SLOW),
        ("hip", "gfx942"),
        pytest.param("hip", "gfx950", marks=SLOW),
        pytest.param("hip", "gfx1100", marks=SLOW),
        pytest.param("hip", "gfx1201", marks=SLOW),
    ],
)
def test_every_kernel_compiles_for(kind, arch, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, kind, arch],
        env={"TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"kernels compiled for {kind} {arch}" in done.stdout

"""torch-npu as it is published, over do-nothing libraries of CANN. `make ascend-test` fetches it.

Nothing computes here: schemas and shapes are real, and calls of the driver do nothing.
"""

from __future__ import annotations

import glob
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from headstock.config.environment import child_environment

LIBRARIES = ("hccl", "ascendcl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel", "atb")
OURS = ("Py", "_Py", "_ITM", "__gmon", "__cxa_finalize")
"""What Python and the loader bring."""

COUNT = "aclrtGetDeviceCount"
ONE_DEVICE = f"int {COUNT}(unsigned *count) {{ *count = 1; return 0; }}\n"
"""There must be a device for PyTorch to switch to, be it one without memory."""


@pytest.fixture(scope="session")
def torch_npu() -> Path:
    """Return where torch-npu is installed; skip where it is not, or is for another PyTorch."""
    spec = find_spec("torch_npu")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torch-npu is not installed: make ascend-test")
    folder = Path(next(iter(spec.submodule_search_locations)))
    version = next(folder.parent.glob("torch_npu-*.dist-info")).name.split("-")[1]
    if version.split(".")[:2] != torch.__version__.split(".")[:2]:
        pytest.skip(f"torch-npu {version} is not for PyTorch {torch.__version__}")
    return folder


@pytest.fixture(scope="session")
def cann(torch_npu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of libraries in which each function that torch-npu lacks returns 0."""
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("no gcc and nm")
    own = [*torch_npu.glob("lib/*.so"), *torch_npu.glob("*.so")]
    theirs = [*glob.glob(f"{torch.__path__[0]}/lib/*.so"), *_system_libraries()]
    wanted = {
        name for path in own for name in _symbols(path, "--undefined-only") if "@" not in name
    }
    found = {name.split("@")[0] for x in [*own, *theirs] for name in _symbols(x, "--defined-only")}
    lacking = sorted(name for name in wanted - found if not name.startswith(OURS))
    folder = tmp_path_factory.mktemp("cann")
    source = folder / "nothing.c"
    nothing = [f"long {name}(void) {{ return 0; }}" for name in lacking if name != COUNT]
    source.write_text("\n".join([*nothing, ONE_DEVICE]))
    empty = folder / "empty.c"
    empty.write_text("")
    for name in LIBRARIES:
        code = source if name == "ascendcl" else empty
        command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin"]
        subprocess.run([*command, "-o", folder / f"lib{name}.so", code], check=True, timeout=120)
    return folder


@pytest.fixture(scope="session")
def outcomes(cann: Path) -> dict[str, str]:
    """Return what is wrong with each call of ``calls.py``, made in a process with torch-npu."""
    environment = child_environment(
        LD_LIBRARY_PATH=str(cann), TORCH_DEVICE_BACKEND_AUTOLOAD="0", PYTHONPATH=":".join(sys.path)
    )
    script = Path(__file__).parent / "calls.py"
    done = subprocess.run(
        [sys.executable, script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _symbols(path: str | Path, which: str) -> set[str]:
    done = subprocess.run(["nm", "-D", which, path], capture_output=True, text=True, check=False)
    return {line.split()[-1] for line in done.stdout.splitlines() if line.split()}


def _system_libraries() -> list[str]:
    """Return the libraries of the system that this process has loaded, for PyTorch."""
    words = Path("/proc/self/maps").read_text().split()
    names = ("libc.so", "libm.so", "libstdc++.so", "libgcc_s.so")
    return sorted({word for word in words if Path(word).name.startswith(names)})

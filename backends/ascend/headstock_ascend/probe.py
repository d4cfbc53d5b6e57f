"""Are there NPUs, and a torch-npu and CANN for them? Imports neither torch nor CANN."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from headstock.plugins.hooks import Finding
from headstock.plugins.probe import Probe, ProbedDevice, Status

SCORE = 100
DEVICE = re.compile(r"davinci(\d+)")
VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"
LIBRARY = "libascendcl.so"
"""Of CANN: what every program for an NPU loads first."""
INSTALL = "pip install 'headstock[ascend]'"
SET_UP = "Install the CANN toolkit, and source its set_env.sh before headstock is started."

Version = Callable[[str], str | None]


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def probe() -> Probe:
    """Look at this machine."""
    return judge(Path("/"), installed_version, os.environ)


def judge(root: Path, version: Version, environment: Mapping[str, str]) -> Probe:
    """Say whether the NPUs of the machine whose file system is at ``root`` can be used."""
    numbers = find_numbers(root)
    if not numbers:
        return Probe(status=Status.ABSENT, reason="no /dev/davinci*", score=SCORE)
    devices = tuple(
        ProbedDevice(index=index, name=f"davinci{number}", arch="ascend")
        for index, number in enumerate(visible(numbers, environment.get(VISIBLE)))
    )
    if not devices:
        reason = f"{VISIBLE} hides {len(numbers)} NPUs"
        return Probe(status=Status.ABSENT, reason=reason, score=SCORE)
    status, what, remedy = find_software(version, environment)
    return Probe(
        status=status,
        reason=f"{len(devices)} NPUs, {what}",
        remedy=remedy,
        score=SCORE,
        devices=devices,
    )


def find_software(version: Version, environment: Mapping[str, str]) -> tuple[Status, str, str]:
    """Return whether torch-npu and CANN are here and fit, what was found, and what to do."""
    torch, npu = version("torch"), version("torch-npu")
    if npu is None:
        return Status.ABSENT, "but no torch-npu", INSTALL
    if torch is None or minor(npu) != minor(torch):
        fault = f"torch-npu {npu} is built for PyTorch {minor(npu)}, not for {torch}"
        return Status.BROKEN, fault, INSTALL
    folder = find_cann(environment)
    if folder is None:
        fault = f"torch-npu {npu}, but no {LIBRARY} in a folder of LD_LIBRARY_PATH"
        return Status.BROKEN, fault, SET_UP
    return Status.AVAILABLE, f"torch-npu {npu}, CANN in {folder}", ""


def find_cann(environment: Mapping[str, str]) -> Path | None:
    """Return the folder that CANN's libraries would be loaded from, or None."""
    words = environment.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    folders = (Path(word) for word in words if word)
    return next((folder for folder in folders if (folder / LIBRARY).is_file()), None)


def find_numbers(root: Path) -> list[int]:
    """Return the numbers of the NPUs that the driver shows."""
    names = (DEVICE.fullmatch(path.name) for path in root.glob("dev/davinci*"))
    return sorted(int(name.group(1)) for name in names if name)


def visible(numbers: list[int], listed: str | None) -> list[int]:
    """Return the NPUs that CANN will show, in its order: all, or those of the list."""
    if listed is None:
        return numbers
    words = [word.strip() for word in listed.split(",")]
    return [int(word) for word in words if word.isdecimal() and int(word) in numbers]


def minor(version: str) -> str:
    """Return major and minor version."""
    return ".".join(version.split(".")[:2])


def findings() -> list[Finding]:
    """Return a line for the doctor on each of torch-npu and CANN."""
    npu, folder = installed_version("torch-npu"), find_cann(os.environ)
    return [
        Finding(
            subject="torch-npu",
            is_ok=npu is not None,
            text=npu or "not installed",
            remedy="" if npu else INSTALL,
        ),
        Finding(
            subject="CANN",
            is_ok=folder is not None,
            text=str(folder) if folder else f"no {LIBRARY} in a folder of LD_LIBRARY_PATH",
            remedy="" if folder else SET_UP,
        ),
    ]

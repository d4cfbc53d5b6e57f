"""Are there TPU chips, and is there a runtime for them? Read from the PCI bus and package metadata.

Where there is no chip, torch-xla's own CPU device can still be asked for: for trying things out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from headstock.plugins.probe import Probe, ProbedDevice, Status

SCORE = 100
GOOGLE = "0x1ae0"
CHIPS = {
    "0x0027": "v3",  # v2 shares the id
    "0x005e": "v4",
    "0x0062": "v5p",
    "0x0063": "v5e",
    "0x006f": "v6e",
    "0x0076": "v7x",
}
"""PCI device ids of the chips, by generation."""

INSTALL = "pip install 'headstock[tpu]'"

Version = Callable[[str], str | None]


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def probe(root: Path = Path("/"), version: Version = installed_version) -> Probe:
    """Look at the machine whose file system is at ``root``.

    Args:
        root: Of the file system.
        version: Returns an installed package's version; None: it is not installed.
    """
    chips = find_chips(root)
    runtime, fault = find_runtime(version)
    devices = tuple(
        ProbedDevice(index=index, name=f"TPU {chip}", arch=chip) for index, chip in enumerate(chips)
    )
    if not chips:
        return _without_chips(runtime, fault)
    found = f"{len(chips)} x TPU {chips[0]}"
    if runtime is None:
        status = Status.BROKEN if fault else Status.ABSENT
        reason = f"{found}, {fault or 'but neither torch-xla nor torch-tpu'}"
        return Probe(status=status, reason=reason, remedy=INSTALL, score=SCORE, devices=devices)
    if not [*root.glob("dev/accel*"), *root.glob("dev/vfio/[0-9]*")]:
        return Probe(
            status=Status.BROKEN,
            reason=f"{found}, with neither /dev/accel* nor /dev/vfio/*",
            remedy="Give this machine or container the TPU's device files.",
            score=SCORE,
            devices=devices,
        )
    return Probe(
        status=Status.AVAILABLE, reason=f"{found}, {runtime}", score=SCORE, devices=devices
    )


def find_runtime(version: Version) -> tuple[str | None, str]:
    """Return the runtime that fits the installed PyTorch, or why there is none, "" if none is here.

    torch-xla does not say which PyTorch it was built for: it is that of its own minor version.
    """
    torch, torchtpu, xla = version("torch"), version("torch-tpu"), version("torch-xla")
    if xla is not None and _minor(xla) == _minor(torch or ""):
        return f"torch-xla {xla}", ""
    if torchtpu is not None:
        return f"torch-tpu {torchtpu}", ""
    if xla is not None:
        return None, f"torch-xla {xla} is built for PyTorch {_minor(xla)}, not for {torch}"
    return None, ""


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _without_chips(runtime: str | None, fault: str) -> Probe:
    """Answer for a machine without a TPU; torch-xla brings a CPU device, to be asked for."""
    absent = "no TPU on the PCI bus"
    if runtime is None or not runtime.startswith("torch-xla"):
        reason = f"{absent}; {fault}" if fault else absent
        return Probe(status=Status.ABSENT, reason=reason, score=SCORE)
    return Probe(
        status=Status.AVAILABLE,
        reason=f"{absent}; {runtime} has a CPU device: --backend-option pjrt=cpu",
        devices=(ProbedDevice(index=0, name="PJRT CPU", arch="cpu", is_host=True),),
        is_default=False,
    )


def find_chips(root: Path) -> list[str]:
    """Return the generation of every TPU chip, in bus order."""
    chips: list[str] = []
    for device in sorted(root.glob("sys/bus/pci/devices/*")):
        try:
            vendor = (device / "vendor").read_text().strip()
            chip = CHIPS.get((device / "device").read_text().strip())
        except OSError:
            continue
        if vendor == GOOGLE and chip is not None:
            chips.append(chip)
    return chips

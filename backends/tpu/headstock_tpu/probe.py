"""Are there TPU chips? Read from the PCI bus. Probe only: nothing serves yet."""

from __future__ import annotations

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


def probe(root: Path = Path("/")) -> Probe:
    """Look at the machine whose file system is at ``root``. Never AVAILABLE."""
    chips = find_chips(root)
    if not chips:
        return Probe(status=Status.ABSENT, reason="no TPU on the PCI bus", score=SCORE)
    nodes = [*root.glob("dev/accel*"), *root.glob("dev/vfio/[0-9]*")]
    how = "" if nodes else ", with neither /dev/accel* nor /dev/vfio/*"
    return Probe(
        status=Status.ABSENT,
        reason=f"probe only: {len(chips)} x TPU {chips[0]} found{how}, no kernels yet",
        remedy="Serve with another backend meanwhile.",
        score=SCORE,
        devices=tuple(
            ProbedDevice(index=index, name=f"TPU {chip}", arch=chip)
            for index, chip in enumerate(chips)
        ),
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

"""Are there AMD GPUs? Read from the kernel driver's topology. Probe only: nothing serves yet."""

from __future__ import annotations

from pathlib import Path

from headstock.plugins.probe import Probe, ProbedDevice, Status

SCORE = 100
TOPOLOGY = "sys/class/kfd/kfd/topology/nodes"


def probe(root: Path = Path("/")) -> Probe:
    """Look at the machine whose file system is at ``root``. Never AVAILABLE."""
    if not (root / "dev/kfd").exists():
        return Probe(status=Status.ABSENT, reason="no /dev/kfd", score=SCORE)
    devices = read_topology(root / TOPOLOGY)
    if not devices:
        return Probe(status=Status.ABSENT, reason="/dev/kfd has no GPU", score=SCORE)
    return Probe(
        status=Status.ABSENT,
        reason=f"probe only: {len(devices)} x {devices[0].arch} found, no kernels yet",
        remedy="Serve with another backend meanwhile.",
        score=SCORE,
        devices=devices,
    )


def read_topology(nodes: Path) -> tuple[ProbedDevice, ...]:
    """Return the GPU nodes under ``nodes``, in the driver's order."""
    devices: list[ProbedDevice] = []
    for node in sorted(nodes.glob("*"), key=lambda path: int(path.name)):
        properties = _read_numbers(node / "properties")
        version = properties.get("gfx_target_version", 0)
        if not version:  # a processor
            continue
        banks = [_read_numbers(bank) for bank in sorted(node.glob("mem_banks/*/properties"))]
        arch = gfx_name(version)
        devices.append(
            ProbedDevice(
                index=len(devices),
                name=_read_name(node / "name") or arch,
                arch=arch,
                memory_bytes=sum(bank.get("size_in_bytes", 0) for bank in banks) or None,
            )
        )
    return tuple(devices)


def gfx_name(version: int) -> str:
    """Return the compiler's name: 90402 is gfx942, 90010 is gfx90a."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"


def _read_numbers(path: Path) -> dict[str, int]:
    """Parse lines of "name number"; unreadable files, as in a container, are empty."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdecimal()}


def _read_name(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

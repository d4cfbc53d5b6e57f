"""Are there AMD GPUs, and a PyTorch built for them? Imports neither torch nor HIP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from headstock.plugins.installed import TorchBuild, torch_build
from headstock.plugins.probe import Probe, ProbedDevice, Status

SCORE = 100
OLDEST_TORCH = (2, 8)
VISIBLE = "HIP_VISIBLE_DEVICES"
TOPOLOGY = "sys/class/kfd/kfd/topology/nodes"
INSTALL = "Install PyTorch's build for ROCm, then headstock[rocm]."


def probe() -> Probe:
    """Look at this machine."""
    return judge(Path("/"), torch_build(), os.environ)


def judge(root: Path, torch: TorchBuild | None, environment: Mapping[str, str]) -> Probe:
    """Say whether ``torch`` can use the GPUs of the machine whose file system is at ``root``."""
    if not (root / "dev/kfd").exists():
        return Probe(status=Status.ABSENT, reason="no /dev/kfd", score=SCORE)
    found = read_topology(root / TOPOLOGY)
    devices = visible(found, environment.get(VISIBLE))
    if not devices:
        hidden = f"{VISIBLE} hides {len(found)} GPUs" if found else "/dev/kfd has no GPU"
        return Probe(status=Status.ABSENT, reason=hidden, score=SCORE)
    what = f"{len(devices)} x {devices[0].name} ({devices[0].arch})"
    if torch is None:
        return _unusable(devices, f"{what} found, and no torch")
    toolkit = torch.toolkits.get("hip")
    if toolkit is None:
        return _unusable(devices, f"{what} found, and torch {torch.version} is built without ROCm")
    if torch.release < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        return _unusable(devices, f"{what} found; torch {torch.version} is older than {needed}")
    return Probe(
        status=Status.AVAILABLE,
        reason=f"{what}, torch {torch.version}, ROCm {toolkit}",
        score=SCORE,
        devices=devices,
    )


def visible(devices: tuple[ProbedDevice, ...], listed: str | None) -> tuple[ProbedDevice, ...]:
    """Return the GPUs that HIP will show, in its order: those listed, up to the first unknown."""
    if listed is None:
        return devices
    by_word = {str(device.index): device for device in devices}
    words = (word.strip() for word in listed.split(","))
    shown = list(takewhile(lambda device: device is not None, map(by_word.get, words)))
    return tuple(replace(device, index=at) for at, device in enumerate(filter(None, shown)))


def _unusable(devices: tuple[ProbedDevice, ...], reason: str) -> Probe:
    return Probe(status=Status.ABSENT, reason=reason, remedy=INSTALL, score=SCORE, devices=devices)


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

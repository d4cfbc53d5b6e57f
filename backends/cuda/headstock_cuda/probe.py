"""Are there NVIDIA GPUs, a driver, and a PyTorch built for them? Imports neither torch nor CUDA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from headstock.plugins.installed import TorchBuild, torch_build
from headstock.plugins.probe import Probe, ProbedDevice, Status
from headstock_cuda.nvml import Driver, Gpu, NvmlError, load_library, read_driver

SCORE = 100
OLDEST_TORCH = (2, 11)
OLDEST_CAPABILITY = (7, 5)
INSTALL = "pip uninstall -y torch && pip install 'headstock[cuda]'"
VISIBLE = "CUDA_VISIBLE_DEVICES"


def probe() -> Probe:
    """Look at this machine."""
    library = load_library()
    if library is None:
        return without_library(Path("/"))
    try:
        driver = read_driver(library)
    except NvmlError as error:
        return _broken(
            f"the driver does not answer ({error})",
            "Check `nvidia-smi`; after a driver update, reboot or restart the container.",
        )
    return judge(driver, torch_build(), os.environ)


def without_library(root: Path) -> Probe:
    """Tell a machine without a GPU from one whose driver library is missing."""
    has_driver = (root / "proc/driver/nvidia/version").exists()
    if has_driver or (root / "dev/nvidiactl").exists():
        return _broken(
            "an NVIDIA driver is loaded, but libnvidia-ml.so.1 is not found",
            "In a container, use the NVIDIA runtime with the `utility` and `compute` capabilities.",
        )
    return Probe(status=Status.ABSENT, reason="no NVIDIA driver", score=SCORE)


def judge(driver: Driver, torch: TorchBuild | None, environment: Mapping[str, str]) -> Probe:
    """Say whether ``torch`` can use the GPUs that ``driver`` has."""
    gpus = visible(driver.gpus, environment.get(VISIBLE))
    if not gpus:
        hidden = f"{VISIBLE} hides {len(driver.gpus)} GPUs" if driver.gpus else "no GPU"
        return Probe(status=Status.ABSENT, reason=hidden, score=SCORE)
    new = [gpu for gpu in gpus if gpu.capability >= OLDEST_CAPABILITY]
    what = _describe(gpus)
    if not new:
        reason = f"{what} is older than compute capability {_dotted(OLDEST_CAPABILITY)}"
        return Probe(status=Status.ABSENT, reason=reason, score=SCORE)
    if torch is None:
        return _not_installed(f"{what} found, and no torch")
    built_for = torch.toolkits.get("cuda")
    if built_for is None:
        return _not_installed(f"{what} found, and torch {torch.version} is built without CUDA")
    if torch.release < OLDEST_TORCH:
        needed = _dotted(OLDEST_TORCH)
        return _broken(
            f"{what} found; torch {torch.version} is older than {needed}",
            f"pip install --upgrade 'torch>={needed}'",
        )
    if driver.cuda[0] < int(built_for.split(".")[0]):
        return _broken(
            f"driver {driver.version} supports CUDA {_dotted(driver.cuda)},"
            f" torch {torch.version} needs {built_for}",
            "Update the driver, or install a torch built for that CUDA.",
        )
    return Probe(
        status=Status.AVAILABLE,
        reason=f"{what}, driver {driver.version}, torch {torch.version}",
        score=SCORE,
        devices=tuple(_device(index, gpu) for index, gpu in enumerate(new)),
    )


def visible(gpus: tuple[Gpu, ...], listed: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA will show, in its order: those listed, up to the first unknown."""
    if listed is None:
        return gpus
    shown: list[Gpu] = []
    for word in (part.strip() for part in listed.split(",")):
        found = [g for g in gpus if word and (word == str(g.index) or g.uuid.startswith(word))]
        if len(found) != 1:
            break
        shown.append(found[0])
    return tuple(shown)


def _device(index: int, gpu: Gpu) -> ProbedDevice:
    major, minor = gpu.capability
    return ProbedDevice(
        index=index, name=gpu.name, arch=f"sm_{major}{minor}", memory_bytes=gpu.memory_bytes
    )


def _describe(gpus: tuple[Gpu, ...]) -> str:
    return f"{len(gpus)} x {gpus[0].name}"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _not_installed(reason: str) -> Probe:
    return Probe(status=Status.ABSENT, reason=reason, remedy=INSTALL, score=SCORE)


def _broken(reason: str, remedy: str) -> Probe:
    return Probe(status=Status.BROKEN, reason=reason, remedy=remedy, score=SCORE)

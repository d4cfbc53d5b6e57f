"""Which of AMD's optional libraries are installed. None is needed, and none is used yet."""

from __future__ import annotations

from collections.abc import Iterator

from headstock.plugins.hooks import Finding
from headstock.plugins.installed import is_installed, torch_build

OPTIONAL = {"aiter": "AITER"}
"""Modules, and what people call them."""


def findings() -> Iterator[Finding]:
    """Yield a line for the doctor for each."""
    build = torch_build()
    toolkit = None if build is None else build.toolkits.get("hip")
    yield Finding(subject="PyTorch", is_ok=toolkit is not None, text=f"built for ROCm {toolkit}")
    for module, name in OPTIONAL.items():
        found = "installed; its kernels are not used" if is_installed(module) else "not installed"
        yield Finding(subject=name, is_ok=True, text=found)

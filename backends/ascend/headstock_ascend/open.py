"""Opens an NPU through torch-npu, which is imported here and nowhere before."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from headstock.errors import ConfigError, UnsupportedError
from headstock_ascend.device import AscendDevice

INSTALL = "pip install 'headstock[ascend]', and source set_env.sh of the CANN toolkit."


def open_device(index: int) -> AscendDevice:
    """Open NPU ``index``.

    Raises:
        ConfigError: torch-npu does not import, or there is no such NPU.
        UnsupportedError: It sees no NPU.
    """
    npu = import_npu()
    if not npu.is_available():
        raise UnsupportedError(
            "torch-npu is installed and sees no NPU.",
            remedy="Give this machine or container its NPU, or use another --backend.",
        )
    if index >= npu.device_count():
        raise ConfigError(
            f"device_index is {index}; torch-npu sees {npu.device_count()} NPUs.",
            remedy="Lower --device-index.",
        )
    chip = str(npu.get_device_name(index))
    return AscendDevice(npu, torch.device("npu", index), chip, frozenset({"ascend", chip.lower()}))


def import_npu() -> Any:
    """Return ``torch.npu``.

    Raises:
        ConfigError: torch-npu, or a library of CANN that it needs, cannot be loaded.
    """
    try:
        import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(f"torch-npu cannot be imported: {error}.", remedy=INSTALL) from error
    return getattr(torch, "npu")  # noqa: B009 - torch-npu puts it there

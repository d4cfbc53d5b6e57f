"""Opens a device with the runtime that fits what is installed and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from headstock.errors import ConfigError
from headstock_tpu.device import TpuDevice
from headstock_tpu.options import TpuOptions, read_options
from headstock_tpu.probe import find_chips, find_runtime, installed_version
from headstock_tpu.runtime import Runtime


def open_device(index: int, given: Mapping[str, str], root: Path = Path("/")) -> TpuDevice:
    """Open a device.

    Args:
        index: Of the chip.
        given: The options, unchecked.
        root: Of the file system in which chips are looked for.

    Raises:
        ConfigError: An option is wrong; there is no chip, or no runtime as asked.
    """
    options = read_options(given)
    chips = find_chips(root)
    if options.pjrt == "tpu" and not chips:
        raise ConfigError(
            "There is no TPU on the PCI bus.",
            remedy="Drop --backend tpu; or try it out on torch-xla's CPU device, which is slow:"
            " --backend-option pjrt=cpu.",
        )
    if options.pjrt == "cpu":
        return TpuDevice(_xla(index, options), frozenset({"pjrt_cpu"}))
    if index >= len(chips):
        raise ConfigError(
            f"device_index is {index}; there are {len(chips)} chips.",
            remedy="Lower --device-index.",
        )
    runtime = _runtime(index, options)
    own = {"pallas"} if runtime.takes_kernels and find_spec("jax") is not None else set[str]()
    return TpuDevice(runtime, frozenset({"tpu", chips[index]} | own))


def _runtime(index: int, options: TpuOptions) -> Runtime:
    if options.runtime == "xla":
        return _xla(index, options)
    found, fault = find_runtime(installed_version)
    if options.runtime == "torchtpu" or (found or "").startswith("torch-tpu"):
        from headstock_tpu.torchtpu import TorchTpuRuntime

        return TorchTpuRuntime(index)
    if found is None:
        raise ConfigError(
            f"No runtime for TPUs can be used: {fault or 'none is installed'}.",
            remedy="pip install 'headstock[tpu]'.",
        )
    return _xla(index, options)


def _xla(index: int, options: TpuOptions) -> Runtime:
    """Import torch-xla, which takes some 30 s the first time on a machine."""
    try:
        from headstock_tpu.xla import XlaRuntime
    except ImportError as error:
        raise ConfigError(
            f"torch-xla cannot be imported: {error}.",
            remedy="pip install 'headstock[tpu]': it fits PyTorch of its own minor version alone.",
        ) from error
    return XlaRuntime(index, options)

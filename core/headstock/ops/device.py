"""What an op's implementation may know of the device it is built for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class OpDevice(Protocol):
    """The part of a device that ops see; ``headstock.plugins.Device`` is one."""

    @property
    def torch_device(self) -> torch.device:
        """Where tensors live."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """What the hardware can do, in the backend's own words, such as ``avx2`` or ``sm_90``."""
        ...

    @property
    def num_threads(self) -> int:
        """Host threads that kernels may use; 1 where kernels run elsewhere."""
        ...

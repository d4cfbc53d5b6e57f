"""Small arrays that only some steps send to the device, beside the step's own copy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from headstock.plugins.device import Device


class Mail:
    """Sends arrays without waiting, and holds their host memory until a step takes it over."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._sent: list[Tensor] = []

    def send(self, values: np.ndarray) -> Tensor:
        """Queue the copy of ``values``; the device's tensor has the same shape and dtype."""
        host = self._device.host_buffer(values.shape, torch.from_numpy(values).dtype)
        host.numpy()[...] = values
        self._sent.append(host)
        return host.to(self._device.torch_device, non_blocking=True)

    def take(self) -> list[Tensor]:
        """Hand over what must live until all that is queued now is over."""
        sent, self._sent = self._sent, []
        return sent

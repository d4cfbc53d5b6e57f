"""The device: the host's processor, with decode steps captured."""

from __future__ import annotations

from collections.abc import Callable

import torch

from headstock.errors import ConfigError
from headstock.plugins.device import GraphKey
from headstock.plugins.host import HostDevice

ROWS = (1, 2, 4, 8, 16, 32)


class DecodePolicy:
    """Captures decode steps (one token a row), padded to the next of ``ROWS``."""

    def bucket(self, num_tokens: int, num_rows: int, is_uniform: bool) -> tuple[int, int] | None:
        rows = next((size for size in ROWS if size >= num_rows), None)
        if rows is None or not is_uniform or num_tokens != num_rows:
            return None  # run it eagerly, at its own size
        return rows, rows

    def warm_up(self, max_tokens: int, max_rows: int) -> list[tuple[int, int, bool]]:
        return [(rows, rows, True) for rows in ROWS if rows <= max_rows]


class Recorded:
    """A captured step. Yours replays what the runtime recorded; this one runs it again."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step

    def replay(self) -> None:
        with torch.inference_mode():
            self._step()


class AcmeDevice(HostDevice):
    """Memory, transfers and graphs of an acme device."""

    def __init__(self, *, num_threads: int = 0) -> None:
        super().__init__(num_threads=num_threads)
        self.capabilities = frozenset({"acme-v1"})
        self.graph_policy = DecodePolicy()

    @property
    def name(self) -> str:
        return f"acme ({super().name})"

    def capture(self, key: GraphKey, step: Callable[[], None]) -> Recorded:
        graph = Recorded(step)
        graph.replay()
        return graph


def open_device(index: int, num_threads: int) -> AcmeDevice:
    if index != 0:
        raise ConfigError(
            f"device_index is {index}; the acme backend has device 0 only.",
            remedy="Drop --device-index.",
        )
    return AcmeDevice(num_threads=num_threads)

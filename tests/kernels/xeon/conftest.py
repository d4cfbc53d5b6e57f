from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from headstock.ops.canonical import quantize_int4, quantize_int8
from headstock.ops.linear import DENSE, INT4_GROUP, INT8_GROUP
from headstock_xeon import build
from headstock_xeon.device import XeonDevice
from headstock_xeon.native import Library, load, why_missing


@pytest.fixture(scope="session")
def library() -> Library:
    if not build.LIBRARY.exists():
        pytest.skip(f"no native kernels: {why_missing()}")
    return load()


@pytest.fixture(scope="session")
def open_device(library: Library) -> Iterator[Callable[..., XeonDevice]]:
    """Return a function that opens a device with so many threads, one of each for the session."""
    opened: dict[int, XeonDevice] = {}

    def make(num_threads: int = 2) -> XeonDevice:
        if num_threads not in opened:
            opened[num_threads] = XeonDevice("test", library, num_threads=num_threads)
        return opened[num_threads]

    yield make
    for device in opened.values():
        device.close()


@pytest.fixture
def device(open_device: Callable[..., XeonDevice]) -> XeonDevice:
    return open_device(2)


@pytest.fixture(scope="session")
def make_part() -> Callable[..., tuple[str, int, dict[str, Tensor]]]:
    """Return a function that draws a canonical weight: (layout, group size, parts)."""
    return draw_part


def draw_part(kind: str, size_out: int, size_in: int) -> tuple[str, int, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(size_out, size_in, generator=generator) * size_in**-0.5
    name, _, group = kind.partition(" of ")
    group_size = int(group or 32)
    if name == "int8":
        return INT8_GROUP, group_size, quantize_int8(weight_OI, group_size)
    if name == "int4":
        return INT4_GROUP, group_size, quantize_int4(weight_OI, group_size)
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    return DENSE, 0, {"weight": weight_OI.to(dtype)}


@pytest.fixture
def with_outliers():
    """Return a function that draws activations of which each row has an outlier in some group."""

    def draw(rows: int, size_in: int) -> Tensor:
        x_MI = torch.randn(rows, size_in)
        num_groups = size_in // 32
        for row in range(rows):
            # The stride has no factor in common with the groups: every one comes up, and of 70 the
            # seventh row's is past the 64 that a word of the mask has bits for.
            x_MI[row, row * 11 % num_groups * 32 + row % 32] = 100.0 + row
        return x_MI

    return draw

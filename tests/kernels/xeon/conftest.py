from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from headstock.ops.canonical import quantize_int4, quantize_int8
from headstock.ops.linear import DENSE, INT4_GROUP, INT8_GROUP
from headstock_xeon import build
from headstock_xeon.device import XeonDevice
from headstock_xeon.native import FEATURES, Library, load, why_missing


def sets_here() -> dict[str, int]:
    """Return this processor's instruction sets, each with the bits of those before it too."""
    found = load().features if build.LIBRARY.exists() else 0
    names = list(FEATURES)
    bits = {name: sum(FEATURES[n] for n in names[: at + 1]) for at, name in enumerate(names)}
    return {name: bits[name] & found for name in names if FEATURES[name] & found}


SETS = sets_here()
"""What kernels are tested on in turn."""


@pytest.fixture(scope="session")
def library() -> Library:
    if not build.LIBRARY.exists():
        pytest.skip(f"no native kernels: {why_missing()}")
    return load()


@pytest.fixture(scope="session")
def instruction_set(request: pytest.FixtureRequest, library: Library) -> int:
    """Bits of the sets to use: all of this machine's, unless a test names one as parameter."""
    name = getattr(request, "param", None)
    return library.features if name is None else SETS[name]


@pytest.fixture(scope="session")
def open_device(library: Library, instruction_set: int) -> Iterator[Callable[..., XeonDevice]]:
    """Return a function that opens a device with so many threads, one of each for the session."""
    opened: dict[int, XeonDevice] = {}

    def make(num_threads: int = 2) -> XeonDevice:
        if num_threads not in opened:
            opened[num_threads] = XeonDevice(
                "test", library, num_threads=num_threads, features=instruction_set
            )
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


def rounding_bound(kind: str, x_MI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return how far a product may be from the true one, by what is rounded. float64 [M, O]

    Where a processor multiplies pairs of bfloat16 numbers, an activation is the sum of two of them:
    each keeps 8 bits, so a product is off by 2**-16 of itself. Int8 weights have scales of float16,
    whose 11 bits are off by 2**-11 at most, all products of a group alike, and meet activations of
    16 bits, off by half a step of the largest. A sum of I terms in float32 is off by I * 2**-24 of
    their magnitudes.
    """
    x_MI, weight_OI = x_MI.double(), weight_OI.double()
    magnitudes_MO = x_MI.abs() @ weight_OI.abs().T
    relative = {"bfloat16": 2**-16, "float32": 0.0, "int8": 2**-11}[kind]
    bound_MO = (relative + x_MI.shape[1] * 2**-24) * magnitudes_MO
    if kind == "int8":
        half_step_M1 = x_MI.abs().amax(1, keepdim=True) / 32767 / 2
        bound_MO += half_step_M1 * weight_OI.abs().sum(1)
    return bound_MO


@pytest.fixture
def with_outliers():
    """Return a function that draws activations of which each row has an outlier in some group."""

    def draw(rows: int, size_in: int) -> Tensor:
        x_MI = torch.randn(rows, size_in, generator=torch.Generator().manual_seed(2))
        num_groups = size_in // 32
        for row in range(rows):
            # The stride has no factor in common with the groups: every one comes up, and of 70 the
            # seventh row's is past the 64 that a word of the mask has bits for.
            x_MI[row, row * 11 % num_groups * 32 + row % 32] = 100.0 + row
        return x_MI

    return draw

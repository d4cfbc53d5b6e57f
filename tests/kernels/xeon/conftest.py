from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

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

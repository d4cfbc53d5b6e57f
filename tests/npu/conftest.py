"""The ascend backend over made-up kernels, found as if it were installed."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headstock.assemble.local import run_greedy
from headstock.testing.target import expose

HERE = Path(__file__).parent
SETTINGS: dict[str, Any] = {"dtype": "float32", "cache_tokens": 2048, "max_running_requests": 4}
Ids = list[list[int]]


@pytest.fixture(scope="module")
def npu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder by which the backend is found; other modules' tests do not see it."""
    folder = tmp_path_factory.mktemp("installed")
    known = list(sys.path)
    expose("npu", "headstock_npu_on_cpu", folder)
    yield folder
    sys.path[:] = known


@pytest.fixture(scope="module")
def search_path(npu: Path) -> str:
    """Return what PYTHONPATH must be for another process to find it."""
    return os.pathsep.join([str(npu), str(HERE)])


@pytest.fixture(scope="module")
def agree(npu: Path) -> Callable[..., None]:
    """Return a function that compares ids with those of the reference backend."""

    def compare(config: dict[str, Any], prompts: Ids, num_tokens: int = 8, **settings: Any) -> None:
        alone = {"max_running_requests": 1, "prefix_cache": False, "graphs": False}
        wanted = run_greedy(
            config, prompts, num_tokens, **(SETTINGS | alone | {"backend": "reference"})
        )
        got = run_greedy(config, prompts, num_tokens, **(SETTINGS | {"backend": "npu"} | settings))
        assert got == wanted

    return compare


@pytest.fixture(scope="module")
def prompts() -> Ids:
    draw = random.Random(0)
    found = [[draw.randrange(3, 300) for _ in range(length)] for length in (1, 17, 130, 40)]
    return [*found, [7, 8, 9] * 12]

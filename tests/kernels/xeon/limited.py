"""A pytest plugin: ``-p tests.kernels.xeon.limited --xeon-set NAME`` uses no newer instructions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headstock_xeon import native
from tests.kernels.xeon.conftest import SETS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--xeon-set", choices=list(SETS))


def pytest_configure(config: pytest.Config) -> None:
    limit(config.getoption("--xeon-set"))


def limit(name: str) -> None:
    """Let this process open the processor as one that has nothing newer than ``name``.

    What is newest is taken, not what is quickest: it is what is to be tried.
    """
    load = native.load
    native.MEASURED = 0
    native.load = lambda: replace(load(), features=SETS[name])

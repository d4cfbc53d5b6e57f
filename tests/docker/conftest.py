"""The default model, for the tests that serve it."""

from __future__ import annotations

import pytest

from headstock.checkpoint.pull import cached_path, find


@pytest.fixture(scope="session")
def model() -> str:
    """The default model's file, which `make unit` has pulled."""
    path = cached_path(find("smollm2"))
    if not path.is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    return str(path)

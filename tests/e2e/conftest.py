"""The default model, and one server of it for the tests that leave it as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from headstock.checkpoint.pull import cached_path, find
from tests.e2e.served import SMALL, Served, served, wait_for
from tests.e2e.tiny import CONFIG


@pytest.fixture(scope="session")
def model() -> str:
    """The default model's file, which `make unit` has pulled."""
    path = cached_path(find("smollm2"))
    if not path.is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    return str(path)


@pytest.fixture(scope="session")
def the_server(model: str) -> Iterator[Served]:
    with served(model, *SMALL) as server:
        yield server


@pytest.fixture
def server(the_server: Served) -> Served:
    """A ready server, whatever the test before did to it."""
    wait_for(the_server.is_ready, 60, "readiness")
    return the_server


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model's folder: a configuration, no weights."""
    path = tmp_path_factory.mktemp("tiny")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return str(path)

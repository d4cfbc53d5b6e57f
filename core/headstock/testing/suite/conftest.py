"""What the suite's tests share: the backend under test, found once and opened once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headstock import __version__
from headstock.plugins.loader import Plugins, discover
from headstock.plugins.probe import Status
from headstock.testing.target import Target, expose, open_target, probe


@pytest.fixture(scope="session")
def backend(pytestconfig: pytest.Config) -> str:
    """Return the name of the backend under test."""
    name = pytestconfig.getoption("--headstock-backend")
    if not name:
        pytest.skip("no backend named: pass --headstock-backend=NAME")
    return name


@pytest.fixture(scope="session")
def plugins(
    pytestconfig: pytest.Config, backend: str, tmp_path_factory: pytest.TempPathFactory
) -> Plugins:
    """Return what discovery found, with ``--headstock-plugin`` among it."""
    module = pytestconfig.getoption("--headstock-plugin")
    if module:
        expose(backend, module, tmp_path_factory.mktemp("installed"))
    return discover(backend=backend)


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config, plugins: Plugins, backend: str) -> Iterator[Target]:
    """Open the backend; where it cannot run, skip with its reason."""
    answer = probe(plugins, backend)
    if answer.status is not Status.AVAILABLE:
        pytest.skip(f"{backend} is {answer.status.value}: {answer.reason}")
    index: int = pytestconfig.getoption("--headstock-device") or 0
    options: list[str] = pytestconfig.getoption("--headstock-option") or []
    opened = open_target(plugins, backend, index, options)
    report = pytestconfig.pluginmanager.get_plugin("headstock-report")
    if report is not None:
        record = opened.chosen.record
        report.facts.update(
            headstock=__version__,
            dist=record.dist,
            version=record.version,
            device=opened.device.name,
            capabilities=sorted(opened.device.capabilities),
        )
    yield opened
    opened.device.close()

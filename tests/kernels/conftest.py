"""What the tests of ops share."""

from __future__ import annotations

import pytest

from headstock.ops.base import OpRegistry, Resolver
from headstock.plugins.host import HostDevice


@pytest.fixture(scope="session")
def host() -> HostDevice:
    return HostDevice()


@pytest.fixture(scope="session")
def references(host: HostDevice) -> Resolver:
    """Return a resolver that knows nothing but references."""
    return Resolver(OpRegistry(), host)

"""A server over an engine that echoes its prompt, as the language's back ends see it."""

import pytest

from headstock.frontend import HeadstockServer, OpenAI
from tests.server.conftest import Served


@pytest.fixture(scope="session")
def served():
    with Served() as server:
        yield server


@pytest.fixture(scope="session")
def headstock_server(served):
    return HeadstockServer(served.url)


@pytest.fixture(scope="session")
def openai_endpoint(served):
    return OpenAI("echo", base_url=served.url + "/v1")


@pytest.fixture(params=["programs", "openai"])
def backend(request, headstock_server, openai_endpoint):
    return headstock_server if request.param == "programs" else openai_endpoint

"""SageMaker's routes, and those of other servers that say what to use instead."""

import pytest

from headstock.config.schema import ServerSettings
from headstock.server.http.routes_absent import _ABSENT
from tests.server.conftest import Served


def test_sagemaker_asks_for_chats(served):
    assert served.get("/ping").status_code == 200
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    answer = served.post("/invocations", body)
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    streamed = served.post("/invocations", {**body, "stream": True})
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_the_probe_of_sagemaker_needs_no_key_and_the_rest_does():
    with Served(settings=ServerSettings(port=0, api_keys=["a-long-enough-key"])) as locked:
        assert locked.get("/ping").status_code == 200
        for path in ("/invocations", "/v1/responses", "/v1/messages", "/api/chat", "/rerank"):
            assert locked.post(path, {}).status_code == 401


@pytest.mark.parametrize("path", _ABSENT)
def test_absent_routes_say_what_to_use_instead(served, path):
    answer = served.post(path, {"input": "x"})
    assert answer.status_code == 501
    error = answer.json()["error"]
    message = error if path.startswith("/api/") else error["message"]
    assert message.startswith("This version has no ")
    assert message.count(".") >= 2

"""Quotas of keys and bounds of calls, as clients see them."""

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.wire.steps import PageGroup, RunnerLimits
from tests.server.conftest import Served

KEYS = [
    "slow:user:key-of-slow requests_per_minute=2",
    "few:user:key-of-few-0 concurrent=3",
    "terse:user:key-of-terse tokens_per_minute=40 share=5",
    "free:user:key-of-free-0",
]


@pytest.fixture(scope="module")
def limited():
    settings = ServerSettings(port=0, api_keys=KEYS)
    with Served(settings=settings) as server:
        yield server


def complete(server, key, **fields):
    body = {"prompt": "x", "max_tokens": 2, **fields}
    headers = {"Authorization": f"Bearer {key}"}
    return server.post("/v1/completions", body, headers=headers)


def test_requests_past_a_keys_quota_are_told_when_to_come_back(limited):
    assert [complete(limited, "key-of-slow").status_code for _ in range(2)] == [200, 200]
    refused = complete(limited, "key-of-slow")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert "2 requests a minute" in refused.json()["error"]["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert complete(limited, "key-of-free-0").status_code == 200, "others are not concerned"


def test_each_completion_counts(limited):
    refused = complete(limited, "key-of-few-0", n=4)
    assert refused.status_code == 429
    assert "3 completions at once" in refused.json()["error"]["message"]
    assert complete(limited, "key-of-few-0", n=3).status_code == 200
    assert complete(limited, "key-of-few-0", n=3).status_code == 200, "they are given back"


def test_tokens_count_prompt_and_output(limited):
    assert complete(limited, "key-of-terse", max_tokens=100, ignore_eos=True).status_code == 200
    refused = complete(limited, "key-of-terse")
    assert refused.status_code == 429
    assert "40 tokens a minute" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) > 60


def test_the_engine_hears_whose_request_it_is_and_its_share(limited):
    complete(limited, "key-of-free-0")
    submits = [m for m in limited.engine.seen if type(m).__name__ == "Submit"]
    shares = {submit.payer.split()[0]: submit.share for submit in submits}
    assert shares["free"] == 1
    assert shares["terse"] == 5


def test_the_engine_hears_which_user_of_a_key_it_is(limited):
    def heard(**fields):
        complete(limited, "key-of-free-0", **fields)
        submits = [m for m in limited.engine.seen if type(m).__name__ == "Submit"]
        return submits[-1].user

    assert heard() == "127.0.0.1"
    assert heard(user="ann") == "ann"
    assert heard(user="ann", safety_identifier="bob") == "bob"
    assert heard(user="x" * 1000) == "x" * 128
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "user": "cid"}
    headers = {"Authorization": "Bearer key-of-free-0"}
    limited.post("/v1/chat/completions", chat, headers=headers)
    assert [m for m in limited.engine.seen if type(m).__name__ == "Submit"][-1].user == "cid"
    body = {"input": "x", "max_output_tokens": 1, "safety_identifier": "dan"}
    limited.post("/v1/responses", body, headers=headers)
    assert [m for m in limited.engine.seen if type(m).__name__ == "Submit"][-1].user == "dan"


def test_more_completions_than_there_are_places_is_the_callers_error():
    one_slot = RunnerLimits(1, 256, 512, 1000, 1, [PageGroup("full", 16, 1024, 100)])
    with Served(engine={"limits": one_slot}, max_live=31) as server:
        answer = complete(server, "none", prompt=["x"] * 33, n=64)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "too_many_completions"
        assert "asks for 2112 completions; the server has 32 places" in error["message"]
        assert complete(server, "none", prompt=["x"] * 4, n=8).status_code == 200


def test_without_keys_each_address_is_served_for_itself(served):
    for address in ("127.0.0.1", "127.0.0.2"):
        transport = httpx.HTTPTransport(local_address=address)
        with httpx.Client(transport=transport) as client:
            client.post(served.url + "/generate", json={"text": "x"}, timeout=20)
    submits = [m for m in served.engine.seen if type(m).__name__ == "Submit"]
    assert [submit.payer for submit in submits[-2:]] == ["at 127.0.0.1", "at 127.0.0.2"]

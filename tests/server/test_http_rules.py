"""What the RFCs ask of a server, byte by byte: offers, versions, HEAD, Allow, other origins."""

import json
import socket

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.errors import RequestError
from headstock.server.http.cors import Cors
from headstock.server.http.gate import Gate
from tests.server.conftest import Served

BODY = b'{"text":"abc","sampling_params":{"max_new_tokens":2}}'
OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "kept alive": b"Upgrade: TLS/1.0, foo\r\nConnection: keep-alive, upgrade\r\n",
}


def talk(served, *parts):
    """Send ``parts`` in a write each; return all that comes until the server closes."""
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        received = b""
        while more := connection.recv(65536):
            received += more
        return received


def post(offer, path, body=BODY, *, more=b"", version=b"1.1"):
    head = b"POST %b HTTP/%b\r\nHost: x\r\nContent-Type: application/json\r\n" % (path, version)
    return head + offer + more + b"Content-Length: %d\r\n\r\n" % len(body), body


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("is_apart", [False, True])
def test_an_offer_to_upgrade_is_ignored_and_the_connection_goes_on(served, offer, is_apart):
    parts = post(offer, b"/generate")
    last = b"".join(post(b"Connection: close\r\n", b"/generate"))
    received = talk(served, *(parts if is_apart else [b"".join(parts)]), last)
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.count(b'"text":"ab"') == 2
    assert b"HTTP/1.1 4" not in received


def test_an_offer_with_a_chunked_body_is_ignored(served):
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += OFFERS["h2c"] + b"Transfer-Encoding: chunked\r\n\r\n"
    half = len(BODY) // 2
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:half], BODY[half:])]
    last = b"".join(post(b"Connection: close\r\n", b"/generate"))
    received = talk(served, head, *chunks, b"0\r\n\r\n", last)
    assert received.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/completions", b"/tokenize"])
def test_an_offer_is_ignored_on_every_route(served, path):
    body = json.dumps(
        {"prompt": "a", "max_tokens": 1}
        if path != b"/v1/chat/completions"
        else {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    ).encode()
    whole = b"".join(post(OFFERS["h2c"], path, body))
    received = talk(served, whole, b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert received.count(b"HTTP/1.1 200 OK") == 2


def test_an_offer_does_not_get_past_the_limit_of_headers(served):
    flood = b"".join(b"x-%d: y\r\n" % at for at in range(200))
    received = talk(served, b"".join(post(OFFERS["h2c"], b"/generate", more=flood)))
    assert received.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("path", [b"/generate", b"/v1/completions", b"/v1/chat/completions"])
def test_a_stream_to_an_http_1_0_client_is_raw_and_ends_with_the_connection(served, path):
    body = json.dumps(
        {
            "text": "abc", "prompt": "abc", "messages": [{"role": "user", "content": "abc"}],
            "max_tokens": 2, "stream": True, "sampling_params": {"max_new_tokens": 2},
        }
    ).encode()  # fmt: skip
    received = talk(served, *post(b"Connection: keep-alive\r\n", path, body, version=b"1.0"))
    head, _, events = received.partition(b"\r\n\r\n")
    assert b" 200 OK" in head.split(b"\r\n")[0]
    assert b"transfer-encoding" not in head.lower()
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")


def test_a_whole_answer_to_an_http_1_0_client_has_its_length(served):
    head, _, body = talk(served, *post(b"", b"/generate", version=b"1.0")).partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head


@pytest.mark.parametrize("path", ["/live", "/ready", "/health", "/v1/models", "/metrics"])
def test_head_is_get_without_a_body(served, path):
    got = served.get(path)
    head = httpx.head(served.url + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # which differ from one look to the next
        assert head.headers["content-length"] == got.headers["content-length"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/v1/completions", "POST"),
        ("DELETE", "/generate", "POST, PUT"),
        ("POST", "/v1/models/echo", "GET, HEAD"),
        ("OPTIONS", "/flush_cache", "POST"),
        ("TRACE", "/health", "GET, HEAD"),
    ],
)
def test_a_405_says_what_is_allowed(served, method, path, allowed):
    answer = httpx.request(method, served.url + path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed


KEY = "one-key-of-many"
PREFLIGHT = {
    "origin": "http://localhost:3000",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


@pytest.fixture(scope="module", params=["http://localhost:3000", "*"])
def shared(request):
    settings = ServerSettings(port=0, api_keys=[KEY], cors_origin=[request.param])
    with Served(settings=settings) as server:
        yield server, request.param


def test_a_preflight_of_an_allowed_origin_needs_no_key(shared):
    server, allowed = shared
    answer = httpx.options(server.url + "/v1/chat/completions", headers=PREFLIGHT)
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == allowed
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert ("vary" in answer.headers) == (allowed != "*")


def test_answers_to_an_allowed_origin_say_so_errors_too(shared):
    server, allowed = shared
    headers = {"origin": PREFLIGHT["origin"]}
    assert server.get("/v1/models", headers=headers).status_code == 401
    for more in ({}, {"authorization": f"Bearer {KEY}"}):
        answer = server.get("/v1/models", headers={**headers, **more})
        assert answer.headers["access-control-allow-origin"] == allowed


def test_another_origin_is_told_no(shared):
    server, allowed = shared
    headers = {**PREFLIGHT, "origin": "http://evil.example"}
    answer = httpx.options(server.url + "/generate", headers=headers)
    assert answer.status_code == (204 if allowed == "*" else 403)
    assert ("access-control-allow-origin" in answer.headers) == (allowed == "*")


def test_without_the_flag_no_page_is_let_in(served):
    answer = httpx.options(served.url + "/generate", headers=PREFLIGHT)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


def test_a_probe_with_a_slash_needs_no_key(shared):
    server, _ = shared
    assert httpx.get(server.url + "/health/", follow_redirects=True).status_code == 200
    assert httpx.get(server.url + "/v1/models/", follow_redirects=True).status_code == 401


REFUSAL = RequestError("The key is spent.", remedy="Use another.", code="invalid_api_key")


@pytest.mark.parametrize("where", [(Gate, "_refusal"), (Cors, "_marked")], ids=["gate", "cors"])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(REFUSAL, 401, "invalid_api_key"), (RuntimeError("secret"), 500, "internal_error")],
    ids=["refusal", "defect"],
)
def test_errors_before_a_route_have_the_envelope_of_all(
    shared, monkeypatch, where, error, status, code
):
    def broken(*_):
        raise error

    server, _ = shared
    monkeypatch.setattr(*where, broken)
    answer = server.get("/v1/models", headers={"origin": PREFLIGHT["origin"]})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] == code
    assert "secret" not in answer.text

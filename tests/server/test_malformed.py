"""Whatever is sent, the answer is a 4xx in our envelope or a real one, and the server lives on."""

import contextlib
import json
import random
import socket

import httpx
import pytest

ROUTES = {
    "/v1/chat/completions": {
        "model": "echo",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 2,
        "temperature": 0.5,
        "stop": ["x"],
        "logit_bias": {"5": 1.0},
        "stream_options": None,
        "n": 1,
    },
    "/v1/completions": {
        "prompt": "hi", "max_tokens": 2, "logprobs": 1, "echo": True, "seed": 3, "top_p": 0.5,
    },
    "/generate": {
        "text": "hi",
        "sampling_params": {"max_new_tokens": 2, "stop": ["x"], "top_k": 3, "min_p": 0.1},
        "return_logprob": True,
        "top_logprobs_num": 1,
        "rid": None,
    },
    "/tokenize": {"prompt": "hi", "add_special_tokens": True},
    "/detokenize": {"tokens": [3, 4], "skip_special_tokens": True},
    "/abort_request": {"rid": "nobody", "abort_all": False},
}  # fmt: skip
VALUES = [
    None, True, -1, 0, 10**9, 10**40, -(2**63) - 1, 1.5, "", "x", "\x00", "é" * 300, [], {}, [[]],
    [None], [1, "a"], {"a": {"b": [1]}}, ["x"] * 1000, "2", [[[[[1]]]]], {"type": "text"},
]  # fmt: skip
RAW = [
    b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}}", b'{"text":NaN}',
    b'{"text":"a","logprob_start_len":1e400,"n":1e400}',
    b'{"text":"\xff\xfe"}', b'{"text":"\\ud800"}', b'{"text":"\\udfff\\ud800 x"}',
    b"[" * 100_000, b'{"sampling_params":' * 5000,
    b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b'{"text":"a","text":"b","text":3}', b"\xef\xbb\xbf{}", b'{"text":"a"', b"\x00" * 100,
    b'{"chat_template_kwargs":' + b'{"a":' * 200 + b"1" + b"}" * 200 + b',"messages":[]}',
]  # fmt: skip


def mutate(rng, value):
    """Return a copy of ``value`` with one thing wrong with it, somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        changed = dict(value)
        choice = rng.random()
        if choice < 0.15:
            del changed[key]
        elif choice < 0.3:
            changed[rng.choice(["x", "__class__", "N", "\u202e"])] = rng.choice(VALUES)
        elif choice < 0.6:
            changed[key] = mutate(rng, changed[key])
        else:
            changed[key] = rng.choice(VALUES)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutate(rng, value[at]), *value[at + 1 :]]
    return rng.choice(VALUES)


def check(answer):
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "Traceback" not in error["message"]
        assert ".py" not in error["message"]


@pytest.mark.parametrize("path", ROUTES)
def test_mutated_bodies_never_break_the_server(served, path):
    rng = random.Random(path)
    with httpx.Client(base_url=served.url, timeout=20) as client:
        for _ in range(80):
            body = ROUTES[path]
            for _ in range(rng.randrange(1, 3)):
                body = mutate(rng, body)
            check(client.post(path, json=body))
        check(client.post(path, json=ROUTES[path]))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
def test_what_is_no_json_is_refused(served, path):
    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=served.url, timeout=20) as client:
        for body in RAW:
            answer = client.post(path, content=body, headers=headers)
            check(answer)
            if b'"text":"b"' not in body:
                assert answer.status_code == 400, body[:40]


def test_another_content_type_is_refused(served):
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = httpx.post(
            served.url + "/generate",
            content=b'{"text":"a"}',
            headers={"content-type": content_type},
        )
        assert answer.status_code == 415
        assert answer.json()["error"]["code"] == "invalid_content_type"


def test_a_body_over_the_limit_is_refused_at_once(served):
    answer = served.post("/generate", {"text": "x" * 10_000_000})
    assert answer.status_code == 413
    assert "8388608 bytes" in answer.json()["error"]["message"]

    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    answer = talk(served, head + b"transfer-encoding: chunked\r\n\r\n" + chunk * 1000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")


def talk(served, data, *, wait_s=5):
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        try:
            connection.sendall(data)
            return connection.recv(4096)
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    "headers",
    [b"".join(b"x-%d: y\r\n" % i for i in range(10_000)), b"x: " + b"y" * 1_000_000 + b"\r\n"],
)
def test_a_flood_of_headers_is_refused(served, headers):
    answer = talk(served, b"GET /live HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n")
    assert answer == b"" or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    assert served.get("/live").status_code == 200


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /generate HTTP/1.1\r\n"
             b"content-length: -5\r\n\r\n", b"GET /%ff%00 HTTP/1.1\r\nhost: x\r\n\r\n"]
)  # fmt: skip
def test_what_is_no_http_is_refused(served, data):
    answer = talk(served, data)
    assert answer == b"" or b" 4" in answer[:13]


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_refused_in_the_envelope(served, method):
    answer = httpx.request(method, served.url + "/generate")
    assert answer.status_code in (400, 405)
    if method != "BREW":
        check(answer)


def test_the_server_still_serves(served):
    assert json.loads(served.post("/generate", {"text": "a"}).text)["text"]
    assert served.call(lambda: served.frontdoor.num_live) == 0


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"\x16\x03\x01 nonsense\r\n\r\n", 400, "invalid_http"),
        (b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "uri_too_long"),
        (
            b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n"
            b"content-length: 2\r\n\r\n{}",
            415,
            "invalid_content_type",
        ),
    ],
)
def test_what_is_no_request_of_ours_is_refused_in_the_envelope(served, request_bytes, status, code):
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request_bytes)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == code

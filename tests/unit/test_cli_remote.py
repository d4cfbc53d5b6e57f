"""What a command says of a server that does not answer as one should."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from headstock.cli.remote import RemoteServer, UnreachableError, own_key
from headstock.config.schema import ServerSettings
from headstock.errors import ConfigError, RequestError


class Odd(HTTPServer):
    """A server that gives each request the same answer."""

    status, body = 200, b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Odd

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def odd() -> Iterator[Odd]:
    server = Odd(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"data": []}', b'{"data": [{"id": 3}]}'])
def test_what_serves_no_model_is_told_from_a_server(odd: Odd, body: bytes) -> None:
    odd.status, odd.body = 404, body
    with pytest.raises(UnreachableError, match="status 404 and no model") as caught:
        RemoteServer(odd.url, None).model()
    assert "--url" in caught.value.remedy


def test_a_server_that_wants_a_key_says_so(odd: Odd) -> None:
    odd.status = 401
    with pytest.raises(ConfigError, match="wants an API key") as caught:
        RemoteServer(f"{odd.url}/v1", None).model()
    assert "HEADSTOCK_API_KEYS" in caught.value.remedy


def chat(server: Odd) -> str:
    remote = RemoteServer(server.url, None)
    return "".join(remote.stream_chat("m", [{"role": "user", "content": "x"}], {}))


@pytest.mark.parametrize(
    ("body", "problem", "code"),
    [
        (b'{"error": {"message": "Too long.", "code": "too_long"}}', "Too long.", "too_long"),
        (b"<html>", "The server failed.", "None"),
        (b"{}", "The server failed.", "None"),
    ],
)
def test_a_refusal_is_told_with_its_status_whatever_its_body(
    odd: Odd, body: bytes, problem: str, code: str
) -> None:
    odd.status, odd.body = 400, body
    with pytest.raises(RequestError, match=f"status 400: {problem}") as caught:
        chat(odd)
    assert caught.value.code == code


def test_an_event_that_is_none_of_a_chat_is_an_error(odd: Odd) -> None:
    odd.body = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: {"choices": 3}\n\n'
    with pytest.raises(RequestError, match="none of a chat"):
        chat(odd)


def test_an_error_within_a_stream_ends_it(odd: Odd) -> None:
    odd.body = b'data: {"error": {"message": "The engine is lost.", "code": "engine_lost"}}\n\n'
    with pytest.raises(RequestError, match="The engine is lost") as caught:
        chat(odd)
    assert caught.value.code == "engine_lost"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        own_key(ServerSettings(api_key_file=str(path)))
    assert str(path) in caught.value.problem
    assert "api_key_file" in caught.value.remedy

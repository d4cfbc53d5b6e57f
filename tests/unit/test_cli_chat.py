"""`headstock chat`: the conversation, who answers, and the OpenAI stream it reads."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Generator, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from headstock.cli.chat import Conversation, Screen, add_parser, choose_talker
from headstock.cli.frame import CommandParser
from headstock.cli.remote import RemoteServer, UnreachableError, default_url, own_key
from headstock.cli.talkers import RemoteTalker
from headstock.config import Loaded, ServerSettings, ServeSettings, read_settings
from headstock.errors import ConfigError, RequestError


class Parrot:
    """Answers with what it was sent."""

    name = "parrot"

    def __init__(self) -> None:
        self.heard: list[list[dict[str, Any]]] = []

    def reply(self, messages: Sequence[dict[str, Any]]) -> Generator[str]:
        self.heard.append(list(messages))
        if messages[-1]["content"] == "fail":
            raise RequestError("No.", remedy="Ask for less.")
        yield "you said "
        yield messages[-1]["content"]

    def close(self) -> None:
        pass


class Script(Screen):
    """A pipe with these lines."""

    def __init__(self, *lines: str) -> None:
        super().__init__(is_terminal=False)
        self._script = lines

    def lines(self) -> Iterator[str]:
        yield from self._script


def talk(*lines: str, system: str = "") -> tuple[Parrot, int]:
    parrot = Parrot()
    return parrot, Conversation(parrot, Script(*lines), system).run()


def roles(messages: list[dict[str, Any]]) -> str:
    return "".join(message["role"][0] for message in messages)


def test_each_line_is_answered_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    _, code = talk("a", "  ", "b")
    assert capsys.readouterr().out == "you said a\nyou said b\n"
    assert code == 0


def test_earlier_turns_are_sent_along() -> None:
    parrot, _ = talk("a", "b", "c", system="be kind")
    assert [roles(messages) for messages in parrot.heard] == ["su", "suau", "suauau"]
    assert parrot.heard[2][2] == {"role": "assistant", "content": "you said a"}


def test_clear_forgets_all_but_the_system_prompt() -> None:
    parrot, _ = talk("a", "/clear", "b", system="be kind")
    assert roles(parrot.heard[1]) == "su"


def test_system_sets_and_unsets_the_system_prompt() -> None:
    parrot, _ = talk("/system be rude", "a", "/system", "b")
    assert parrot.heard[0][0] == {"role": "system", "content": "be rude"}
    assert roles(parrot.heard[1]) == "uau"


def test_nothing_is_heard_after_exit() -> None:
    parrot, _ = talk("a", "/exit", "b")
    assert len(parrot.heard) == 1


def test_two_slashes_say_one() -> None:
    parrot, _ = talk("//exit now")
    assert parrot.heard[0][-1]["content"] == "/exit now"


def test_a_failed_turn_is_forgotten_and_gives_a_pipe_an_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parrot, code = talk("fail", "b")
    assert roles(parrot.heard[1]) == "u"
    assert code == 1
    assert "Ask for less." in capsys.readouterr().err


def settings(*argv: str) -> tuple[argparse.Namespace, Loaded[ServeSettings]]:
    parser = CommandParser(prog="headstock chat")
    add_parser(parser)
    arguments = parser.parse_command(argv)
    return arguments, read_settings(arguments, ServeSettings)


def test_a_url_and_settings_of_an_engine_contradict_each_other() -> None:
    arguments, loaded = settings("--url", "http://localhost:1", "--dtype", "float32")
    with pytest.raises(ConfigError, match="--dtype sets up an engine"):
        choose_talker(loaded, arguments.url, {})


def test_a_url_where_nobody_answers_is_an_error() -> None:
    arguments, loaded = settings("--url", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"No server answers at http://127\.0\.0\.1:9"):
        choose_talker(loaded, arguments.url, {})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:7"),
        ("0.0.0.0", "http://127.0.0.1:7"),
        ("::", "http://[::1]:7"),
    ],
)
def test_the_usual_address_is_where_serve_listens(host: str, url: str) -> None:
    assert default_url(ServerSettings(host=host, port=7)) == url


def test_the_key_comes_from_the_settings_or_their_file(tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("# mine\n\nsecret-1\nsecret-2\n")
    assert own_key(ServerSettings(api_keys=["given"], api_key_file=str(file))) == "given"
    assert own_key(ServerSettings(api_key_file=str(file))) == "secret-1"
    assert own_key(ServerSettings()) is None


STREAM = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"Pa"}}]}\n\n: ping\n\n'
    b'data: {"choices":[{"delta":{"content":"ris"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{}}\n\ndata: [DONE]\n\n'
)
BROKEN = (
    STREAM.partition(b": ping")[0]
    + b'data: {"error":{"message":"The engine died.","code":"engine_lost"}}\n\n'
)


class Canned(BaseHTTPRequestHandler):
    """Answers with the server's ``reply``: status and body."""

    def do_GET(self) -> None:
        is_known = self.headers.get("authorization") != "Bearer wrong"
        self.answer(200 if is_known else 401, b'{"data":[{"id":"m"}]}')

    def do_POST(self) -> None:
        self.server.asked = self.rfile.read(int(self.headers["content-length"]))  # type: ignore[attr-defined]
        self.answer(*self.server.reply)  # type: ignore[attr-defined]

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def canned() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Canned) as server:
        server.reply = (200, STREAM)  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def reply(server: ThreadingHTTPServer) -> list[str]:
    remote = RemoteServer(f"http://127.0.0.1:{server.server_port}/v1/", None)
    talker = RemoteTalker(remote, remote.model(), {"max_new_tokens": 7, "top_k": 2})
    pieces = [piece for piece in talker.reply([{"role": "user", "content": "?"}]) if piece]
    talker.close()
    return pieces


def test_a_stream_is_read_piece_by_piece(canned: ThreadingHTTPServer) -> None:
    assert reply(canned) == ["Pa", "ris"]


def test_sampling_has_the_apis_names_on_the_wire(canned: ThreadingHTTPServer) -> None:
    reply(canned)
    asked: bytes = canned.asked  # type: ignore[attr-defined]
    assert b'"max_tokens":7' in asked
    assert b'"top_k":2' in asked


def test_an_error_in_a_stream_is_raised(canned: ThreadingHTTPServer) -> None:
    canned.reply = (200, BROKEN)  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match="The engine died"):
        reply(canned)


def test_a_refusal_is_raised_with_its_code(canned: ThreadingHTTPServer) -> None:
    canned.reply = (400, b'{"error":{"message":"Too long.","code":"context_length_exceeded"}}')  # type: ignore[attr-defined]
    with pytest.raises(RequestError, match=r"status 400: Too long\.") as caught:
        reply(canned)
    assert caught.value.code == "context_length_exceeded"


def test_a_wrong_key_is_told_from_no_server(canned: ThreadingHTTPServer) -> None:
    remote = RemoteServer(f"http://127.0.0.1:{canned.server_port}", "wrong")
    with pytest.raises(ConfigError, match="wants an API key"):
        remote.model()
    remote.close()

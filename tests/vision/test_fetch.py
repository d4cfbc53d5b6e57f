"""Images at addresses: public hosts only, by https; what was checked is what is connected to."""

from __future__ import annotations

import http.client
import socket
from typing import Any

import pytest

from headstock.errors import RequestError
from headstock.multimodal import fetch as module
from headstock.multimodal.fetch import fetch, is_public
from headstock.multimodal.source import Source

PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_everyones_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_everyones_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x.png",
        "https://example.com:8443/x.png",
        "https://user@example.com/x.png",
        "https://example.com\\@127.0.0.1/",
        "https://example.com/a b",
        "https://exämple.com/",
        "https://",
        "https://[::1/",
        "https://example.com/\r\nHost: x",
    ],
)
def test_addresses_that_could_be_read_in_two_ways_are_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    with pytest.raises(RequestError) as caught:
        fetch(Source("messages[0].content[0].image_url", url), max_bytes=9, timeout_s=1)
    assert caught.value.field == "messages[0].content[0].image_url"
    assert "x.png" not in caught.value.problem


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 443)) for a in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: entries)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], []])
def test_a_host_with_any_address_that_is_not_public_is_not_connected_to(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, *addresses)
    monkeypatch.setattr(socket, "create_connection", lambda *args: pytest.fail("connected"))
    with pytest.raises(RequestError, match="not public"):
        fetch(Source("x", "https://example.com/x.png"), max_bytes=9, timeout_s=1)


def test_what_was_checked_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means another address by then is not asked again."""
    resolving(monkeypatch, "8.8.8.8")
    asked: list[Any] = []

    def connect(address: Any, timeout_s: float) -> Any:
        asked.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(RequestError, match="cannot be fetched"):
        fetch(Source("x", "https://example.com/x.png"), max_bytes=9, timeout_s=1)
    assert asked == [("8.8.8.8", 443)]


class Answer:
    """What a host says."""

    def __init__(self, status: int, chunks: list[bytes]) -> None:
        self.status = status
        self._chunks = iter(chunks)

    def read1(self, size: int) -> bytes:
        return next(self._chunks, b"")


def answering(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    resolving(monkeypatch, "8.8.8.8")
    vetted = module._Vetted
    monkeypatch.setattr(vetted, "request", lambda *args, **kwargs: None)
    monkeypatch.setattr(vetted, "getresponse", lambda *args: answer)


def test_an_image_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Answer(http.client.OK, [b"abc", b"def"]))
    assert fetch(Source("x", "https://example.com/x"), max_bytes=6, timeout_s=1) == b"abcdef"


@pytest.mark.parametrize("status", [301, 302, 307, 404, 500])
def test_redirects_are_not_followed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Answer(status, [b"abc"]))
    with pytest.raises(RequestError, match=f"status {status}"):
        fetch(Source("x", "https://example.com/x"), max_bytes=9, timeout_s=1)


def test_more_bytes_than_allowed_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Answer(http.client.OK, [b"0123456789"] * 1000))
    with pytest.raises(RequestError, match="20 bytes; 15 are allowed"):
        fetch(Source("x", "https://example.com/x"), max_bytes=15, timeout_s=1)


def test_a_host_that_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    answering(monkeypatch, Answer(http.client.OK, [b"0"] * 1000))
    with pytest.raises(RequestError, match="cannot be fetched"):
        fetch(Source("x", "https://example.com/x"), max_bytes=10_000, timeout_s=5)

"""Keys and host names: who holds which, and by which names the server may be reached."""

from __future__ import annotations

import pytest

from headstock.config.schema import ServerSettings
from headstock.server.http.gate import AllowedHosts, _listed, is_cross_site, is_loopback
from headstock.server.keys import KeyRing, read_keys

ANN, BOB = "ann:user:key-of-ann-0", "bob:admin:key-of-bob-0"


def ring_of(*keys: str) -> KeyRing:
    return read_keys(ServerSettings(api_keys=list(keys)), b"secret")


def test_a_holder_is_found_by_what_it_owns() -> None:
    ring = ring_of(ANN, BOB)
    for sent, name in (("key-of-ann-0", "ann"), ("key-of-bob-0", "bob")):
        caller = ring.caller(f"Bearer {sent}")
        assert caller is not None
        assert (caller.name, caller.is_admin) == (name, name == "bob")
        assert ring.holder(caller.owner) == caller
    assert ring.holder("") is None
    assert ring.holder("0" * 32) is None


def test_without_keys_what_is_stored_is_anybodys() -> None:
    anybody = ring_of().holder("")
    assert anybody is not None
    assert anybody.is_admin
    assert ring_of().holder("0" * 32) is None


def test_owners_are_the_same_with_the_same_secret_only() -> None:
    alone, beside = ring_of(ANN).caller("bearer key-of-ann-0"), ring_of(ANN, BOB)
    other = read_keys(ServerSettings(api_keys=[ANN]), b"other").caller("Bearer key-of-ann-0")
    again = beside.caller("Bearer key-of-ann-0")
    assert alone is not None
    assert again is not None
    assert other is not None
    assert alone.owner == again.owner != other.owner
    assert alone.tenant == ""
    assert again.tenant == f"{again.owner[:16]}/"


def test_keys_without_a_name_are_numbered_from_one_and_given_twice_are_one() -> None:
    ring = ring_of("first-key-of-two", "first-key-of-two", "second-key-of-two")
    names = [ring.caller(f"Bearer {key}-key-of-two") for key in ("first", "second")]
    assert [caller and caller.name for caller in names] == ["key 1", "key 2"]


@pytest.mark.parametrize(
    "sent", ["", "Bearer", "Bearer ", "Basic key-of-ann-0", "key-of-ann-0", "Bearer key-of-ann-1"]
)
def test_what_is_no_bearer_with_a_key_is_nobody(sent: str) -> None:
    assert ring_of(ANN, BOB).caller(sent) is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True),
     ("0.0.0.0", False), ("example.com", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_loopback_is_what_this_machine_alone_reaches(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize(
    ("address", "names", "host", "code"),
    [
        ("localhost", [], "LOCALHOST:80", None),
        ("127.0.0.1", [], "[::1]:80", None),
        ("127.0.0.1", [], "evil.example", "host_not_allowed"),
        ("127.0.0.1", ["Mine.example"], "mine.example", None),
        ("0.0.0.0", [], "any.example", None),
        ("0.0.0.0", ["mine.example"], "any.example", "host_not_allowed"),
        ("0.0.0.0", [], None, "invalid_host"),
    ],
)  # fmt: skip
def test_a_host_is_one_of_the_servers_names(
    address: str, names: list[str], host: str | None, code: str | None
) -> None:
    headers = [] if host is None else [(b"host", host.encode())]
    refusal = AllowedHosts(address, names).refusal({"headers": headers, "http_version": "1.1"})
    assert (refusal and refusal.code) == code


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({b"origin": b"http://x:1", b"host": b"X:1"}, False),
        ({b"origin": b"http://y:1", b"host": b"x:1"}, True),
        ({b"origin": b"null", b"host": b"x:1"}, True),
        ({b"sec-fetch-site": b"cross-site"}, True),
        ({b"sec-fetch-site": b"same-origin"}, False),
    ],
)
def test_a_page_of_another_host_is_told_by_its_origin(
    headers: dict[bytes, bytes], expected: bool
) -> None:
    assert is_cross_site({"headers": list(headers.items())}) is expected


def test_a_header_lists_sixteen_names_that_it_can_carry() -> None:
    assert _listed(["a b", "ok", "x\n"]) == b"ok"
    assert _listed(["\x00"]) == b"?"
    assert _listed([f"n{at}" for at in range(20)]).count(b",") == 15

"""Who may do what, by which name, on which port."""

import logging
import os
import socket
import threading
import time

import httpx
import pytest

from headstock.config.environment import forget_secrets
from headstock.config.schema import ServerSettings
from headstock.errors import ConfigError
from headstock.server.http.gate import AllowedHosts
from headstock.server.keys import bare_key, key_reader, read_keys
from tests.server.conftest import Served

KEYS = {
    "ann": "ann:user:key-of-ann-0",
    "bob": "bob:user:key-of-bob-0",
    "ops": "ops:admin:key-of-ops",
}


def bearer(name):
    return {"Authorization": f"Bearer {bare_key(KEYS[name])}"}


@pytest.fixture(scope="module")
def shared():
    settings = ServerSettings(port=0, api_keys=list(KEYS.values()))
    with Served(engine={"step_s": 0.02}, settings=settings) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "body"), [("/flush_cache", None), ("/abort_request", {"abort_all": True})]
)
def test_control_needs_the_admin_role(shared, path, body):
    refused = shared.post(path, body, headers=bearer("ann"))
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "forbidden"
    assert shared.post(path, body, headers=bearer("ops")).status_code == 200


def test_control_needs_post(shared):
    assert shared.get("/flush_cache", headers=bearer("ops")).status_code == 405


def test_names_of_requests_belong_to_their_key_and_so_does_the_right_to_end_them(shared):
    answers = {}

    def generate(name):
        body = {"text": "x", "rid": "same", "sampling_params": {"max_new_tokens": 100}}
        answers[name] = shared.post("/generate", body, headers=bearer(name))

    threads = [threading.Thread(target=generate, args=(name,)) for name in ("ann", "bob")]
    for thread in threads:
        thread.start()
    while shared.call(lambda: shared.frontdoor.num_live) < 2:
        time.sleep(0.01)
    assert shared.post("/abort_request", {"rid": "same"}, headers=bearer("ann")).json()["aborted"]
    for thread in threads:
        thread.join(10)
    reasons = {name: a.json()["meta_info"]["finish_reason"]["type"] for name, a in answers.items()}
    assert reasons == {"ann": "abort", "bob": "length"}
    ended = shared.post("/abort_request", {"rid": "nobodys"}, headers=bearer("ann"))
    assert ended.json() == {"aborted": False}


def test_what_is_done_to_the_server_is_written_down(shared, caplog):
    with caplog.at_level(logging.INFO, "headstock.audit"):
        shared.post("/flush_cache", headers=bearer("ops"))
        shared.post("/flush_cache", headers=bearer("ann"))
        shared.post("/flush_cache")
    said = [r.getMessage() for r in caplog.records if r.name == "headstock.audit"]
    assert said == [
        "ops from 127.0.0.1: POST /flush_cache 200",
        "ann from 127.0.0.1: POST /flush_cache 403",
        "no key from 127.0.0.1: POST /flush_cache 401",
    ]


def test_a_page_of_another_site_controls_nothing(served):
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
    ):
        assert served.post("/flush_cache", headers=headers).status_code == 403
    own = {"Origin": served.url}
    assert served.post("/flush_cache", headers=own).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403), ("evil.example:30000", 403), ("127.0.0.1.evil.example", 403),
        ("[", 403), ("localhost", 200), ("LocalHost:8080", 200), ("[::1]:1", 200),
    ],
)  # fmt: skip
def test_on_loopback_the_server_answers_to_local_names_only(served, host, status):
    for path in ("/live", "/v1/models"):
        assert served.get(path, headers={"Host": host}).status_code == status


def test_http_1_1_without_a_host_is_refused(served):
    address = served.url.removeprefix("http://").split(":")
    for hosts, status in ((b"", b"400"), (b"host: localhost\r\nhost: evil\r\n", b"400")):
        with socket.create_connection((address[0], int(address[1])), timeout=5) as connection:
            connection.sendall(b"GET /live HTTP/1.1\r\n" + hosts + b"\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 " + status)


def test_elsewhere_every_name_is_allowed_unless_some_are_given():
    scope = {"headers": [(b"host", b"api.example:80")], "http_version": "1.1"}
    assert AllowedHosts("0.0.0.0", []).refusal(scope) is None
    assert AllowedHosts("0.0.0.0", ["API.example"]).refusal(scope) is None
    assert AllowedHosts("0.0.0.0", ["other.example"]).refusal(scope) is not None
    assert AllowedHosts("127.0.0.1", []).refusal(scope) is not None


def test_control_has_a_port_of_its_own_where_one_is_set():
    settings = ServerSettings(port=0, admin_port=0)
    with Served(settings=settings) as server:
        control = f"http://127.0.0.1:{server.admin_port}"
        assert server.post("/flush_cache").status_code == 404
        assert httpx.post(f"{control}/flush_cache").status_code == 200
        assert httpx.post(f"{control}/generate", json={"text": "x"}).status_code == 404
        assert httpx.get(f"{control}/ready").status_code == 200
        assert server.get("/ready").status_code == 200


def test_keys_are_read_again(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text("a:user:first-key-1\n")
    path.chmod(0o600)
    settings = ServerSettings(api_key_file=str(path))
    ring = read_keys(settings)
    reload = key_reader(settings, ring)
    path.write_text("a:user:first-key-1\nb:admin:second-key\n")
    reload()
    assert ring.caller("Bearer second-key").is_admin
    path.write_text("short\n")
    with caplog.at_level(logging.ERROR):
        reload()
    assert "stay as they are" in caplog.text
    assert ring.caller("Bearer second-key") is not None
    assert ring.caller("Bearer short") is None


def test_a_key_file_that_others_can_read_is_warned_of(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text("first-key-1\n")
    path.chmod(0o644)
    read_keys(ServerSettings(api_key_file=str(path)))
    assert "chmod 600" in caplog.text
    caplog.clear()
    path.chmod(0o600)
    read_keys(ServerSettings(api_key_file=str(path)))
    assert not caplog.text


@pytest.mark.parametrize(
    "key", ["with a space", "sch\u00f6ner-key", "tab\tin-it-1", "x:user:a b c d e"]
)
def test_a_key_that_no_header_can_carry_is_refused_at_the_start(key):
    with pytest.raises(ConfigError, match="no HTTP header") as caught:
        read_keys(ServerSettings(api_keys=[key]))
    assert bare_key(key) not in str(caught.value)


def test_children_do_not_inherit_the_keys(monkeypatch):
    monkeypatch.setenv("HEADSTOCK_API_KEYS", "first-key-1")
    monkeypatch.setenv("HEADSTOCK_PORT", "1")
    forget_secrets()
    assert "HEADSTOCK_API_KEYS" not in os.environ
    assert "HEADSTOCK_PORT" in os.environ

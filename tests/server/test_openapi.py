"""Requests made from `/openapi.json` meet no server error and no undocumented answer."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from headstock.server import errors
from headstock.server.http.app import flat_routes
from tests.server.conftest import Served

CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "unsupported_method", "allow_header_conformance",
]  # fmt: skip
BEFORE_ROUTES = {405, 414}
"""Statuses of what is no operation at all."""


@pytest.fixture(scope="module")
def asked():
    with Served() as server:
        yield server


def ask_everything(server, folder, *, examples, phases, seed):
    """Send requests that fit the document and some that do not; return how many, and what fails."""
    report = Path(folder) / "report.json"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--phases", phases, "--seed", str(seed)),
        *("--max-examples", str(examples), "--request-timeout", "90", "--no-color", "--no-shrink"),
        *("--exclude-path", "/pause_generation"),  # holds back all that follows, as it should
        *("--exclude-path", "/sleep", "--exclude-path", "/release_memory_occupation"),  # likewise
        *("--continue-on-failure", "--generation-database", "none"),
        *("--report-json-path", str(report)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert report.is_file(), done.stdout + done.stderr
    assert "Failures:" not in done.stdout, done.stdout
    assert "Errors:" not in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout
    return json.loads(report.read_text())


def test_generated_requests_get_documented_answers(asked, tmp_path):
    report = ask_everything(asked, tmp_path, examples=6, phases="fuzzing", seed=1)
    assert report["test_cases"]["generated"] > 200
    check_idle(asked)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_thousand_generated_requests_get_documented_answers(asked, tmp_path):
    report = ask_everything(asked, tmp_path, examples=8, phases="coverage,fuzzing", seed=3)
    assert report["test_cases"]["generated"] > 5_000
    check_idle(asked)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_thousand_generated_requests_get_documented_answers(asked, tmp_path):
    report = ask_everything(asked, tmp_path, examples=260, phases="coverage,fuzzing", seed=2)
    assert report["test_cases"]["generated"] > 20_000
    check_idle(asked)


def check_idle(server):
    assert server.call(lambda: server.frontdoor.num_live) == 0
    assert server.get("/ready").status_code == 200


def test_no_route_hides_another(asked):
    pairs = [
        (route.path_regex.pattern, method)
        for route in flat_routes(asked.app.routes)
        for method in route.methods or ()
    ]
    twice = {pair for pair in pairs if pairs.count(pair) > 1}
    assert not twice


def test_every_status_is_documented(asked):
    statuses = {*errors._STATUS.values(), 400} - BEFORE_ROUTES
    for path, operations in asked.app.openapi()["paths"].items():
        for method, operation in operations.items():
            told = {int(code) for code in operation["responses"]}
            has_body = "requestBody" in operation
            assert statuses - ({415} if not has_body else set()) <= told, (method, path)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/chat/completions", {"error": {"message", "type", "param", "code"}}),
        ("/v1/messages", {"type": None, "error": {"type", "message"}}),
        ("/api/chat", {"error": None}),
    ],
)
def test_errors_have_the_shape_that_the_document_gives_them(asked, path, shape):
    document = asked.app.openapi()
    answer = httpx.post(asked.url + path, json={})
    assert answer.status_code == 400
    told = document["paths"][path]["post"]["responses"]["400"]["content"]["application/json"]
    schemas = document["components"]["schemas"]
    schema = schemas[told["schema"]["$ref"].rpartition("/")[2]]
    assert set(answer.json()) == set(schema["properties"]) == set(shape)
    if shape["error"]:
        detail = schemas[schema["properties"]["error"]["$ref"].rpartition("/")[2]]
        assert set(answer.json()["error"]) == set(detail["properties"]) == shape["error"]


@pytest.mark.parametrize(
    ("path", "media"),
    [
        ("/v1/chat/completions", "text/event-stream"),
        ("/v1/messages", "text/event-stream"),
        ("/generate", "text/event-stream"),
        ("/api/chat", "application/x-ndjson"),
        ("/tokenize", None),
    ],
)
def test_streams_are_documented_where_a_body_may_ask_for_one(asked, path, media):
    told = asked.app.openapi()["paths"][path]["post"]["responses"]["200"]["content"]
    assert set(told) == {"application/json"} | ({media} if media else set())


def test_every_method_of_a_documented_path_is_documented(asked):
    documented = {
        path: {method.upper() for method in operations}
        for path, operations in asked.app.openapi()["paths"].items()
    }
    served = {path: set() for path in documented}
    for route in flat_routes(asked.app.routes):
        if route.path_format in served:
            served[route.path_format] |= (route.methods or set()) - {"HEAD"}
    assert served == documented


def test_a_route_that_answers_nothing_documents_no_body(asked):
    told = asked.app.openapi()["paths"]["/close_session"]["post"]["responses"]["200"]
    assert "content" not in told
    session = httpx.post(f"{asked.url}/open_session", json={"capacity_of_str_len": 10}).json()
    answer = httpx.post(f"{asked.url}/close_session", json={"session_id": session})
    assert (answer.status_code, answer.content) == (200, b"")

"""What became of requests on a real engine, and the traces that leave the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.e2e.served import SMALL, Served, served, wait_for

LONG = "The headstock of a lathe drives the work, and takes whatever chuck fits the job. " * 8


def ask(server: Served, prompt: str, **fields: Any) -> dict[str, Any]:
    """Complete a prompt, and return the record of it."""
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}
    answer = server.post("/v1/completions", **body)
    assert answer.status_code == 200, answer.text
    (one,) = server.get(f"/requests/{answer.headers['x-request-id']}").json()["completions"]
    return one


def test_the_engine_tells_chunks_steps_and_what_it_found(server: Served) -> None:
    first = ask(server, LONG + "One.")
    assert first["chunks"][0]["begin"] == first["cached_tokens"]
    assert first["chunks"][-1]["end"] == first["prompt_tokens"]
    assert first["last_step"] >= first["chunks"][-1]["step"] + 10
    assert sum(count for _, count in first["tokens"]) == 12
    second = ask(server, LONG + "Two.")
    assert second["cached_tokens"] > 100
    assert second["shared_tokens"] == 0  # nothing runs with it any more
    times = [at for at, _ in second["tokens"]]
    assert times == sorted(times)
    assert second["sent_s"] <= second["chunks"][0]["at_s"] + 0.001 <= times[0] + 0.002
    assert sum(second["waits"].values()) <= second["queue_s"] + 0.001


def test_a_grammar_s_compilation_is_part_of_the_wait(server: Served) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    one = ask(server, "A name:", response_format=form, ignore_eos=False)
    assert one["has_grammar"]
    assert one["waits"]["grammar"] > 0


class Collector(ThreadingHTTPServer):
    """Takes traces as a collector does, and keeps them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"

    def spans(self) -> list[Any]:
        """Return the spans that have come."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        return [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        assert isinstance(self.server, Collector)
        self.server.bodies.append(self.rfile.read(length))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.mark.slow
def test_traces_leave_for_the_collector(model: str, collector: Collector) -> None:
    pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http", reason="pip install headstock[otel]"
    )
    with served(model, *SMALL, "--otlp-endpoint", collector.url) as server:
        trace = "0af7651916cd43dd8448eb211c80319c"
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "canary"}], "max_tokens": 4},
            headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"},
            timeout=60,
        )
        assert answer.status_code == 200
        spans = wait_for(collector.spans, 30, "spans")
    names = {span.name.split()[0] for span in spans}
    assert names == {"chat", "queue", "prefill", "decode"}
    assert all(span.trace_id.hex() == trace for span in spans)
    assert b"canary" not in b"".join(collector.bodies)

"""Traces: spans by the GenAI conventions, with the times that were noted, and no text."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from headstock.errors import ConfigError
from headstock.observe.traces import RequestTracer, open_tracer

pytest.importorskip("opentelemetry.sdk", reason="pip install headstock[otel]")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

TRACE = "0af7651916cd43dd8448eb211c80319c"
ONE: dict[str, Any] = {
    "index": 0,
    "kind": "text",
    "prompt_tokens": 10,
    "output_tokens": 3,
    "cached_tokens": 4,
    "max_tokens": 16,
    "temperature": 0.5,
    "top_p": 1.0,
    "finish_reason": "stop",
    "error": None,
    "queue_s": 0.5,
    "retractions": 1,
    "drafted_tokens": 0,
    "accepted_tokens": 0,
    "attempts": 1,
    "sent_s": 0.25,
    "first_token_s": 1.0,
    "total_s": 2.0,
    "waits": {"slots": 0.5},
    "evicted_pages": 2,
    "shared_tokens": 0,
}
CALL: dict[str, Any] = {
    "id": "x",
    "route": "/v1/chat/completions",
    "model": "smollm2",
    "received": 1000.0,
    "total_s": 2.0,
    "completions": [ONE],
}


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> RequestTracer:
    return open_tracer("http://collector/v1/traces", 1.0, "test", spans)


def by_name(spans: InMemorySpanExporter) -> dict[str, Any]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_call_is_a_server_span_with_the_attributes_of_the_conventions(
    tracer: RequestTracer, spans: InMemorySpanExporter
) -> None:
    tracer.trace(CALL)
    span = by_name(spans)["chat smollm2"]
    assert span.kind.name == "SERVER"
    assert (span.start_time, span.end_time) == (1000 * 10**9, 1002 * 10**9)
    attributes = dict(span.attributes)
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.usage.input_tokens"] == 10
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 4
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert "error.type" not in attributes
    known = {v for n, v in vars(gen_ai_attributes).items() if n.startswith("GEN_AI_")}
    assert {name for name in attributes if name.startswith("gen_ai.")} <= known


def test_its_parts_are_spans_one_after_another(
    tracer: RequestTracer, spans: InMemorySpanExporter
) -> None:
    tracer.trace(CALL)
    found = by_name(spans)
    times = {
        name: (found[name].start_time / 1e9 - 1000, found[name].end_time / 1e9 - 1000)
        for name in ("queue", "prefill", "decode")
    }
    assert times == {"queue": (0.25, 0.75), "prefill": (0.75, 1.0), "decode": (1.0, 2.0)}
    assert found["queue"].attributes["headstock.waits.slots"] == 0.5
    assert found["decode"].attributes["headstock.retractions"] == 1
    root = found["chat smollm2"]
    assert all(found[name].parent.span_id == root.context.span_id for name in times)


def test_a_failed_call_says_so(tracer: RequestTracer, spans: InMemorySpanExporter) -> None:
    failed = ONE | {"finish_reason": "error", "error": "engine_lost", "first_token_s": None}
    tracer.trace(CALL | {"completions": [failed]})
    span = by_name(spans)["chat smollm2"]
    assert span.attributes["error.type"] == "engine_lost"
    assert span.status.status_code.name == "ERROR"


@pytest.mark.parametrize(
    ("route", "kind", "name"),
    [
        ("/generate", "text", "text_completion smollm2"),
        ("/v1/messages", "text", "chat smollm2"),
        ("/v1/embeddings", "vector", "embeddings smollm2"),
    ],
)
def test_operations_are_named_by_route(
    tracer: RequestTracer, spans: InMemorySpanExporter, route: str, kind: str, name: str
) -> None:
    tracer.trace(CALL | {"route": route, "completions": [ONE | {"kind": kind}]})
    assert name in by_name(spans)


def test_a_callers_trace_goes_on(tracer: RequestTracer, spans: InMemorySpanExporter) -> None:
    tracer.trace(CALL, f"00-{TRACE}-b7ad6b7169203331-01")
    span = by_name(spans)["chat smollm2"]
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"


@pytest.mark.parametrize("parent", ["", "nonsense", "00-0-0-01"])
def test_without_one_it_begins_its_own(
    tracer: RequestTracer, spans: InMemorySpanExporter, parent: str
) -> None:
    tracer.trace(CALL, parent)
    assert by_name(spans)["chat smollm2"].parent is None


def test_a_share_is_traced_and_what_a_caller_says(spans: InMemorySpanExporter) -> None:
    tracer = open_tracer("http://collector/v1/traces", 0.0, "test", spans)
    tracer.trace(CALL)
    assert not spans.get_finished_spans()
    tracer.trace(CALL, f"00-{TRACE}-b7ad6b7169203331-01")
    assert len(spans.get_finished_spans()) == 4


def test_many_completions_are_bounded(tracer: RequestTracer, spans: InMemorySpanExporter) -> None:
    tracer.trace(CALL | {"completions": [ONE | {"index": i} for i in range(64)]})
    assert len(spans.get_finished_spans()) == 1 + 3 * 16
    assert by_name(spans)["chat smollm2"].attributes["gen_ai.request.choice.count"] == 64


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"is not installed\.\n  -> pip install 'headstock\[otel"):
        open_tracer("http://collector/v1/traces", 1.0, "test")

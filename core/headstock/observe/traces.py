"""OpenTelemetry traces: a span for each call, by the GenAI conventions, when it is over.

Spans are made from what was noted anyway, with its times: nothing is traced while tokens are made.
They hold times and counts, never prompts or outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headstock.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

PROVIDER = "headstock"
OPERATIONS = {
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
    "/api/generate": "text_completion",
}
"""By route; all others chat, or embed."""
MAX_SHOWN = 16
"""Completions of one call whose parts have spans of their own."""
FLUSH_S = 3.0
"""How long the last spans may take to leave. Seconds."""


class RequestTracer:
    """Makes the spans of calls that are over.

    Args:
        provider: Where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("headstock")

    def trace(self, record: Mapping[str, Any], traceparent: str = "") -> None:
        """Make the spans of a call.

        Args:
            record: What ``/requests/{id}`` tells of it.
            traceparent: The trace that it is part of, as the W3C writes it; "": none.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        completions = record["completions"]
        begin_s = record["received"]
        operation = operation_of(record)
        span = self._tracer.start_span(
            f"{operation} {record['model']}",
            context=_parent(traceparent),
            kind=SpanKind.SERVER,
            start_time=_ns(begin_s),
            attributes=call_attributes(record, operation),
        )
        errors = [each["error"] for each in completions if each.get("error")]
        if errors:
            span.set_attribute("error.type", errors[0])
            span.set_status(Status(StatusCode.ERROR, errors[0]))
        inside = set_span_in_context(span)
        for each in completions[:MAX_SHOWN]:
            self._trace_parts(each, begin_s, inside)
        span.end(_ns(begin_s + (record["total_s"] or 0.0)))

    def _trace_parts(self, one: Mapping[str, Any], begin_s: float, context: Context) -> None:
        """Make the spans of what one completion waited for and what computed it."""
        total_s = one["total_s"]
        first_s = one["first_token_s"] if one["first_token_s"] is not None else total_s
        admitted_s = min(one["sent_s"] + one.get("queue_s", 0.0), first_s)
        waits = {f"headstock.waits.{name}": s for name, s in one.get("waits", {}).items()}
        parts: tuple[tuple[str, float, float, dict[str, Any]], ...] = (
            ("queue", one["sent_s"], admitted_s, waits),
            ("prefill", admitted_s, first_s, {}),
            ("decode", first_s, total_s, completion_attributes(one)),
        )
        for name, from_s, to_s, attributes in parts:
            span = self._tracer.start_span(
                name,
                context=context,
                start_time=_ns(begin_s + from_s),
                attributes={"headstock.completion.index": one["index"], **attributes},
            )
            span.end(_ns(begin_s + max(from_s, to_s)))

    def close(self) -> None:
        """Send what is left, for some seconds at most."""
        self._provider.force_flush(int(FLUSH_S * 1000))
        self._provider.shutdown()


def operation_of(record: Mapping[str, Any]) -> str:
    """Return what the conventions call a call's operation."""
    if any(each["kind"] == "vector" for each in record["completions"]):
        return "embeddings"
    return OPERATIONS.get(record["route"], "chat")


def call_attributes(record: Mapping[str, Any], operation: str) -> dict[str, Any]:
    """Return the attributes of a call's span."""
    completions = record["completions"]
    first = completions[0]
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": record["model"],
        "gen_ai.response.model": record["model"],
        "gen_ai.response.id": record["id"],
        "gen_ai.response.finish_reasons": [each["finish_reason"] for each in completions],
        "gen_ai.usage.input_tokens": _sum(completions, "prompt_tokens"),
        "gen_ai.usage.output_tokens": _sum(completions, "output_tokens"),
        "gen_ai.usage.cache_read.input_tokens": _sum(completions, "cached_tokens"),
        "gen_ai.request.max_tokens": first["max_tokens"],
        "gen_ai.request.temperature": first["temperature"],
        "gen_ai.request.top_p": first["top_p"],
        "gen_ai.response.time_to_first_chunk": first["first_token_s"],
        "http.route": record["route"],
    }
    if len(completions) > 1:
        attributes["gen_ai.request.choice.count"] = len(completions)
    return {name: value for name, value in attributes.items() if value is not None}


def completion_attributes(one: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of what one completion took."""
    names = (
        "output_tokens", "retractions", "drafted_tokens", "accepted_tokens", "attempts",
        "evicted_pages", "shared_tokens",
    )  # fmt: skip
    return {f"headstock.{name}": one[name] for name in names if one.get(name) is not None}


def open_tracer(
    endpoint: str, ratio: float, service: str, exporter: SpanExporter | None = None
) -> RequestTracer:
    """Return a tracer that sends to a collector.

    Args:
        endpoint: URL that takes traces by OTLP over HTTP.
        ratio: Share of calls that are traced; of those that are part of a trace, as that says.
        service: What the collector calls this server.
        exporter: Takes the spans instead of the collector, at once: for tests.

    Raises:
        ConfigError: The packages are not there.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise ConfigError(
            f"--otlp-endpoint is set, and {error.name} is not installed.",
            remedy="pip install 'headstock[otel]'.",
        ) from error
    provider = TracerProvider(
        resource=Resource({"service.name": service}), sampler=ParentBased(TraceIdRatioBased(ratio))
    )
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint))
        if exporter is None
        else SimpleSpanProcessor(exporter)
    )
    return RequestTracer(provider)


def _parent(traceparent: str) -> Context:
    """Return the context of the trace that a call is part of; of none, where it is malformed."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def _sum(completions: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(each.get(name) or 0 for each in completions)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)

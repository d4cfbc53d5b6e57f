"""Prometheus metrics: of requests as the front door sees them, of the engine as it reports.

Names are ``headstock_*``; with the alias switch SGLang's names are there too, for dashboards
and routers that match by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

if TYPE_CHECKING:
    from headstock.server.frontdoor import Frontdoor

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOTAL_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_ALIASES = {
    "headstock_requests_running": "sglang:num_running_reqs",
    "headstock_requests_waiting": "sglang:num_queue_reqs",
    "headstock_cache_usage_ratio": "sglang:token_usage",
    "headstock_ttft_seconds": "sglang:time_to_first_token_seconds",
    "headstock_tpot_seconds": "sglang:request_time_per_output_token_seconds",
    "headstock_request_seconds": "sglang:e2e_request_latency_seconds",
    "headstock_prompt_tokens": "sglang:prompt_tokens",
    "headstock_generated_tokens": "sglang:generation_tokens",
    "headstock_requests": "sglang:num_requests",
}


class Metrics:
    """One server's metrics, in a registry of their own; the front door's observer.

    Args:
        model: Label of every metric.
        alias: ``sglang`` exports SGLang's names too.
    """

    def __init__(self, model: str, *, alias: str = "none") -> None:
        self._model = model
        self._has_aliases = alias == "sglang"
        self._registry = registry = CollectorRegistry()
        label = ["model_name"]
        self._received = Counter(
            "headstock_requests", "Completions sent to the engine.", label, registry=registry
        ).labels(model)
        self._ended = Counter(
            "headstock_requests_ended",
            "Completions that ended, by reason.",
            [*label, "reason"],
            registry=registry,
        )
        self._refused = Counter(
            "headstock_requests_refused",
            "Requests refused before the engine saw them, by code.",
            [*label, "code"],
            registry=registry,
        )
        self._answered = Counter(
            "headstock_http_responses",
            "HTTP answers, by route template and status.",
            ["route", "status"],
            registry=registry,
        )
        self._prompt_tokens = Counter(
            "headstock_prompt_tokens", "Prompt tokens accepted.", label, registry=registry
        ).labels(model)
        self._generated = Counter(
            "headstock_generated_tokens", "Tokens generated.", label, registry=registry
        ).labels(model)
        self._ttft = Histogram(
            "headstock_ttft_seconds",
            "From a request to its first token.",
            label,
            buckets=_TTFT_S,
            registry=registry,
        ).labels(model)
        self._tpot = Histogram(
            "headstock_tpot_seconds",
            "Mean time between the tokens of a completion.",
            label,
            buckets=_TPOT_S,
            registry=registry,
        ).labels(model)
        self._total = Histogram(
            "headstock_request_seconds",
            "From a request to its end.",
            label,
            buckets=_TOTAL_S,
            registry=registry,
        ).labels(model)
        self._engine: dict[str, Gauge] = {}

    def accepted(self, num_prompt_tokens: int) -> None:
        """Count a completion that was sent to the engine."""
        self._received.inc()
        self._prompt_tokens.inc(num_prompt_tokens)

    def refused(self, code: str) -> None:
        """Count a request that was refused."""
        self._refused.labels(self._model, code).inc()

    def first_token(self, seconds: float) -> None:
        """Note how long a first token took."""
        self._ttft.observe(seconds)

    def ended(self, kind: str, num_outputs: int, total_s: float, decode_s: float) -> None:
        """Count a completion that is over."""
        self._ended.labels(self._model, kind).inc()
        self._generated.inc(num_outputs)
        self._total.observe(total_s)
        if num_outputs > 1:
            self._tpot.observe(decode_s / (num_outputs - 1))

    def answered(self, route: str, status: int) -> None:
        """Count an HTTP answer; ``route`` is a template, so that labels stay few."""
        self._answered.labels(route, str(status)).inc()

    def render(self, frontdoor: Frontdoor) -> tuple[bytes, str]:
        """Return all metrics as Prometheus reads them, and the media type."""
        self._read_engine(frontdoor)
        text = generate_latest(self._registry)
        if self._has_aliases:
            text += _aliased(text.decode()).encode()
        return text, CONTENT_TYPE_LATEST

    def _read_engine(self, frontdoor: Frontdoor) -> None:
        status = frontdoor.status
        self._set("headstock_ready", "Whether requests are taken.", float(frontdoor.is_ready))
        self._set("headstock_requests_live", "Requests of this process.", frontdoor.num_live)
        self._set("headstock_engine_starts", "Times the engine got ready.", status.num_starts)
        state = status.state
        if state is None:
            return
        self._set("headstock_requests_running", "Requests in the step.", state.running)
        self._set("headstock_requests_waiting", "Requests that wait.", state.waiting)
        self._set("headstock_steps", "Steps the engine settled.", state.steps)
        self._set("headstock_pages_free", "KV pages that nobody holds.", state.free_pages)
        self._set("headstock_pages_cached", "KV pages kept for prefixes.", state.cached_pages)
        self._set("headstock_pages_total", "KV pages there are.", state.total_pages)
        used = state.total_pages - state.free_pages - state.cached_pages
        share = used / state.total_pages if state.total_pages else 0.0
        self._set("headstock_cache_usage_ratio", "Share of pages in use by requests.", share)
        for name, value in state.totals.items():
            self._set(f"headstock_engine_{name}", "Total that the engine counts.", value)

    def _set(self, name: str, text: str, value: float) -> None:
        gauge = self._engine.get(name)
        if gauge is None:
            gauge = Gauge(name, text, ["model_name"], registry=self._registry)
            self._engine[name] = gauge
        gauge.labels(self._model).set(value)


def _aliased(text: str) -> str:
    """Return the lines of ``text`` whose metric has another name elsewhere, under that name."""
    lines: list[str] = []
    for line in text.splitlines():
        head = line.split(" ")
        at = 2 if line.startswith("#") else 0
        name = head[at].partition("{")[0]
        stem = name
        for suffix in ("_total", "_bucket", "_sum", "_count", "_created"):
            if name.removesuffix(suffix) in _ALIASES and name.endswith(suffix):
                stem = name.removesuffix(suffix)
        if stem in _ALIASES:
            renamed = name.replace(stem, _ALIASES[stem], 1)
            head[at] = head[at].replace(name, renamed, 1)
            lines.append(" ".join(head))
    return "\n".join(lines) + "\n"

"""What is counted: the engine's own figures, read when scraped, and each request's times."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Literal, Protocol

from prometheus_client import Counter, Histogram, Metric, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector, CollectorRegistry

from headstock.observe.aliases import SGLANG, AliasCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 50, 100, 200, 400)
_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.5, 1, 2, 4, 8)
_REQUEST_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 80, 150, 300, 600, 1200, 2400)
_QUEUE_S = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class EngineFigures(Protocol):
    """The engine's counters; ``wire.messages.State`` has them."""

    @property
    def running(self) -> int:
        """Requests being computed."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        ...

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing."""
        ...

    @property
    def cached_pages(self) -> int:
        """Pages that only the cache holds."""
        ...

    @property
    def total_pages(self) -> int:
        """Pages there are."""
        ...

    @property
    def totals(self) -> Mapping[str, float]:
        """Monotonic counters by name."""
        ...


class Metrics:
    """The metrics of one API process. It is an observer of the front door.

    Args:
        model_name: Label of every metric.
        figures: Returns the engine's latest figures, or None while there are none.
        alias: Export them under another engine's names too.
    """

    def __init__(
        self,
        model_name: str,
        figures: Callable[[], EngineFigures | None],
        alias: Literal["none", "sglang"] = "none",
    ) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._registry.register(_EngineCollector(model_name, figures))
        self._ended = self._counter("requests", "Requests that ended, by reason", "reason")
        self._refused = self._counter("refused_requests", "Requests refused, by error code", "code")
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From the request to its first token", _FIRST_TOKEN_S
        )
        self._token = _Intervals(
            "inter_token_latency_seconds", "Between a request's tokens", model_name, _TOKEN_S
        )
        self._registry.register(self._token)
        self._mean_token = self._histogram(
            "time_per_output_token_seconds", "A request's mean time between tokens", _TOKEN_S
        )
        self._request = self._histogram("request_seconds", "A request, whole", _REQUEST_S)
        self._queue = self._histogram("queue_seconds", "Waiting for admission", _QUEUE_S)
        self._prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self._output = self._histogram("request_output_tokens", "Tokens of an output", _TOKENS)
        self._aliases = CollectorRegistry()
        if alias == "sglang":
            self._aliases.register(AliasCollector(self._registry, SGLANG))

    def accepted(self, num_prompt_tokens: int) -> None:
        """Note a completion that was sent to the engine."""
        self._prompt.observe(num_prompt_tokens)

    def refused(self, code: str) -> None:
        """Note a request that the engine never saw; ``code`` is one of a few stable names."""
        self._refused.labels(self._model_name, code).inc()

    def first_token(self, seconds: float) -> None:
        """Note the time to a completion's first token."""
        self._first_token.observe(seconds)

    def next_tokens(self, count: int, seconds: float) -> None:
        """Note ``count`` tokens that came together, ``seconds`` after those before."""
        self._token.observe(seconds / count, count)

    def queued(self, seconds: float) -> None:
        """Note how long a request waited for admission."""
        self._queue.observe(seconds)

    def ended(self, kind: str, num_outputs: int, total_s: float, decode_s: float) -> None:
        """Note the end of a completion.

        Args:
            kind: Of its finish reason.
            num_outputs: Tokens it made.
            total_s: From the request to the end. Seconds.
            decode_s: From the first token to the end. Seconds.
        """
        self._ended.labels(self._model_name, kind).inc()
        self._request.observe(total_s)
        self._output.observe(num_outputs)
        if num_outputs > 1:
            self._mean_token.observe(decode_s / (num_outputs - 1))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format, of :data:`CONTENT_TYPE`."""
        return generate_latest(self._registry) + generate_latest(self._aliases)

    def _counter(self, name: str, text: str, label: str) -> Counter:
        labels = ("model_name", label)
        return Counter(f"headstock_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"headstock_{name}", text, ("model_name",), buckets=buckets, registry=self._registry
        )
        return histogram.labels(self._model_name)


class _Intervals(Collector):
    """A histogram of what every token of every stream adds to: a list, no lock, one thread."""

    def __init__(self, name: str, text: str, model_name: str, bounds: tuple[float, ...]) -> None:
        self._name = f"headstock_{name}"
        self._text = text
        self._model_name = model_name
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, count: int) -> None:
        """Add ``count`` intervals of ``seconds`` each."""
        self._counts[bisect_left(self._bounds, seconds)] += count
        self._sum += seconds * count

    def collect(self) -> Iterable[Metric]:
        """Yield the histogram."""
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        family = HistogramMetricFamily(self._name, self._text, labels=["model_name"])
        family.add_metric([self._model_name], buckets, self._sum)
        yield family


class _EngineCollector(Collector):
    """Reads the engine's figures when metrics are asked for: between, they cost nothing."""

    def __init__(self, model_name: str, figures: Callable[[], EngineFigures | None]) -> None:
        self._model_name = model_name
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """Yield gauges and counters; only ``headstock_engine_up`` while there is no engine."""
        figures = self._figures()
        yield self._gauge("engine_up", "1 when the engine is up", float(figures is not None))
        if figures is None:
            return
        yield self._gauge("running_requests", "Requests being computed", figures.running)
        yield self._gauge("waiting_requests", "Requests that wait", figures.waiting)
        yield self._gauge("kv_pages", "Pages there are", figures.total_pages)
        yield self._gauge("kv_free_pages", "Pages that hold nothing", figures.free_pages)
        yield self._gauge("kv_cached_pages", "Pages only the cache holds", figures.cached_pages)
        used = figures.total_pages - figures.free_pages - figures.cached_pages
        usage = used / figures.total_pages if figures.total_pages else 0.0
        yield self._gauge("kv_usage_ratio", "Share of pages that requests hold", usage)
        yield self._gauge("cache_hit_ratio", "Share of prompt tokens cached", _hits(figures.totals))
        for name, value in sorted(figures.totals.items()):
            yield self._counter(name, value)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"headstock_{name}", text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counter(self, name: str, value: float) -> Metric:
        text = f"{name.replace('_', ' ').capitalize()} since the engine started"
        family = CounterMetricFamily(f"headstock_{name}", text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family


def _hits(totals: Mapping[str, float]) -> float:
    prompt_tokens = totals.get("prompt_tokens", 0.0)
    return totals.get("cached_tokens", 0.0) / prompt_tokens if prompt_tokens else 0.0

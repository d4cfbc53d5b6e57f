"""Names that other engines' dashboards, routers and autoscalers look for."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.registry import Collector, CollectorRegistry

SGLANG = {
    "headstock_running_requests": "sglang:num_running_reqs",
    "headstock_waiting_requests": "sglang:num_queue_reqs",
    "headstock_kv_usage_ratio": "sglang:token_usage",
    "headstock_cache_hit_ratio": "sglang:cache_hit_rate",
    "headstock_prompt_tokens": "sglang:prompt_tokens",
    "headstock_generation_tokens": "sglang:generation_tokens",
    "headstock_cached_tokens": "sglang:cached_tokens",
    "headstock_retractions": "sglang:num_retracted_requests",
    "headstock_requests_submitted": "sglang:num_requests",
    "headstock_requests_abort": "sglang:num_aborted_requests",
    "headstock_evicted_pages": "sglang:evicted_pages",
    "headstock_time_to_first_token_seconds": "sglang:time_to_first_token_seconds",
    "headstock_inter_token_latency_seconds": "sglang:inter_token_latency_seconds",
    "headstock_time_per_output_token_seconds": "sglang:request_time_per_output_token_seconds",
    "headstock_request_seconds": "sglang:e2e_request_latency_seconds",
    "headstock_queue_seconds": "sglang:queue_time_seconds",
    "headstock_request_prompt_tokens": "sglang:prompt_tokens_histogram",
    "headstock_request_output_tokens": "sglang:generation_tokens_histogram",
}
"""Ours to SGLang 0.5's; counters without their ``_total``."""


class AliasCollector(Collector):
    """Exports the metrics of ``registry`` a second time under other names."""

    def __init__(self, registry: CollectorRegistry, names: dict[str, str]) -> None:
        self._registry = registry
        self._names = names

    def collect(self) -> Iterable[Metric]:
        """Yield each metric that has another name, under that name."""
        for metric in self._registry.collect():
            name = self._names.get(metric.name)
            if name is None:
                continue
            alias = Metric(name, metric.documentation, metric.type)
            for sample in metric.samples:
                suffix = sample.name.removeprefix(metric.name)
                alias.add_sample(name + suffix, sample.labels, sample.value)
            yield alias

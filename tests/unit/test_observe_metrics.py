"""The metrics, as a scraper sees them."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headstock.observe.aliases import SGLANG
from headstock.observe.metrics import Metrics
from headstock.wire.messages import State

STATE = State(
    steps=9,
    running=3,
    waiting=2,
    free_pages=50,
    cached_pages=30,
    total_pages=100,
    totals={
        "prompt_tokens": 200.0,
        "cached_tokens": 50.0,
        "generation_tokens": 70.0,
        "retractions": 1.0,
        "requests_submitted": 8.0,
        "requests_abort": 1.0,
        "evicted_pages": 4.0,
    },
)


def scrape(metrics: Metrics) -> dict[str, float]:
    """Values by sample name; of several label sets, the sum."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            assert sample.labels["model_name"] == "m"
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def made(state: State | None = STATE, **options: Any) -> Metrics:
    return Metrics("m", lambda: state, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("headstock_engine_up", 1),
        ("headstock_running_requests", 3),
        ("headstock_waiting_requests", 2),
        ("headstock_kv_usage_ratio", 0.2),
        ("headstock_cache_hit_ratio", 0.25),
        ("headstock_generation_tokens_total", 70),
    ],
)
def test_the_engines_figures_are_exported(name: str, value: float) -> None:
    assert scrape(made())[name] == pytest.approx(value)


def test_without_an_engine_only_that_is_said() -> None:
    values = scrape(made(None))
    assert values["headstock_engine_up"] == 0
    assert "headstock_running_requests" not in values


def test_a_requests_times_are_in_histograms() -> None:
    metrics = made()
    metrics.accepted(12)
    metrics.queued(0.01)
    metrics.first_token(0.2)
    metrics.next_tokens(4, 0.4)
    metrics.ended("stop", 5, total_s=0.6, decode_s=0.4)
    values = scrape(metrics)
    assert values["headstock_request_prompt_tokens_sum"] == 12
    assert values["headstock_queue_seconds_count"] == 1
    assert values["headstock_time_to_first_token_seconds_sum"] == pytest.approx(0.2)
    assert values["headstock_inter_token_latency_seconds_count"] == 4
    assert values["headstock_inter_token_latency_seconds_sum"] == pytest.approx(0.4)
    assert values["headstock_time_per_output_token_seconds_sum"] == pytest.approx(0.1)
    assert values["headstock_request_seconds_count"] == 1
    assert values["headstock_requests_total"] == 1


def test_one_token_has_no_time_between_tokens() -> None:
    metrics = made()
    metrics.ended("stop", 1, total_s=0.6, decode_s=0.0)
    assert scrape(metrics)["headstock_time_per_output_token_seconds_count"] == 0


def test_refusals_are_counted_by_code() -> None:
    metrics = made()
    metrics.refused("queue_full")
    assert 'headstock_refused_requests_total{code="queue_full",model_name="m"} 1.0' in (
        metrics.render().decode()
    )


def test_aliases_are_off_by_default() -> None:
    assert "sglang:" not in made().render().decode()


def test_every_alias_has_the_value_of_its_metric() -> None:
    metrics = made(alias="sglang")
    metrics.first_token(0.3)
    values = scrape(metrics)
    assert values["sglang:num_running_reqs"] == 3
    assert values["sglang:token_usage"] == pytest.approx(0.2)
    assert values["sglang:generation_tokens_total"] == 70
    assert values["sglang:time_to_first_token_seconds_sum"] == pytest.approx(0.3)
    exported = {name.split(":", 1)[1] for name in values if name.startswith("sglang:")}
    for alias in SGLANG.values():
        assert any(name.startswith(alias.split(":")[1]) for name in exported), alias


def test_two_sets_of_metrics_live_side_by_side() -> None:
    one, other = made(), made()
    one.first_token(1.0)
    assert scrape(other)["headstock_time_to_first_token_seconds_count"] == 0

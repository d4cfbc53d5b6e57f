"""What a server says that it can do."""

from __future__ import annotations

from headstock.config import EngineSettings
from headstock.config.exclusions import EXCLUSIONS, off_for
from headstock.config.schema import ParallelSettings, SpeculationSettings
from headstock.server.capabilities import capabilities
from headstock.wire.steps import PageGroup, RunnerLimits

GROUP = PageGroup("full", 16, 1024, 100)


def features(settings: EngineSettings = EngineSettings(), **limits: object) -> dict[str, object]:
    found = capabilities(settings, RunnerLimits(4, 256, 512, 1000, 1, [GROUP], **limits))
    assert found["is_known"]
    return found["features"]


def test_a_feature_is_told_with_its_facts_where_it_is_on() -> None:
    speculation = SpeculationSettings(speculation="ngram", num_drafts=3)
    on = features(EngineSettings(speculation=speculation), max_drafts=3)
    assert on["speculation"] == {"drafter": "ngram", "num_drafts": 3}
    assert features()["speculation"] is None


def test_a_model_of_vectors_neither_generates_nor_shares_prefixes() -> None:
    found = features(yields=("pool",), is_causal=False)
    assert found["generation"] is None
    assert found["pooling"] == {}
    assert found["prefix cache"] is None


def test_nothing_is_claimed_before_the_engine_has_started() -> None:
    found = capabilities(EngineSettings(), None)
    assert (found["is_known"], found["features"]) == (False, {})
    assert len(found["exclusions"]) == len(EXCLUSIONS)


def test_ranks_are_told_where_there_are_several() -> None:
    assert features()["several ranks"] is None
    parallel = ParallelSettings(tp_size=2)
    assert features(EngineSettings(parallel=parallel))["several ranks"] == {"count": 2}


def test_every_exclusion_is_told_once_with_a_reason() -> None:
    pairs = [(entry.feature, entry.other) for entry in EXCLUSIONS]
    assert len(set(pairs)) == len(pairs)
    assert all(entry.reason.endswith(".") for entry in EXCLUSIONS)
    assert off_for("speculation") == {"masks"}

"""Prompts with images through the whole engine, against transformers on the same weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import headstock
from tests.vision.claims import (
    CASES,
    COUNT,
    SETTINGS,
    ask,
    ask_all,
    check_hit,
    check_logprobs,
    check_repeat,
    check_retraction,
)
from tests.vision.conftest import VisionModel


@pytest.fixture(scope="module")
def wanted(vl: VisionModel) -> dict[str, list[int]]:
    return {name: vl.generate(*case, COUNT) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def engine(vl: VisionModel) -> Iterator[headstock.Engine]:
    with headstock.Engine(model=str(vl.path), **SETTINGS) as engine:
        yield engine


@pytest.mark.parametrize("name", CASES)
def test_greedy_ids_are_those_of_transformers(
    engine: headstock.Engine, wanted: dict[str, list[int]], name: str
) -> None:
    engine.flush_cache()
    result = ask(engine, CASES[name])
    assert result["meta_info"]["cached_tokens"] == 0
    assert result["output_ids"] == wanted[name]


@pytest.mark.parametrize("name", CASES)
def test_logprobs_of_the_prompt_are_those_of_transformers(
    engine: headstock.Engine, vl: VisionModel, name: str
) -> None:
    check_logprobs(engine, vl, name)


def test_chunks_and_neighbours_change_nothing(
    vl: VisionModel, wanted: dict[str, list[int]]
) -> None:
    """Chunks of 7 tokens end within images; all requests run beside each other."""
    settings = SETTINGS | {"chunked_prefill_size": 7, "prefix_cache": False}
    with headstock.Engine(model=str(vl.path), **settings) as engine:
        assert ask_all(engine, list(CASES.values())) == list(wanted.values())


@pytest.mark.parametrize("extra", range(8))
def test_a_hit_may_end_before_within_and_after_an_image(
    engine: headstock.Engine, vl: VisionModel, extra: int
) -> None:
    check_hit(engine, vl, extra, num_tokens=12)


def test_a_repeated_image_is_found_and_another_never_is(
    engine: headstock.Engine, vl: VisionModel, wanted: dict[str, list[int]]
) -> None:
    check_repeat(engine, vl, wanted, num_tokens=12)


def test_a_retraction_changes_nothing(vl: VisionModel, wanted: dict[str, list[int]]) -> None:
    check_retraction(vl, wanted, max_model_len=48, cache_tokens=60, chunked_prefill_size=24)


def test_a_small_store_of_features_is_enough(vl: VisionModel, wanted: dict[str, list[int]]) -> None:
    """The store holds one image at a time: requests wait for each other, and all end."""
    settings = SETTINGS | {"encoder_tokens": 16, "prefix_cache": False}
    with headstock.Engine(model=str(vl.path), **settings) as engine:
        assert ask_all(engine, list(CASES.values())) == list(wanted.values())

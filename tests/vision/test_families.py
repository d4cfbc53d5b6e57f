"""Images in models whose decoder keeps states or has experts: Qwen3.5, and Qwen3-VL's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import headstock
from tests.vision.claims import CASES, COUNT, IMAGE, ONE, SETTINGS, ask, ask_all
from tests.vision.conftest import VisionModel, make_model, picture


@pytest.fixture(scope="module", params=["Qwen3_5", "Qwen3_5Moe", "Qwen3VLMoe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VisionModel:
    return make_model(request.param, tmp_path_factory.mktemp("hybrid") / "tiny")


@pytest.fixture(scope="module")
def engine(model: VisionModel) -> Iterator[headstock.Engine]:
    with headstock.Engine(model=str(model.path), **SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="module")
def wanted(model: VisionModel) -> list[list[int]]:
    return [model.generate(*case, COUNT) for case in CASES.values()]


def test_greedy_ids_are_those_of_transformers(
    engine: headstock.Engine, wanted: list[list[int]]
) -> None:
    engine.flush_cache()
    assert ask_all(engine, list(CASES.values())) == wanted


def test_logprobs_of_the_prompt_are_those_of_transformers(
    engine: headstock.Engine, model: VisionModel
) -> None:
    engine.flush_cache()
    case = CASES["an image, text, an image"]
    result = ask(engine, case, return_logprob=True, logprob_start_len=0)
    got = [entry[0] for entry in result["meta_info"]["input_token_logprobs"][1:]]
    np.testing.assert_allclose(got, model.logprobs(*case).numpy(), rtol=1e-4, atol=1e-4)


def test_a_state_kept_before_or_within_an_image_is_gone_on_from(
    engine: headstock.Engine, model: VisionModel
) -> None:
    engine.flush_cache()
    lead = list(range(70, 79))
    ask(engine, ([*lead, *IMAGE, 80, 81, 82, 83, 84], [ONE]))
    for tail in ([80, 81, 90, 91], [80, 81, 90, 92, 93, 94, 95], [80, 81, 90, 92, 93, 94, 96]):
        case = ([*lead, *IMAGE, *tail], [ONE])
        assert ask(engine, case)["output_ids"] == model.generate(*case, COUNT)
    other = ([*lead, *IMAGE, 80, 81, 90, 91], [picture(24, 32, 9)])
    assert ask(engine, other)["output_ids"] == model.generate(*other, COUNT)


def test_the_hub_has_matrices_of_experts_with_inputs_first(tmp_path: Path) -> None:
    model = make_model("Qwen3VLMoe", tmp_path / "tiny")
    file = model.path / "model.safetensors"
    tensors = load_file(file)
    stacked = [name for name in tensors if ".experts." in name]
    assert stacked
    for name in stacked:
        tensors[name] = tensors[name].transpose(1, 2).contiguous()
    save_file(tensors, file, {"format": "pt"})
    case = CASES["one image"]
    with headstock.Engine(model=str(model.path), **SETTINGS) as engine:
        assert ask(engine, case)["output_ids"] == model.generate(*case, COUNT)


def test_chunks_change_nothing(model: VisionModel, wanted: list[list[int]]) -> None:
    with headstock.Engine(
        model=str(model.path), **SETTINGS | {"chunked_prefill_size": 7}
    ) as engine:
        assert ask_all(engine, list(CASES.values())) == wanted

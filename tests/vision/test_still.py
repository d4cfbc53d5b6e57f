"""Models that see images token by token, through the whole engine, against transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional
from transformers.image_utils import ChannelDimension
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.pixtral.image_processing_pil_pixtral import (
    get_resize_output_image_size as get_rows_size,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import (
    SmolVLMImageProcessorPil,
    get_resize_output_image_size,
)

import headstock
from headstock.errors import CheckpointError, RequestError, UnsupportedError
from headstock.graph.build import build_model
from headstock.graph.vision import place_patches
from headstock.multimodal.families import find_family
from headstock.multimodal.patches import bounded_size
from headstock.multimodal.process import RefusedError, to_pieces
from headstock.multimodal.tiles import canvas_plan, fit_plan, split_plan
from headstock_models.glm4v import resample_cubic
from headstock_models.llava import LlavaForConditionalGeneration
from tests.models.harness import context
from tests.vision.claims import (
    CASES,
    COUNT,
    IMAGE,
    ONE,
    SETTINGS,
    TWO,
    ask,
    ask_all,
    check_hit,
    check_logprobs,
    check_retraction,
)
from tests.vision.conftest import PAD, picture
from tests.vision.still import (
    NEW,
    OLD,
    StillModel,
    ask_as_client,
    chat_ids,
    features,
    rewrite,
    text_of,
)
from tests.vision.still_families import MAKERS

WEIGHTS = "model.safetensors"
IMAGE_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "image_sizes",
    "batch_num_images",
    "pixel_attention_mask",
)
KINDS = ("glm4v", "llava-next", "mistral3", "qwen2.5-vl", "smolvlm")
"""A family of each way to cut and mark an image: grids, mosaics, rows, windows, splits."""
of_kinds = pytest.mark.parametrize(
    "model",
    [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in MAKERS],
    indirect=True,
)
"""Tries a family of each kind, and all of them in the long run."""


@pytest.fixture(scope="module", params=MAKERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StillModel:
    return MAKERS[request.param](tmp_path_factory.mktemp("still") / "tiny-still")


@pytest.fixture(scope="module")
def engine(model: StillModel) -> Iterator[headstock.Engine]:
    with headstock.Engine(model=str(model.path), **SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="module")
def wanted(model: StillModel) -> dict[str, list[int]]:
    return {name: model.generate(*case, COUNT) for name, case in CASES.items()}


@pytest.mark.parametrize("images", [[ONE, TWO], [ONE], [TWO]])
def test_features_of_images_are_those_of_transformers(
    model: StillModel, images: list[Image.Image]
) -> None:
    given = model.prepare([PAD] * len(images), images)
    given = {name: value for name, value in given.items() if name in IMAGE_INPUTS}
    want = model.features(**given)
    torch.testing.assert_close(features(model.path, images), want, rtol=1e-4, atol=1e-4)


def test_greedy_ids_are_those_of_transformers(
    engine: headstock.Engine, wanted: dict[str, list[int]]
) -> None:
    engine.flush_cache()
    assert ask_all(engine, list(CASES.values())) == list(wanted.values())


@pytest.mark.parametrize("name", CASES)
def test_logprobs_of_the_prompt_are_those_of_transformers(
    engine: headstock.Engine, model: StillModel, name: str
) -> None:
    check_logprobs(engine, model, name)


@of_kinds
def test_chunks_and_neighbours_change_nothing(
    model: StillModel, wanted: dict[str, list[int]]
) -> None:
    """Chunks of 7 tokens end within images; all requests run beside each other."""
    settings = SETTINGS | {"chunked_prefill_size": 7, "prefix_cache": False}
    with headstock.Engine(model=str(model.path), **settings) as engine:
        assert ask_all(engine, list(CASES.values())) == list(wanted.values())


@of_kinds
@pytest.mark.parametrize("extra", [0, 3])
def test_a_hit_may_end_before_within_and_after_an_image(
    engine: headstock.Engine, model: StillModel, extra: int
) -> None:
    check_hit(engine, model, extra, num_tokens=9)
    lead = list(range(70, 70 + extra))
    pixels = ([*lead, *IMAGE, 80, 81, 90, 91], [picture(24, 32, 9)])
    assert ask(engine, pixels)["meta_info"]["cached_tokens"] <= len(lead) + 1


@of_kinds
def test_a_retraction_changes_nothing(model: StillModel, wanted: dict[str, list[int]]) -> None:
    check_retraction(model, wanted, **model.room)


@of_kinds
@pytest.mark.parametrize("style", [OLD, NEW])
def test_old_and_new_names_are_taken(
    model: StillModel, tmp_path: Path, wanted: dict[str, list[int]], style: str
) -> None:
    rewrite(model.path, tmp_path, style)
    configurations = [(folder / "config.json").read_text() for folder in (tmp_path, model.path)]
    names = [load_file(folder / WEIGHTS).keys() for folder in (tmp_path, model.path)]
    if names[0] == names[1] and configurations[0] == configurations[1]:
        pytest.skip("the model was saved with these names, as the other tests read it")
    with headstock.Engine(model=str(tmp_path), **SETTINGS) as engine:
        assert ask(engine, CASES["one image"])["output_ids"] == wanted["one image"]


@pytest.mark.slow
def test_two_ranks_draw_the_ids_of_transformers(
    model: StillModel, wanted: dict[str, list[int]]
) -> None:
    names = ["text alone", "one image", "an image, text, an image"]
    settings = SETTINGS | {"tp_size": 2, "chunked_prefill_size": 16}
    with headstock.Engine(model=str(model.path), **settings) as engine:
        assert ask_all(engine, [CASES[name] for name in names]) == [wanted[n] for n in names]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("crop_size", {"height": 8, "width": 16}, "cut to"),
        ("do_center_crop", False, "cut to"),
        ("size", {"shortest_edge": 20}, "resized to"),
    ],
)
def test_processors_that_do_otherwise_are_refused(
    tmp_path: Path, key: str, value: object, named: str
) -> None:
    model = MAKERS["llava"](tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    config = json.loads((model.path / "config.json").read_text())
    with pytest.raises(CheckpointError, match=named):
        find_family(config, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vision_feature_layer", [-2, -1]),
        ("vision_feature_layer", -9),
        ("vision_feature_select_strategy", "full"),
        ("multimodal_projector_bias", False),
    ],
)
def test_configurations_that_ask_for_more_are_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    config = json.loads((MAKERS["llava"](tmp_path).path / "config.json").read_text())
    with pytest.raises(UnsupportedError, match=key):
        build_model(LlavaForConditionalGeneration, context(), config | {key: value})


def test_a_tokenizer_without_a_mark_after_rows_is_refused(tmp_path: Path) -> None:
    model = MAKERS["mistral3"](tmp_path)
    (model.path / "processor_config.json").write_text(json.dumps({"image_break_token": "~~"}))
    with pytest.raises(CheckpointError, match="2 tokens of '~~'"):
        headstock.Engine(model=str(model.path), **SETTINGS)


@pytest.mark.parametrize(
    ("size", "want"),
    [((24, 32), (24, 32)), ((25, 32), (32, 32)), ((64, 10), (32, 8)), ((1, 1), (8, 8))],
)
def test_sizes_under_a_bound_are_those_of_transformers(
    size: tuple[int, int], want: tuple[int, int]
) -> None:
    assert bounded_size(*size, unit=8, longest=32) == want
    blank = np.zeros((3, *size), np.uint8)
    assert get_rows_size(blank, 32, 8, ChannelDimension.FIRST) == want


@pytest.mark.parametrize(
    "name",
    [
        "llava-next",
        "mistral3",
        "qwen2.5-vl",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "glm4v",
                "glm-ocr",
                "idefics3",
                "internvl",
                "kimi-k2.5",
                "llama4",
                "llava",
                "llava-onevision",
            )
        ),
    ],
)
def test_a_chat_with_images_answers_as_transformers(tmp_path: Path, name: str) -> None:
    model = MAKERS[name](tmp_path / "tiny-still")
    images = [picture(24, 32, 3), picture(16, 40, 4)]
    ids = chat_ids(model, "What is this?", 2, ("", ""))
    content, num_prompt = ask_as_client(model, "What is this?", images, 8)
    assert content == text_of(model, model.generate(ids, images, 8))
    assert num_prompt == model.prepare(ids, images)["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("file", "key", "value", "named"),
    [
        ("preprocessor_config.json", "size", {"height": 8, "width": 12}, "tiles are resized to"),
        ("preprocessor_config.json", "image_grid_pinpoints", [[12, 24]], "other image_grid"),
        ("config.json", "vision_aspect_ratio", "square", "vision_aspect_ratio is 'square'"),
    ],
)
def test_mosaics_that_do_not_fit_are_refused(
    tmp_path: Path, file: str, key: str, value: object, named: str
) -> None:
    path = MAKERS["llava-onevision"](tmp_path).path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(CheckpointError, match=named):
        find_family(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "value", "named"),
    [
        ("idefics3", "max_image_size", {"longest_edge": 8}, "tiles have"),
        ("idefics3", "size", {"height": 32, "width": 32}, "not to a longest_edge"),
        ("internvl", "size", {"height": 8, "width": 8}, "tiles are resized to"),
        ("llama4", "size", {"height": 8, "width": 8}, "tiles are resized to"),
        ("llama4", "resize_to_max_canvas", True, "resize_to_max_canvas"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, key: str, value: object, named: str
) -> None:
    path = MAKERS[name](tmp_path).path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(CheckpointError, match=named):
        find_family(config, tmp_path)


@pytest.mark.parametrize(
    "size",
    [(24, 32), (40, 16), (333, 500), (500, 333), (8, 8), (1, 90), (4200, 30), (1001, 1000)],
)
@pytest.mark.parametrize(("side", "longest"), [(16, 32), (364, 1456), (512, 2048), (512, 5000)])
def test_splits_are_those_of_transformers(size: tuple[int, int], side: int, longest: int) -> None:
    settings = {"longest": longest, "is_cut": True}
    plan = split_plan(*size, side, settings)
    blank = np.zeros((1, *size), np.uint8)
    assert plan.sizes[0] == get_resize_output_image_size(blank, longest)
    processor = SmolVLMImageProcessorPil()
    asked = {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": side}}
    _, rows, columns = processor.get_number_of_image_patches(*size, asked)
    assert (plan.rows, plan.columns) == (rows, columns)


@pytest.mark.parametrize("size", [(24, 32), (40, 16), (333, 500), (8, 8), (1, 90), (900, 900)])
@pytest.mark.parametrize(("side", "most"), [(16, 4), (448, 12), (100, 7), (448, 1)])
def test_canvases_are_those_of_transformers(size: tuple[int, int], side: int, most: int) -> None:
    plan = canvas_plan(*size, side, {"is_cut": True, "min_tiles": 1, "max_tiles": most})
    columns, rows = get_optimal_tiled_canvas(size, (side, side), 1, most)
    assert (plan.rows * plan.columns or 1) == rows * columns
    if plan.sizes:
        assert (plan.rows, plan.columns) == (rows, columns)


@pytest.mark.parametrize(
    ("size", "shape", "resized_to"),
    [
        ((24, 32), (1, 1), (252, 336)),
        ((200, 300), (1, 1), (224, 336)),
        ((900, 300), (3, 1), (900, 300)),
    ],
)
def test_canvases_that_fit_are_those_of_transformers(
    size: tuple[int, int], shape: tuple[int, int], resized_to: tuple[int, int]
) -> None:
    """``get_best_fit`` and ``get_max_res_without_distortion`` made these of sides of 336, by 5."""
    plan = fit_plan(*size, 336, {"max_tiles": 5})
    assert (plan.rows, plan.columns) == shape
    assert plan.sizes == [resized_to]


@pytest.mark.parametrize("grid", [(1, 4, 4), (1, 2, 6), (1, 10, 8), (1, 5, 5)])
def test_positions_are_resampled_as_pytorch_does(grid: tuple[int, int, int]) -> None:
    side = 5
    table_LD = torch.randn(side**2, 3)
    places_2N = place_patches(grid, 1)
    rows, weights = resample_cubic(places_2N, grid, side)
    got = (table_LD[torch.from_numpy(rows)] * torch.from_numpy(weights)[..., None]).sum(dim=1)
    high, wide = (torch.from_numpy(place) + 0.5 for place in places_2N)
    where = torch.stack((wide / grid[2] * 2 - 1, high / grid[1] * 2 - 1), dim=-1).float()
    want = functional.grid_sample(
        table_LD.T.view(1, 3, side, side),
        where[None, :, None],
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    torch.testing.assert_close(got, want[0, :, :, 0].T, rtol=1e-5, atol=1e-5)


def test_an_image_too_thin_for_a_mosaic_is_refused(tmp_path: Path) -> None:
    model = MAKERS["llava-next"](tmp_path)
    family = find_family(json.loads((tmp_path / "config.json").read_text()), model.path)
    assert family is not None
    settings = family.as_dict() | {"max_tokens": 512}
    settings["mosaic"]["sizes"] = [(24, 36)]
    with pytest.raises(RefusedError, match="thin"):
        to_pieces(picture(1, 150, 1), settings, is_alone=True)
    assert len(to_pieces(ONE, settings, is_alone=True)) == 2


def test_an_image_with_more_tokens_than_the_server_takes_is_refused(tmp_path: Path) -> None:
    model = MAKERS["llava-next"](tmp_path)
    with headstock.Engine(model=str(model.path), **(SETTINGS | {"encoder_tokens": 32})) as engine:
        with pytest.raises(RequestError, match="37 tokens; 32 are allowed"):
            ask(engine, CASES["one image"])
        assert ask(engine, CASES["text alone"])["output_ids"]

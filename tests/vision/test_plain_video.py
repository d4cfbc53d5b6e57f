"""Videos of Qwen2-VL and Qwen2.5-VL: moments without marks, with positions on an axis of time."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import headstock
from headstock.errors import RequestError
from headstock.multimodal.patches import fitting_size, sample_groups
from tests.vision.claims import SETTINGS
from tests.vision.conftest import END, ID_OF, START, data_url, picture
from tests.vision.conftest import PAD as IMAGE_PAD
from tests.vision.still import StillModel, ask_as_client
from tests.vision.still_families import MAKERS, QWEN2_VL_NAMES
from tests.vision.test_video import film, film_url

# By its module's name: the package hides it where torchvision, which resizes, is not installed.
theirs = importlib.import_module("transformers.models.qwen3_vl.video_processing_qwen3_vl")
COUNT = 8
PAD = ID_OF["<|video_pad|>"]
FPS, FILE_FPS = 2.0, 4.0
FEW, MANY = 4, 26
BOUNDS = {"min_pixels": 64, "max_pixels": 1024}


@pytest.mark.parametrize("total", [2, 3, 4, 5, 9, 24, 49, 100, 1001])
@pytest.mark.parametrize("fps", [1.0, 4.0, 24.0, 29.97])
@pytest.mark.parametrize("most", [12, 768])
def test_the_frames_are_those_of_transformers(total: int, fps: float, most: int) -> None:
    """Its module needs ``torchvision``: the rule is written again here, with PyTorch's range."""
    whole = min(most, total) // 2 * 2
    count = math.floor(min(max(total / fps * 2, 4), whole, total) / 2) * 2
    want = torch.arange(0, total, total / count).int().tolist()
    assert sample_groups(total, total / fps, fps=2, least=4, most=most, group=2) == want


@pytest.fixture(scope="module", params=QWEN2_VL_NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StillModel:
    return MAKERS[request.param](tmp_path_factory.mktemp("plain") / "tiny-plain")


@pytest.fixture(scope="module")
def engine(model: StillModel) -> Iterator[headstock.Engine]:
    with headstock.Engine(model=str(model.path), **SETTINGS) as engine:
        yield engine


def prepared(frames: Sequence[Image.Image]) -> tuple[torch.Tensor, list[int], float]:
    """Return patches, grid and seconds of a moment as transformers has them, resized by PIL."""
    seconds = len(frames) / FILE_FPS
    chosen = sample_groups(len(frames), seconds, fps=FPS, least=4, most=768, group=2)
    height, width = fitting_size(frames[0].height, frames[0].width, unit=8, **BOUNDS)
    resized = [frames[i].resize((width, height), Image.Resampling.BICUBIC) for i in chosen]
    video = torch.from_numpy(np.stack([np.asarray(f).transpose(2, 0, 1) for f in resized]))
    patches, *grid = theirs.Qwen3VLVideoProcessor.patchify(
        None, video[None].float(), patch_size=4, merge_size=2, temporal_patch_size=2
    )
    mean = torch.tensor(OPENAI_CLIP_MEAN).repeat_interleave(patches.shape[-1] // 3)
    std = torch.tensor(OPENAI_CLIP_STD).repeat_interleave(patches.shape[-1] // 3)
    return (patches[0] / 255 - mean) / std, grid, 2 / (len(chosen) / seconds)


def given_of(
    model: StillModel, ids: Sequence[int], frames: Sequence[Image.Image], image: Image.Image | None
) -> dict[str, Any]:
    """Return what the oracle is given."""
    patches, grid, seconds = prepared(frames)
    left = {PAD: [math.prod(grid) // 4]}
    given: dict[str, Any] = {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([grid])}
    if image is not None:
        made = model.prepare([IMAGE_PAD], [image])
        given |= {name: made[name] for name in ("pixel_values", "image_grid_thw")}
        left[IMAGE_PAD] = [made["input_ids"].shape[1]]
    whole: list[int] = []
    for token in ids:
        whole += [token] * left[token].pop(0) if token in left else [token]
    types = [2 if token == PAD else int(token == IMAGE_PAD) for token in whole]
    given["input_ids"] = torch.tensor([whole])
    given["position_ids"] = positions(model, types, given, seconds)
    return given


def positions(
    model: StillModel, types: Sequence[int], given: dict[str, Any], seconds: float
) -> torch.Tensor:
    """Return positions by the paper's rule: what follows is one further than the furthest."""
    per_second = getattr(model.oracle.config.vision_config, "tokens_per_second", None)
    interval = 1 if per_second is None else per_second * seconds
    found: list[torch.Tensor] = []
    start = place = 0
    while place < len(types):
        kind = types[place]
        if not kind:
            found.append(torch.full((3, 1), start))
            start, place = start + 1, place + 1
            continue
        grid = given["video_grid_thw" if kind == 2 else "image_grid_thw"][0].tolist()
        shape = (grid[0], grid[1] // 2, grid[2] // 2)
        axes = torch.meshgrid(*(torch.arange(extent) for extent in shape), indexing="ij")
        along = torch.stack(axes).reshape(3, -1)
        along[0] = (along[0] * (interval if kind == 2 else 1)).long()
        found.append(along + start)
        start, place = start + int(along.max()) + 1, place + along.shape[1]
    return torch.cat(found, dim=1)[:, None]


def drawn(model: StillModel, given: dict[str, Any]) -> list[int]:
    """Return the ids that the oracle draws greedily, each by a forward pass of all before."""
    ids: list[int] = []
    for _ in range(COUNT):
        with torch.no_grad():
            ids.append(int(model.oracle(**given, use_cache=False).logits[0, -1].argmax()))
        given["input_ids"] = torch.cat((given["input_ids"], torch.tensor([[ids[-1]]])), dim=1)
        last = given["position_ids"].max() + 1
        more = torch.full((3, 1, 1), int(last))
        given["position_ids"] = torch.cat((given["position_ids"], more), dim=2)
    return ids


def ask(engine: headstock.Engine, ids: Sequence[int], *films: Any, **more: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": COUNT, "ignore_eos": True}
    urls = [film_url(frames) for frames in films]
    return engine.generate(input_ids=list(ids), video_data=urls, sampling_params=sampling, **more)


VIDEO = [START, PAD, END]


@pytest.mark.parametrize("count", [FEW, 7, MANY])
def test_a_video_draws_the_ids_of_transformers(
    engine: headstock.Engine, model: StillModel, count: int
) -> None:
    engine.flush_cache()
    ids = [70, *VIDEO, 71, 72]
    given = given_of(model, ids, film(count), None)
    num_prompt = given["input_ids"].shape[1]
    result = ask(engine, ids, film(count))
    assert result["meta_info"]["prompt_tokens"] == num_prompt
    assert result["output_ids"] == drawn(model, given)


def test_a_short_video_has_the_positions_of_transformers(
    engine: headstock.Engine, model: StillModel
) -> None:
    """Its rule is another where a video is longer than wide: then the paper's counts."""
    ids = [70, *VIDEO, 71, 72]
    given = given_of(model, ids, film(FEW), None)
    ours = given.pop("position_ids")
    types = 2 * (given["input_ids"] == PAD).int()
    seconds = torch.tensor([prepared(film(FEW))[2]])
    found, _ = model.oracle.model.get_rope_index(
        given["input_ids"],
        mm_token_type_ids=types,
        video_grid_thw=given["video_grid_thw"],
        second_per_grid_ts=seconds,
    )
    assert torch.equal(found, ours)


def test_an_image_beside_a_video_and_chunks_change_nothing(model: StillModel) -> None:
    """Chunks of 7 tokens end within moments."""
    image, frames = picture(24, 32, 50), film(MANY)
    ids = [70, START, IMAGE_PAD, END, *VIDEO, 71, 72]
    want = drawn(model, given_of(model, ids, frames, image))
    settings: dict[str, Any] = SETTINGS | {"chunked_prefill_size": 7}
    with headstock.Engine(model=str(model.path), **settings) as engine:
        results = [ask(engine, ids, frames, image_data=[data_url(image)]) for _ in range(2)]
    assert [result["output_ids"] for result in results] == [want, want]
    assert results[1]["meta_info"]["cached_tokens"] > 60


def test_the_same_frames_at_other_times_are_no_hit(
    engine: headstock.Engine, model: StillModel
) -> None:
    """Keys depend on positions: twice as slow is another video where time counts."""
    frames = film(FEW)
    ids = [*VIDEO, 71, 72]
    engine.flush_cache()
    ask(engine, ids, frames)
    sampling = {"temperature": 0, "max_new_tokens": 1}
    slow = engine.generate(
        input_ids=ids, video_data=[film_url(frames, duration=500)], sampling_params=sampling
    )
    again = ask(engine, ids, frames)["meta_info"]["cached_tokens"]
    moment = prepared(frames)[1][1] * prepared(frames)[1][2] // 4
    has_time = hasattr(model.oracle.config.vision_config, "tokens_per_second")
    assert slow["meta_info"]["cached_tokens"] <= (1 + moment if has_time else again)
    assert again > moment


def test_a_chat_with_a_video_answers_as_transformers(model: StillModel) -> None:
    frames = film(FEW)
    content, num_prompt = ask_as_client(model, "Hm?", [], COUNT, videos=[film_url(frames)])
    parts = [{"type": "text", "text": "Hm?"}, {"type": "video"}]
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    given = given_of(model, ids, frames, None)
    assert num_prompt == given["input_ids"].shape[1]
    want = drawn(model, given)
    assert content == model.tokenizer.decode(want, skip_special_tokens=True)


def test_a_video_whose_time_runs_ahead_of_its_tokens_is_refused(
    engine: headstock.Engine, model: StillModel
) -> None:
    if not hasattr(model.oracle.config.vision_config, "tokens_per_second"):
        pytest.skip("each moment takes one position here")
    url = film_url(film(FEW), duration=60_000)
    with pytest.raises(RequestError, match="too few for its positions"):
        engine.generate(input_ids=[*VIDEO, 71], video_data=[url])

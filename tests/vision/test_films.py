"""Videos of models that see their frames as a row of images, against transformers.

Its video processors resize with ``torchvision``, which is not installed: what they decide is asked
of them, and Pillow resizes.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headstock
from headstock.errors import CheckpointError
from headstock.multimodal.families import find_family
from headstock.multimodal.films import RULES, spelled
from tests.vision.claims import SETTINGS
from tests.vision.conftest import ID_OF, PAD, data_url, picture
from tests.vision.kimi import MAX_FRAME_PATCHES, patches_of
from tests.vision.still import StillModel, ask_as_client
from tests.vision.still_families import MAKERS
from tests.vision.test_video import film, film_url

COUNT = 6
FPS = 4.0
VIDEO = ID_OF["<|video_pad|>"]
Given = dict[str, Any]
MEAN, STD = [0.5, 0.4, 0.3], [0.3, 0.4, 0.5]


def module_of(family: str, kind: str = "video_processing") -> Any:
    """Return a module by its name: packages hide those that need ``torchvision``."""
    return importlib.import_module(f"transformers.models.{family}.{kind}_{family}")


def metadata_of(total: int, chosen: Sequence[int] | None = None) -> Any:
    utils = importlib.import_module("transformers.video_utils")
    return utils.VideoMetadata(
        total_num_frames=total, fps=FPS, duration=total / FPS, frames_indices=chosen
    )


def normalized(frames: Sequence[Image.Image], *sizes: tuple[int, int], filter_: int) -> Any:
    """Return frames resized one after another, as the oracle takes them. [frames, 3, H, W]"""
    found: list[np.ndarray] = []
    for frame in frames:
        for height, width in sizes:
            frame = frame.resize((width, height), Image.Resampling(filter_))
        found.append(np.asarray(frame))
    values = torch.from_numpy(np.stack(found)).float() / 255
    return ((values - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Film:
    """How a family's videos are asked of transformers.

    Attributes:
        settings: Of its video processor.
        chosen: Returns the frames that it looks at, of so many.
        given: Returns the oracle's inputs beside the ids, and the text in the video's place, with
            the placeholder of an image where features go.
    """

    settings: dict[str, Any]
    chosen: Callable[[int], list[int]]
    given: Callable[[StillModel, Sequence[Image.Image], list[int], int], tuple[Given, str]]


GLM = {"size": {"shortest_edge": 512, "longest_edge": 6000}, "fps": 2, "max_duration": 300}


def glm_chosen(family: str, total: int) -> list[int]:
    if family == "glm46v":
        return dynamic_rule(total, total / FPS)
    kind = module_of("glm4v").Glm4vVideoProcessor
    them = SimpleNamespace(fps=2, max_duration=300)
    return kind.sample_frames(them, metadata_of(total)).tolist()


def dynamic_rule(total: int, seconds: float) -> list[int]:
    """Return the frames of short videos: six a second. The module needs ``torchvision``."""
    assert seconds <= 30
    count = int(seconds * 6)
    if total < count:
        places = np.linspace(0, total - 1, count, dtype=int).tolist()
    else:
        at = [i / FPS for i in range(total)]
        places, want = [], 0.0
        for index, moment in enumerate(at):
            if moment >= want:
                want += 1 / 6
                places.append(index)
                if want >= int(seconds):
                    break
        if len(places) < count:
            places = np.linspace(places[0], places[-1], count, dtype=int).tolist()
    places = list(dict.fromkeys(places))
    return places + places[-1:] * (len(places) % 2)


def glm_given(
    family: str, model: StillModel, frames: Sequence[Image.Image], chosen: list[int], total: int
) -> tuple[Given, str]:
    theirs = module_of("glm4v")
    size = GLM["size"]
    height, width = theirs.smart_resize(
        len(chosen),
        frames[0].height,
        frames[0].width,
        factor=8,
        min_pixels=size["shortest_edge"],
        max_pixels=size["longest_edge"],
    )
    video = normalized(frames, (height, width), filter_=3)
    patches, *grid = theirs.Glm4vVideoProcessor.patchify(None, video[None], 4, 2, 2)
    kind = getattr(
        module_of(family, "processing"), {"glm4v": "Glm4vProcessor"}.get(family, "Glm46VProcessor")
    )
    pad = model.tokenizer.decode([PAD])
    them = SimpleNamespace(video_processor=SimpleNamespace(merge_size=2), image_token=pad)
    them.replace_frame_token_id = lambda *args, **more: kind.replace_frame_token_id(
        them, *args, **more
    )
    grids = torch.tensor([grid])
    told = {"video_grid_thw": grids, "video_metadata": [metadata_of(total, chosen)]}
    text = kind.replace_video_token(them, told, 0)
    return {"pixel_values_videos": patches[0], "video_grid_thw": grids}, text


def glm(family: str) -> Film:
    return Film(
        GLM,
        lambda total: glm_chosen(family, total),
        lambda *given: glm_given(family, *given),
    )


def intern_chosen(total: int) -> list[int]:
    """Its module needs ``torchvision``: the rule is written again, with PyTorch's range."""
    step = total / min(5, total)
    return torch.arange(step / 2, total, step).int().tolist()


def intern_given(
    model: StillModel, frames: Sequence[Image.Image], chosen: list[int], total: int
) -> tuple[Given, str]:
    kind = module_of("internvl", "processing").InternVLProcessor
    pad = model.tokenizer.decode([PAD])
    them = SimpleNamespace(
        start_image_token="<img>", end_image_token="</img>", image_token=pad, image_seq_length=4
    )
    values = normalized(frames, (16, 16), filter_=3)
    text = kind.replace_video_token(them, {"pixel_values_videos": [values]}, 0)
    return {"pixel_values": values}, text


def smol_chosen(total: int) -> list[int]:
    them = SimpleNamespace(num_frames=6, fps=1)
    metadata = {"fps": FPS, "duration": total / FPS}
    told = type("Metadata", (dict,), {"fps": FPS, "total_num_frames": total})(metadata)
    kind = module_of("smolvlm").SmolVLMVideoProcessor
    return kind.sample_frames(them, told).tolist()


def smol_given(
    model: StillModel, frames: Sequence[Image.Image], chosen: list[int], total: int
) -> tuple[Given, str]:
    theirs = module_of("smolvlm")
    shown = torch.zeros(1, 3, frames[0].height, frames[0].width)
    first = theirs.get_resize_output_image_size(shown, 48)
    values = normalized(frames, first, (16, 16), filter_=1)
    processing = module_of("smolvlm", "processing")
    them = SimpleNamespace(
        image_seq_len=4,
        image_token=model.tokenizer.decode([PAD]),
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
    )
    told = {"pixel_values": values[None], "video_metadata": [metadata_of(total, chosen)]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing, "num2words", spelled)
        text = processing.SmolVLMProcessor.replace_video_token(them, told, 0)
    return {"pixel_values": values[None]}, text


def onevision_chosen(total: int) -> list[int]:
    utils = importlib.import_module("transformers.video_utils")
    return utils.default_sample_indices_fn(metadata_of(total), num_frames=min(5, total)).tolist()


def onevision_given(
    model: StillModel, frames: Sequence[Image.Image], chosen: list[int], total: int
) -> tuple[Given, str]:
    kind = module_of("llava_onevision", "processing").LlavaOnevisionProcessor
    values = normalized(frames, (12, 12), filter_=3)
    token = model.tokenizer.decode([VIDEO])
    them = SimpleNamespace(num_image_tokens=9, video_token=token)
    text = kind.replace_video_token(them, {"pixel_values_videos": [values]}, 0)
    return {"pixel_values_videos": values[None]}, text


def kimi_given(
    model: StillModel, frames: Sequence[Image.Image], chosen: list[int], total: int
) -> tuple[Given, str]:
    kind = module_of("kimi_k25", "processing").Kimi_K25Processor
    moments = [frames[at : at + 3] for at in range(0, len(frames), 3)]
    cut = [[patches_of(frame, MAX_FRAME_PATCHES) for frame in moment] for moment in moments]
    patches = torch.cat([patches for moment in cut for patches, _ in moment])
    grids = torch.tensor([[len(moment), *moment[0][1][1:]] for moment in cut])
    sizes = SimpleNamespace(merge_size=2, temporal_patch_size=3)
    # Features stand in the place of an image's tokens: the token for a video may have no row.
    them = SimpleNamespace(video_processor=sizes, video_token=model.tokenizer.decode([PAD]))
    told = {
        "num_chunks_per_video": [len(moments)],
        "video_grid_thw": grids,
        "video_metadata": [metadata_of(total, chosen)],
    }
    text = kind.replace_video_token(them, told, 0)
    return {"pixel_values": patches, "image_grid_thw": grids}, text


def seconds_chosen(total: int) -> list[int]:
    utils = importlib.import_module("transformers.video_utils")
    return utils.default_sample_indices_fn(metadata_of(total), fps=2).tolist()


FILMS: dict[str, Film] = {
    "kimi-k2.5": Film({}, seconds_chosen, kimi_given),
    "glm4v": glm("glm4v"),
    "glm46v": glm("glm46v"),
    "glm-ocr": glm("glm46v"),
    "internvl": Film(
        {"size": {"height": 16, "width": 16}, "num_frames": 5}, intern_chosen, intern_given
    ),
    "smolvlm": Film(
        {
            "max_image_size": {"longest_edge": 16},
            "video_sampling": {"fps": 1, "max_frames": 6, "video_size": {"longest_edge": 48}},
        },
        smol_chosen,
        smol_given,
    ),
    "llava-onevision": Film(
        {"size": {"height": 12, "width": 12}, "num_frames": 5}, onevision_chosen, onevision_given
    ),
}
KINDS = ("glm4v", "internvl", "llava-onevision")
"""One of each kind: frames in groups, a row of images, one mosaic."""


def make(name: str, path: Path) -> StillModel:
    """Return a small model with a video processor, and a token for a video."""
    model = MAKERS[name](path)
    scales = {"image_mean": MEAN, "image_std": STD}
    file = path / "video_preprocessor_config.json"
    file.write_text(json.dumps(FILMS[name].settings | scales))
    if name in ("internvl", "smolvlm"):
        for old in path.iterdir():
            if old.suffix in (".json", ".jinja"):
                old.write_text(old.read_text().replace("<|video_pad|>", "<video>"))
    return model


@pytest.fixture(scope="module", params=FILMS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(name: str, tmp_path_factory: pytest.TempPathFactory) -> StillModel:
    return make(name, tmp_path_factory.mktemp("films") / "tiny-film")


@pytest.fixture(scope="module")
def engine(model: StillModel) -> Iterator[headstock.Engine]:
    settings: dict[str, Any] = SETTINGS | {"max_model_len": 512}
    with headstock.Engine(model=str(model.path), **settings) as engine:
        yield engine


def given_of(name: str, model: StillModel, ids: Sequence[int], count: int) -> Given:
    """Return what the oracle is given of ids with one place for a video of ``count`` frames."""
    frames, chosen = film(count), FILMS[name].chosen(count)
    given, text = FILMS[name].given(model, [frames[i] for i in chosen], chosen, count)
    place = list(ids).index(VIDEO)
    inside = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = torch.tensor([[*ids[:place], *inside, *ids[place + 1 :]]])
    if "video_grid_thw" in given:
        given["mm_token_type_ids"] = 2 * (whole == PAD).int()
    return {"input_ids": whole, **given}


def drawn(model: StillModel, given: Given) -> list[int]:
    """Return the ids that the oracle draws greedily, each by a forward pass of all before."""
    found: list[int] = []
    for _ in range(COUNT):
        found.append(int(model.logits(**given)[-1].argmax()))
        for key, value in (("input_ids", found[-1]), ("mm_token_type_ids", 0)):
            if key in given:
                more = torch.tensor([[value]], dtype=given[key].dtype)
                given[key] = torch.cat((given[key], more), dim=1)
    return found


def ask(engine: headstock.Engine, ids: Sequence[int], count: int, **more: Any) -> dict[str, Any]:
    sampling = {"temperature": 0, "max_new_tokens": COUNT, "ignore_eos": True}
    url = film_url(film(count))
    return engine.generate(input_ids=list(ids), video_data=[url], sampling_params=sampling, **more)


IDS = [70, VIDEO, 71, 72]


@pytest.mark.parametrize("count", [3, 8, 13])
def test_a_video_draws_the_ids_of_transformers(
    engine: headstock.Engine, model: StillModel, name: str, count: int
) -> None:
    engine.flush_cache()
    given = given_of(name, model, IDS, count)
    result = ask(engine, IDS, count, return_logprob=True, logprob_start_len=0)
    assert result["meta_info"]["prompt_tokens"] == given["input_ids"].shape[1]
    logits = model.logits(**given)[:-1].log_softmax(-1)
    want = logits.gather(1, given["input_ids"][0, 1:, None])[:, 0]
    got = [entry[0] for entry in result["meta_info"]["input_token_logprobs"][1:]]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)
    assert result["output_ids"] == drawn(model, given)


@pytest.mark.parametrize(
    "name",
    [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in FILMS],
    indirect=True,
)
def test_chunks_and_a_repeated_video_change_nothing(model: StillModel, name: str) -> None:
    """Chunks of 7 tokens end within frames; the second time nearly all is found in the cache."""
    given = given_of(name, model, IDS, 8)
    num_prompt, want = given["input_ids"].shape[1], drawn(model, dict(given))
    settings: dict[str, Any] = SETTINGS | {"max_model_len": 512, "chunked_prefill_size": 7}
    with headstock.Engine(model=str(model.path), **settings) as engine:
        first, again = ask(engine, IDS, 8), ask(engine, IDS, 8)
        turned = film_url(film(8)[::-1])
        other = engine.generate(input_ids=IDS, video_data=[turned], sampling_params={})
    assert first["output_ids"] == again["output_ids"] == want
    assert again["meta_info"]["cached_tokens"] >= num_prompt - 4
    first_id = VIDEO if "onevision" in name else PAD
    begin = given["input_ids"][0].tolist().index(first_id)
    assert other["meta_info"]["cached_tokens"] <= begin


def test_an_image_and_a_video_stand_where_the_prompt_has_them(
    engine: headstock.Engine, model: StillModel, name: str
) -> None:
    still = data_url(picture(24, 32, 3))
    alone = ask(engine, IDS, 8)["meta_info"]["prompt_tokens"]
    sizes = [
        ask(engine, ids, 8, image_data=[still])["meta_info"]["prompt_tokens"]
        for ids in ([*IDS, PAD, 73], [70, PAD, 73, VIDEO, 71, 72])
    ]
    shown = model.prepare([PAD], [picture(24, 32, 3)])["input_ids"].shape[1]
    assert sizes == [alone + shown + 1] * 2


@pytest.mark.slow
def test_a_chat_with_a_video_answers_as_transformers(model: StillModel, name: str) -> None:
    content, num_prompt = ask_as_client(model, "Hm?", [], COUNT, videos=[film_url(film(8))])
    parts = [{"type": "text", "text": "Hm?"}, {"type": "video"}]
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    given = given_of(name, model, ids, 8)
    assert num_prompt == given["input_ids"].shape[1]
    assert content == model.tokenizer.decode(drawn(model, given), skip_special_tokens=True)


@pytest.mark.parametrize("total", [2, 3, 5, 9, 24, 100, 119])
def test_the_frames_are_those_of_transformers(model: StillModel, name: str, total: int) -> None:
    family = find_family(json.loads((model.path / "config.json").read_text()), model.path)
    assert family is not None
    assert family.video is not None
    video = family.as_dict()["video"]
    got = RULES[video["sampling"]](total, total / FPS, video, family.frames)
    assert got == FILMS[name].chosen(total)


@pytest.mark.parametrize("family", ["internvl", "smolvlm", "llava-onevision"])
def test_frames_of_another_size_than_the_encoders_are_refused(tmp_path: Path, family: str) -> None:
    path = make(family, tmp_path).path / "video_preprocessor_config.json"
    given = json.loads(path.read_text())
    given |= {"size": {"height": 8, "width": 8}, "max_image_size": {"longest_edge": 8}}
    path.write_text(json.dumps(given))
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(CheckpointError, match="frames"):
        find_family(config, tmp_path)


@pytest.mark.parametrize(
    ("number", "want"),
    [
        (4, "four"),
        (13, "thirteen"),
        (21, "twenty-one"),
        (40, "forty"),
        (115, "one hundred and fifteen"),
        (640, "six hundred and forty"),
        (1005, "one thousand and five"),
        (1100, "one thousand, one hundred"),
    ],
)
def test_numbers_are_spelled_as_smolvlm_reads_them(number: int, want: str) -> None:
    """``num2words`` made these."""
    assert spelled(number) == want


@pytest.mark.parametrize(
    ("total", "seconds", "want"),
    [
        (1000, 400.0, [0, 2, 4, 6, 7]),
        (500, 400.0, [0, 1, 2, 3, 4]),
        (4, 1.0, [0, 2]),
    ],
)
def test_long_videos_of_glm_are_looked_at_fewer_times_a_second(
    total: int, seconds: float, want: list[int]
) -> None:
    video = {"fps": 2.0, "max_seconds": 300.0}
    got = RULES["by_seconds"](total, seconds, video, 2)
    them = SimpleNamespace(fps=2, max_duration=300)
    metadata = SimpleNamespace(total_num_frames=total, fps=total / seconds, duration=seconds)
    theirs = module_of("glm4v").Glm4vVideoProcessor.sample_frames(them, metadata).tolist()
    assert got == theirs
    assert got[: len(want)] == want

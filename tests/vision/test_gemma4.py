"""Gemma 4 with images: of any aspect, and in large models their tokens see each other."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.gemma4 import image_processing_pil_gemma4 as processing

import headstock
from headstock.errors import CheckpointError, RequestError, UnsupportedError
from headstock.graph.build import build_model
from headstock.multimodal.families import find_family
from headstock.multimodal.films import RULES
from headstock.multimodal.patches import filling_size
from headstock_models.gemma4_vision import Gemma4ForConditionalGeneration
from tests.models.conftest import randomize
from tests.models.gemma_cases import EXPERTS, GEMMA4, KEYS_AS_VALUES, SMALL
from tests.models.harness import context
from tests.vision.claims import (
    CASES,
    COUNT,
    ONE,
    SETTINGS,
    TWO,
    ask,
    ask_all,
    check_hit,
    check_logprobs,
    check_repeat,
    check_retraction,
)
from tests.vision.conftest import END, ID_OF, PAD, START, TEMPLATE, data_url, picture
from tests.vision.still import (
    WORDS,
    StillModel,
    ask_as_client,
    chat_ids,
    expanded,
    features,
    save,
    text_of,
)
from tests.vision.test_films import FPS, drawn, metadata_of, module_of
from tests.vision.test_films import ask as ask_film
from tests.vision.test_video import film

TOKENS, FRAME_TOKENS, FRAMES = 12, 6, 5
FILM = {
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "max_soft_tokens": FRAME_TOKENS,
    "num_frames": FRAMES,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
}
VIDEO = ID_OF["<|video_pad|>"]
FILM_IDS = [70, VIDEO, 71, 72]
MARKS = "<|vision_start|><|image_pad|><|vision_end|>"
TEXT = WORDS | GEMMA4 | {"num_hidden_layers": 4, "pad_token_id": 3}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 64,
    "initializer_range": 0.2,
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (SMALL | {"vocab_size_per_layer_input": 272}, {"use_clipped_linears": True}),
    "large": (KEYS_AS_VALUES | EXPERTS, {"standardize": True}),
}


def make_gemma4(path: Path, kind: str) -> StillModel:
    text, vision = KINDS[kind]
    config = transformers.Gemma4Config(
        text_config=TEXT | text,
        vision_config=VISION | vision,
        boi_token_id=START,
        eoi_token_id=END,
        image_token_id=PAD,
        video_token_id=VIDEO,
    )
    processor = processing.Gemma4ImageProcessorPil(
        patch_size=4, pooling_kernel_size=2, max_soft_tokens=TOKENS
    )
    oracle = save(path, config, "Gemma4", processor, TEMPLATE.replace(MARKS, "<|image_pad|>"))
    for name, value in (*oracle.named_parameters(), *oracle.named_buffers()):
        end = name.rpartition(".")[2]
        if end in ("layer_scalar", "scale", "per_expert_scale", "std_scale"):
            torch.nn.init.uniform_(value.data, 0.5, 1.5)
        if end == "position_embedding_table":
            torch.nn.init.normal_(value.data)
        if end in ("input_min", "output_min", "input_max", "output_max"):
            value.data.fill_(-0.5 if end.endswith("min") else 0.6)
    randomize(oracle)
    oracle.save_pretrained(path)
    (path / "video_preprocessor_config.json").write_text(json.dumps(FILM))

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        counts: list[int] = []
        if images:
            made = processor(list(images), return_tensors="pt")
            counts = [int(count) for count in made["num_soft_tokens_per_image"]]
            found = {key: made[key] for key in ("pixel_values", "image_position_ids")}
        whole = expanded(ids, counts)
        return {"input_ids": whole, "mm_token_type_ids": (whole == PAD).long(), **found}

    return StillModel(path, oracle, prepare)


@pytest.fixture(scope="module", autouse=True)
def small_images() -> Iterator[None]:
    """Images of fewer tokens than the processor of transformers otherwise allows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processing, "_SUPPORTED_SOFT_TOKENS", (TOKENS, FRAME_TOKENS))
        yield


@pytest.fixture(scope="module", params=KINDS)
def gemma(
    request: pytest.FixtureRequest, small_images: None, tmp_path_factory: pytest.TempPathFactory
) -> StillModel:
    return make_gemma4(tmp_path_factory.mktemp("gemma4") / "tiny-gemma4", request.param)


@pytest.fixture(scope="module")
def large(small_images: None, tmp_path_factory: pytest.TempPathFactory) -> StillModel:
    """Whose tokens of an image see each other."""
    return make_gemma4(tmp_path_factory.mktemp("large") / "tiny-gemma4", "large")


@pytest.fixture(scope="module")
def engine(gemma: StillModel) -> Iterator[headstock.Engine]:
    with headstock.Engine(model=str(gemma.path), **SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="module")
def wanted(gemma: StillModel) -> dict[str, list[int]]:
    return {name: gemma.generate(*case, COUNT) for name, case in CASES.items()}


def test_features_of_images_are_those_of_transformers(gemma: StillModel) -> None:
    images = [ONE, TWO, picture(9, 70, 5)]
    given = gemma.prepare([PAD] * 3, images)
    want = gemma.features(**{k: given[k] for k in ("pixel_values", "image_position_ids")})
    torch.testing.assert_close(features(gemma.path, images), want, rtol=1e-4, atol=1e-4)


def test_greedy_ids_are_those_of_transformers(
    engine: headstock.Engine, wanted: dict[str, list[int]]
) -> None:
    engine.flush_cache()
    assert ask_all(engine, list(CASES.values())) == list(wanted.values())


@pytest.mark.parametrize("name", CASES)
def test_logprobs_of_the_prompt_are_those_of_transformers(
    engine: headstock.Engine, gemma: StillModel, name: str
) -> None:
    check_logprobs(engine, gemma, name)


@pytest.mark.parametrize("extra", [0, 1, 2, 5])
def test_a_hit_may_end_before_within_and_after_an_image(
    engine: headstock.Engine, gemma: StillModel, extra: int
) -> None:
    check_hit(engine, gemma, extra, TOKENS)


def test_a_repeated_image_is_found_and_another_never_is(
    engine: headstock.Engine, gemma: StillModel, wanted: dict[str, list[int]]
) -> None:
    check_repeat(engine, gemma, wanted, TOKENS)


def test_a_retraction_changes_nothing(gemma: StillModel, wanted: dict[str, list[int]]) -> None:
    check_retraction(gemma, wanted, max_model_len=40, cache_tokens=48, chunked_prefill_size=20)


@pytest.mark.parametrize("size", [12, 13, 17])
def test_chunks_change_nothing(gemma: StillModel, wanted: dict[str, list[int]], size: int) -> None:
    settings = SETTINGS | {"chunked_prefill_size": size, "prefix_cache": False}
    with headstock.Engine(model=str(gemma.path), **settings) as engine:
        assert ask_all(engine, list(CASES.values())) == list(wanted.values())


def test_the_oracle_itself_sees_what_comes_later_in_an_image(large: StillModel) -> None:
    """Else the comparisons above would show nothing of it."""
    given = large.prepare(*CASES["one image"])
    both = large.logits(**given)
    causal = large.logits(**given | {"mm_token_type_ids": None})
    assert (both - causal).abs().max() > 0.01


def test_a_step_too_small_for_an_image_is_refused(large: StillModel) -> None:
    settings = SETTINGS | {"chunked_prefill_size": TOKENS - 1}
    with (
        headstock.Engine(model=str(large.path), **settings) as engine,
        pytest.raises(RequestError, match=f"chunked-prefill-size to {TOKENS}"),
    ):
        ask(engine, CASES["one image"])


@pytest.mark.parametrize("size", [(24, 32), (7, 90), (90, 7), (1, 150), (640, 480), (333, 1000)])
def test_images_are_made_as_large_as_transformers_makes_them(size: tuple[int, int]) -> None:
    for patch_size, merge, num_tokens in ((16, 3, 280), (16, 3, 70), (4, 2, 12)):
        want = processing.get_aspect_ratio_preserving_size(
            *size, patch_size, num_tokens * merge**2, merge
        )
        most = num_tokens * (merge * patch_size) ** 2
        assert filling_size(*size, unit=merge * patch_size, max_pixels=most) == want


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("do_normalize", True, "do_normalize"),
        ("patch_size", 8, "patch_size is 8"),
        ("pooling_kernel_size", 3, "pooling_kernel_size is 3"),
        ("do_resize", False, "do_resize"),
    ],
)
def test_processors_that_do_otherwise_are_refused(
    large: StillModel, tmp_path: Path, key: str, value: object, match: str
) -> None:
    config = json.loads((large.path / "config.json").read_text())
    file = "preprocessor_config.json"
    given = json.loads((large.path / file).read_text())
    (tmp_path / file).write_text(json.dumps(given | {key: value}))
    with pytest.raises(CheckpointError, match=match):
        find_family(config, tmp_path)


def test_names_of_the_hub_are_taken(
    gemma: StillModel, tmp_path: Path, wanted: dict[str, list[int]]
) -> None:
    """Heads of full layers have keys of their own; there is an encoder of sound, too."""
    for file in gemma.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    given = json.loads((gemma.path / "config.json").read_text())
    sizes = given["text_config"].pop("per_layer_config")["1"]
    given["text_config"]["global_head_dim"] = sizes["head_dim"]
    given["text_config"]["num_global_key_value_heads"] = sizes.get("num_key_value_heads")
    (tmp_path / "config.json").write_text(json.dumps(given))
    tensors = load_file(gemma.path / "model.safetensors")
    for name in ("audio_tower.layers.0.norm_out", "embed_audio.embedding_projection"):
        tensors[f"model.{name}.weight"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    with headstock.Engine(model=str(tmp_path), **SETTINGS) as engine:
        assert ask(engine, CASES["one image"])["output_ids"] == wanted["one image"]


@pytest.mark.slow
def test_two_ranks_draw_the_ids_of_transformers(
    gemma: StillModel, wanted: dict[str, list[int]]
) -> None:
    names = ["text alone", "one image", "an image, text, an image"]
    settings = SETTINGS | {"tp_size": 2, "chunked_prefill_size": 16}
    with headstock.Engine(model=str(gemma.path), **settings) as engine:
        assert ask_all(engine, [CASES[name] for name in names]) == [wanted[n] for n in names]


def test_a_chat_with_images_answers_as_transformers(large: StillModel) -> None:
    """The template writes the placeholder; the processor of transformers puts marks around it."""
    images = [picture(24, 32, 3), picture(16, 40, 4)]
    ids = chat_ids(large, "What is this?", 2, ("<|image_pad|>", MARKS))
    content, num_prompt = ask_as_client(large, "What is this?", images, 8)
    assert content == text_of(large, large.generate(ids, images, 8))
    assert num_prompt == large.prepare(ids, images)["input_ids"].shape[1]


def chosen_of(total: int) -> list[int]:
    """Return the frames that transformers looks at."""
    kind = importlib.import_module("transformers.video_processing_utils").BaseVideoProcessor
    them = SimpleNamespace(num_frames=min(FRAMES, total), fps=None)
    return kind.sample_frames(them, metadata_of(total)).tolist()


def film_given(gemma: StillModel, count: int) -> dict[str, Any]:
    """Return what the oracle is given of a video of so many frames.

    Its video processor needs ``torchvision``; the one of images does the same to frames by PIL.
    """
    frames, chosen = film(count), chosen_of(count)
    processor = processing.Gemma4ImageProcessorPil(
        patch_size=4, pooling_kernel_size=2, max_soft_tokens=FRAME_TOKENS
    )
    made = processor([frames[i] for i in chosen], return_tensors="pt")
    (num_tokens,) = {int(n) for n in made["num_soft_tokens_per_image"]}
    kind = module_of("gemma4", "processing").Gemma4Processor
    video, begin, end = (gemma.tokenizer.decode([i]) for i in (VIDEO, START, END))
    told = {
        "num_soft_tokens_per_video": [num_tokens],
        "video_metadata": [metadata_of(count, chosen)],
    }
    them = SimpleNamespace(video_token=video, boi_token=begin, eoi_token=end)
    text = kind.replace_video_token(them, told, 0)
    inside = gemma.tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = torch.tensor([[70, *inside, 71, 72]])
    return {
        "input_ids": whole,
        "mm_token_type_ids": 2 * (whole == VIDEO).long(),
        "pixel_values_videos": made["pixel_values"],
        "video_position_ids": made["image_position_ids"],
        "num_frames_per_video": torch.tensor([len(chosen)]),
    }


@pytest.mark.parametrize("count", [3, 8, 13])
def test_a_video_draws_the_ids_of_transformers(
    engine: headstock.Engine, gemma: StillModel, count: int
) -> None:
    """Tokens of a frame see each other in large models, and none of another frame's."""
    engine.flush_cache()
    given = film_given(gemma, count)
    result = ask_film(engine, FILM_IDS, count, return_logprob=True, logprob_start_len=0)
    assert result["meta_info"]["prompt_tokens"] == given["input_ids"].shape[1]
    logits = gemma.logits(**given)[:-1].log_softmax(-1)
    want = logits.gather(1, given["input_ids"][0, 1:, None])[:, 0]
    got = [entry[0] for entry in result["meta_info"]["input_token_logprobs"][1:]]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)
    assert result["output_ids"] == drawn(gemma, given)


def test_an_image_and_a_video_stand_where_the_prompt_has_them(
    engine: headstock.Engine, gemma: StillModel
) -> None:
    alone = ask_film(engine, FILM_IDS, 8)["meta_info"]["prompt_tokens"]
    ids, still = [70, START, PAD, END, 73, VIDEO, 71, 72], data_url(ONE)
    both = ask_film(engine, ids, 8, image_data=[still])["meta_info"]["prompt_tokens"]
    shown = gemma.prepare([START, PAD, END], [ONE])["input_ids"].shape[1]
    assert both == alone + shown + 1


@pytest.mark.parametrize("total", [2, 3, 5, 9, 24, 100, 119])
def test_the_frames_are_those_of_transformers(large: StillModel, total: int) -> None:
    family = find_family(json.loads((large.path / "config.json").read_text()), large.path)
    assert family is not None
    assert family.video is not None
    video = family.as_dict()["video"]
    assert RULES[video["sampling"]](total, total / FPS, video, 1) == chosen_of(total)


@pytest.mark.parametrize(("key", "value"), [("image_mean", [0.5, 0.5, 0.5]), ("patch_size", 8)])
def test_video_processors_that_do_otherwise_are_refused(
    large: StillModel, tmp_path: Path, key: str, value: object
) -> None:
    for file in large.path.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(FILM | {key: value}))
    with pytest.raises(CheckpointError, match=key):
        find_family(json.loads((tmp_path / "config.json").read_text()), tmp_path)


def test_a_model_without_an_encoder_is_refused(large: StillModel) -> None:
    given = json.loads((large.path / "config.json").read_text()) | {"vision_config": None}
    with pytest.raises(UnsupportedError, match="vision_config = None"):
        build_model(Gemma4ForConditionalGeneration, context(), given)

"""Gemma 3 with images: their tokens see each other, so no chunk may end within one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

import headstock
from headstock.checkpoint.nested import DEFAULTS, fill_text_config
from headstock.errors import CheckpointError, RequestError
from headstock.multimodal.families import find_family
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
from tests.vision.conftest import END, PAD, START, TEMPLATE, picture
from tests.vision.still import (
    NEW,
    OLD,
    WORDS,
    StillModel,
    ask_as_client,
    chat_ids,
    expanded,
    features,
    rewrite,
    save,
    text_of,
)

TOKENS = 9
TEXT = WORDS | {
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
    },
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 4,
    "vision_use_head": False,
}
WRITTEN = "\n\n<|vision_start|><|image_pad|><|vision_end|>\n\n"
MARKED = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|>")


def make_gemma3(path: Path) -> StillModel:
    config = transformers.Gemma3Config(
        text_config=TEXT,
        vision_config=VISION,
        mm_tokens_per_image=TOKENS,
        boi_token_index=START,
        eoi_token_index=END,
        image_token_index=PAD,
    )
    processor = Gemma3ImageProcessorPil(size={"height": 24, "width": 24})
    oracle = save(path, config, "Gemma3", processor, MARKED)

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if images:
            found["pixel_values"] = processor(list(images), return_tensors="pt")["pixel_values"]
        whole = expanded(ids, [TOKENS] * len(images))
        return {"input_ids": whole, "token_type_ids": (whole == PAD).long(), **found}

    return StillModel(path, oracle, prepare)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> StillModel:
    return make_gemma3(tmp_path_factory.mktemp("gemma3") / "tiny-gemma3")


@pytest.fixture(scope="module")
def engine(gemma: StillModel) -> Iterator[headstock.Engine]:
    with headstock.Engine(model=str(gemma.path), **SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="module")
def wanted(gemma: StillModel) -> dict[str, list[int]]:
    return {name: gemma.generate(*case, COUNT) for name, case in CASES.items()}


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


def test_features_of_images_are_those_of_transformers(gemma: StillModel) -> None:
    pixels = gemma.prepare([PAD, PAD], [ONE, TWO])["pixel_values"]
    with torch.no_grad():
        want = gemma.oracle.model.get_image_features(pixels).pooler_output.flatten(0, 1)
    torch.testing.assert_close(features(gemma.path, [ONE, TWO]), want, rtol=1e-4, atol=1e-4)


def test_the_oracle_itself_sees_what_comes_later_in_an_image(gemma: StillModel) -> None:
    """Else the comparisons above would show nothing of it."""
    ids, images = CASES["one image"]
    given = gemma.prepare(ids, images)
    with torch.no_grad():
        both = gemma.oracle(**given, use_cache=False).logits
        causal = gemma.oracle(**{**given, "token_type_ids": None}, use_cache=False).logits
    assert (both - causal).abs().max() > 0.01


@pytest.mark.parametrize("size", [9, 10, 14])
def test_no_chunk_ends_within_an_image(
    gemma: StillModel, wanted: dict[str, list[int]], size: int
) -> None:
    settings = SETTINGS | {"chunked_prefill_size": size, "prefix_cache": False}
    with headstock.Engine(model=str(gemma.path), **settings) as engine:
        assert ask_all(engine, list(CASES.values())) == list(wanted.values())


def test_a_step_too_small_for_an_image_is_refused(gemma: StillModel) -> None:
    settings = SETTINGS | {"chunked_prefill_size": TOKENS - 1}
    with (
        headstock.Engine(model=str(gemma.path), **settings) as engine,
        pytest.raises(RequestError, match="chunked-prefill-size to 9"),
    ):
        ask(engine, CASES["one image"])


@pytest.mark.parametrize("extra", range(8))
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


@pytest.mark.parametrize("style", [OLD, NEW])
def test_old_and_new_names_are_taken(
    gemma: StillModel, tmp_path: Path, wanted: dict[str, list[int]], style: str
) -> None:
    rewrite(gemma.path, tmp_path, style)
    with headstock.Engine(model=str(tmp_path), **SETTINGS) as engine:
        assert ask(engine, CASES["one image"])["output_ids"] == wanted["one image"]


@pytest.mark.parametrize("kind", DEFAULTS)
def test_sizes_that_a_text_config_leaves_out_are_those_of_transformers(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind).to_dict()
    assert {key: config[key] for key in DEFAULTS[kind]} == DEFAULTS[kind]
    filled = fill_text_config({"text_config": {"model_type": kind, "hidden_size": 7}})
    assert filled["text_config"] == {**DEFAULTS[kind], "model_type": kind, "hidden_size": 7}


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("preprocessor_config.json", "do_pan_and_scan", True),
        ("preprocessor_config.json", "size", {"height": 32, "width": 24}),
    ],
)
def test_processors_that_do_otherwise_are_refused(
    gemma: StillModel, tmp_path: Path, file: str, key: str, value: object
) -> None:
    config = json.loads((gemma.path / "config.json").read_text())
    given = json.loads((gemma.path / file).read_text())
    (tmp_path / file).write_text(json.dumps(given | {key: value}))
    with pytest.raises(CheckpointError, match=key if key == "do_pan_and_scan" else "resized"):
        find_family(config, tmp_path)


@pytest.mark.slow
def test_two_ranks_draw_the_ids_of_transformers(
    gemma: StillModel, wanted: dict[str, list[int]]
) -> None:
    names = ["text alone", "one image", "an image, text, an image"]
    settings = SETTINGS | {"tp_size": 2, "chunked_prefill_size": 16}
    with headstock.Engine(model=str(gemma.path), **settings) as engine:
        assert ask_all(engine, [CASES[name] for name in names]) == [wanted[n] for n in names]


def test_a_chat_with_images_answers_as_transformers(gemma: StillModel) -> None:
    """The template writes a mark; the processor of transformers puts text around each image."""
    images = [picture(24, 32, 3), picture(16, 40, 4)]
    ids = chat_ids(gemma, "What is this?", 2, ("<|vision_start|>", WRITTEN))
    content, num_prompt = ask_as_client(gemma, "What is this?", images, 8)
    assert content == text_of(gemma, gemma.generate(ids, images, 8))
    assert num_prompt == gemma.prepare(ids, images)["input_ids"].shape[1]

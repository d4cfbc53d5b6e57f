"""Gemma 4 with images: of any aspect, and in large models their tokens see each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
from tests.vision.conftest import END, PAD, START, TEMPLATE, picture
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

TOKENS = 12
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
        patch.setattr(processing, "_SUPPORTED_SOFT_TOKENS", (TOKENS,))
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


def test_a_model_without_an_encoder_is_refused(large: StillModel) -> None:
    given = json.loads((large.path / "config.json").read_text()) | {"vision_config": None}
    with pytest.raises(UnsupportedError, match="vision_config = None"):
        build_model(Gemma4ForConditionalGeneration, context(), given)

"""Small models of architectures that see images token by token, each as its hub checkpoints are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llama4.processing_llama4 import Llama4Processor
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from tests.vision.claims import CASES, COUNT
from tests.vision.conftest import ALPHABET, END, ID_OF, PAD, START
from tests.vision.kimi import make_kimi_k25
from tests.vision.mobilenet import make_gemma3n
from tests.vision.still import WORDS, Prepare, StillModel, expanded, save

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "hidden_act": "quick_gelu",
}


def make_llava(path: Path, text: str = "llama") -> StillModel:
    """Return LLaVA 1.5 with a decoder of some kind; an image is 4 x 4 tokens."""
    config = transformers.LlavaConfig(
        text_config=WORDS | {"model_type": text}, vision_config=CLIP, image_token_index=PAD
    )
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    oracle = save(path, config, "Llava", processor)

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if images:
            found["pixel_values"] = processor(list(images), return_tensors="pt")["pixel_values"]
        return {"input_ids": expanded(ids, [16] * len(images)), **found}

    return StillModel(path, oracle, prepare)


def make_llava_mistral(path: Path) -> StillModel:
    return make_llava(path, "mistral")


def make_llava_qwen2(path: Path) -> StillModel:
    return make_llava(path, "qwen2")


SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 12,
    "patch_size": 4,
    "vision_use_head": False,
}
SIZES = [[12 * tall, 12 * wide] for tall in (1, 2, 3) for wide in (1, 2, 3)]


def make_llava_next(path: Path) -> StillModel:
    """Return LLaVA-Next, whose tiles are 3 x 3 tokens."""
    sizes = [size for size in SIZES if size not in ([12, 12], [36, 36], [24, 36], [36, 24])]
    config = transformers.LlavaNextConfig(
        text_config=WORDS | {"model_type": "llama"},
        vision_config=CLIP | {"image_size": 12},
        image_token_index=PAD,
        image_grid_pinpoints=sizes,
    )
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 12},
        crop_size={"height": 12, "width": 12},
        image_grid_pinpoints=sizes,
    )
    return in_mosaics(path, save(path, config, "LlavaNext", processor), processor)


def make_llava_onevision(path: Path) -> StillModel:
    """Return LLaVA-OneVision, whose mosaics have the tokens of two tiles at most."""
    config = transformers.LlavaOnevisionConfig(
        text_config=WORDS | {"model_type": "qwen2"},
        vision_config=SIGLIP,
        image_token_index=PAD,
        video_token_index=ID_OF["<|video_pad|>"],
        image_grid_pinpoints=SIZES,
        vision_aspect_ratio="anyres_max_2",
    )
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 12, "width": 12}, image_grid_pinpoints=SIZES
    )
    return in_mosaics(path, save(path, config, "LlavaOnevision", processor), processor)


def in_mosaics(path: Path, oracle: Any, processor: Any) -> StillModel:
    """Return a model whose images have as many tokens as the oracle makes features."""

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        counts: list[int] = []
        if images:
            several = "batch_num_images" in processor.model_input_names
            given = [list(images)] if several else list(images)
            found = dict(processor(given, return_tensors="pt"))
            with torch.no_grad():
                counts = [
                    len(made) for made in oracle.model.get_image_features(**found).pooler_output
                ]
        return {"input_ids": expanded(ids, counts), **found}

    return StillModel(path, oracle, prepare, room_for(prepare))


SPLIT_TOKENS = (
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)


def make_idefics3(path: Path, name: str = "Idefics3", side: int = 16, **more: Any) -> StillModel:
    """Return Idefics3, or SmolVLM, with a token of a tile for each 8 x 8 pixels."""
    config = getattr(transformers, f"{name}Config")(
        text_config=WORDS | {"model_type": "llama"},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": 4,
        },
        image_token_id=PAD,
        scale_factor=2,
    )
    kind = Idefics3ImageProcessorPil if name == "Idefics3" else SmolVLMImageProcessorPil
    processor: Any = kind(size={"longest_edge": 32}, max_image_size={"longest_edge": side}, **more)
    oracle = save(path, config, name, processor, more=SPLIT_TOKENS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    pad = tokenizer.decode([PAD])

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        made: list[list[int]] = []
        if images:
            found = dict(processor([list(images)], return_row_col_info=True, return_tensors="pt"))
            for row, column in zip(found.pop("rows")[0], found.pop("cols")[0], strict=True):
                text = get_image_prompt_string(
                    row, column, (side // 8) ** 2, SPLIT_TOKENS[0], pad, SPLIT_TOKENS[1]
                )
                made.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        return {"input_ids": replaced(ids, made), **found}

    return StillModel(path, oracle, prepare, room_for(prepare))


def make_smolvlm(path: Path) -> StillModel:
    return make_idefics3(path, "SmolVLM")


def make_smolvlm_uncut(path: Path) -> StillModel:
    return make_idefics3(path, "SmolVLM", side=24, do_image_splitting=False)


def make_internvl(path: Path, text: str = "qwen2", **more: Any) -> StillModel:
    """Return InternVL 3, whose tiles are 2 x 2 tokens."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [16, 16],
        "patch_size": [4, 4],
    }
    config = transformers.InternVLConfig(
        text_config=WORDS | {"model_type": text, "head_dim": 16},
        vision_config=vision | more,
        image_token_id=PAD,
        image_seq_length=4,
    )
    processor: Any = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, max_patches=4)
    oracle = save(path, config, "InternVL", processor, more=("<img>", "</img>"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    begin, end = tokenizer.convert_tokens_to_ids(["<img>", "</img>"])

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        made: list[list[int]] = []
        if images:
            found = dict(processor(list(images), crop_to_patches=True, return_tensors="pt"))
            made = [[begin, *[PAD] * 4 * count, end] for count in found.pop("num_patches")]
        return {"input_ids": replaced(ids, made), **found}

    return StillModel(path, oracle, prepare, room_for(prepare))


def make_internvl_large(path: Path) -> StillModel:
    """Return InternVL 3.5 with what the largest encoder has: other norms, and more of them."""
    return make_internvl(
        path,
        "qwen3",
        use_qk_norm=True,
        norm_type="rms_norm",
        attention_bias=True,
        use_mean_pooling=False,
    )


LLAMA4_TOKENS = ("<|patch|>", "<|image_start|>", "<|image_end|>")
LLAMA4_SEPARATORS = ("<|tile_x_separator|>", "<|tile_y_separator|>")


def make_llama4(path: Path) -> StillModel:
    """Return Llama 4, whose tiles are 2 x 2 tokens.

    The processor of transformers needs a package that is not installed: what it does to images is
    done again here.
    """
    patch_id = ID_OF["<|video_pad|>"] + 1
    words = {
        "num_hidden_layers": 4,
        "head_dim": 16,
        "intermediate_size_mlp": 80,
        "num_local_experts": 6,
        "attention_chunk_size": 32,
        "interleave_moe_layer_step": 2,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "projector_input_dim": 40,
        "projector_output_dim": 40,
        "vision_output_dim": 40,
    }
    config = transformers.Llama4Config(
        text_config=WORDS | words, vision_config=vision, image_token_index=patch_id
    )
    size = {"height": 16, "width": 16}
    processor = GotOcr2ImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    tokens = (*LLAMA4_TOKENS, *LLAMA4_SEPARATORS)
    oracle = save(path, config, "Llama4", processor, more=tokens, image="<|image|>")
    settings = {"size": size, "resample": 2, "max_patches": 4, "image_mean": [0.5] * 3}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        made: list[list[int]] = []
        tiles: list[Image.Image] = []
        for image in images:
            shape, cut = llama4_tiles(image)
            tiles += cut
            text = Llama4Processor._prompt_split_image(cast("Any", None), shape, 4)
            made.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        found: dict[str, Any] = {}
        if images:
            found = dict(processor(tiles, resample=2, return_tensors="pt"))
            del found["num_patches"]
        return {"input_ids": replaced(ids, made), **found}

    def encode(**given: Any) -> torch.Tensor:
        # transformers 5.17 asks how features are chosen, and later ones take it.
        asked = {"vision_feature_select_strategy": "default"}
        seen = oracle.get_image_features(**given, **asked).last_hidden_state
        return oracle.multi_modal_projector(seen.flatten(0, 1))

    def forward(asked: Any, input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
        # The whole model's own forward pass fails in transformers 5.24.
        words = asked.language_model.get_input_embeddings()(input_ids)
        if given:
            mask = (input_ids == patch_id)[..., None].expand_as(words)
            words = words.masked_scatter(mask, encode(**given))
        return asked.language_model(inputs_embeds=words, use_cache=False).logits

    return StillModel(path, oracle, prepare, room_for(prepare), encode, forward)


def llama4_tiles(image: Image.Image) -> tuple[tuple[int, int], list[Image.Image]]:
    """Return rows and columns of tiles of 16 pixels, and the tiles, of images of tests."""
    shape = {(32, 24): (2, 2), (16, 40): (3, 1), (40, 16): (1, 3)}[image.size]
    wide, tall = image.size
    canvas = np.zeros((shape[0] * 16, shape[1] * 16, 3), np.uint8)
    canvas[:tall, :wide] = np.asarray(image)
    cut = [
        Image.fromarray(canvas[top : top + 16, left : left + 16])
        for top in range(0, len(canvas), 16)
        for left in range(0, canvas.shape[1], 16)
    ]
    return shape, [*cut, image.resize((16, 16), Image.Resampling.BILINEAR)]


def replaced(ids: Sequence[int], made: Sequence[list[int]]) -> torch.Tensor:
    """Return ids with what each image becomes in its place. [1, T]"""
    left = list(made)
    whole: list[int] = []
    for token in ids:
        whole += left.pop(0) if token == PAD else [token]
    assert not left, "the ids have fewer places than there are images"
    return torch.tensor([whole])


def room_for(prepare: Prepare) -> dict[str, int]:
    """Return room for the prompts of :func:`tests.vision.claims.check_retraction`, and no more."""
    names = ("one image", "an image at the end")
    lengths = [prepare(*CASES[name])["input_ids"].shape[1] for name in names]
    longest = -(-(max(lengths) + COUNT) // 16) * 16
    return {
        "max_model_len": longest,
        "cache_tokens": max(sum(lengths) + 16, longest + 4),
        "chunked_prefill_size": 24,
    }


QWEN2_WORDS = WORDS | {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 2, 2],
    }
}
QWEN2_VISION = {
    "depth": 3,
    "num_heads": 2,
    "patch_size": 4,
    "initializer_range": 0.2,
}
QWEN2_VL = {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
QWEN2_5_VL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "window_size": 16,
    "fullatt_block_indexes": [1],
}


def make_qwen2_vl(path: Path, name: str = "Qwen2VL") -> StillModel:
    """Return Qwen2-VL, or Qwen2.5-VL, whose windows are 2 x 2 tokens."""
    vision = QWEN2_VISION | (QWEN2_VL if name == "Qwen2VL" else QWEN2_5_VL)
    config = getattr(transformers, f"{name}Config")(
        text_config=QWEN2_WORDS,
        vision_config=vision,
        image_token_id=PAD,
        video_token_id=ID_OF["<|video_pad|>"],
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    processor = Qwen2VLImageProcessorPil(
        patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    oracle = save(path, config, name, processor)
    return StillModel(path, oracle, in_squares(processor))


def in_squares(processor: Any) -> Prepare:
    """Return what prepares inputs of models that make a token of each square of patches."""

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        counts: list[int] = []
        if images:
            made = processor(list(images), return_tensors="pt")
            found = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
            counts = [int(grid.prod()) // 4 for grid in made["image_grid_thw"]]
        whole = expanded(ids, counts)
        return {"input_ids": whole, "mm_token_type_ids": (whole == PAD).int(), **found}

    return prepare


GLM4V_WORDS = WORDS | {
    "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.5,
    },
}
GLM4V_EXPERTS = {
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}


def make_glm4v(path: Path, name: str = "Glm4v", **words: Any) -> StillModel:
    """Return GLM-4.1V, 4.5V, 4.6V or GLM-OCR; positions of 5 x 5 patches are resampled."""
    config = getattr(transformers, f"{name}Config")(
        text_config=GLM4V_WORDS | words,
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "image_size": 20,
            "out_hidden_size": 64,
            "intermediate_size": 48,
        },
        image_token_id=PAD,
        video_token_id=ID_OF["<|video_pad|>"],
        image_start_token_id=START,
        image_end_token_id=END,
    )
    processor = Glm4vImageProcessorPil(
        patch_size=4, size={"shortest_edge": 512, "longest_edge": 1600}
    )
    oracle = save(path, config, name, processor)
    return StillModel(path, oracle, in_squares(processor))


def make_glm4v_moe(path: Path) -> StillModel:
    return make_glm4v(path, "Glm4vMoe", **GLM4V_EXPERTS)


def make_glm46v(path: Path) -> StillModel:
    return make_glm4v(path, "Glm46V", model_type="glm4v_moe_text", **GLM4V_EXPERTS)


def make_glm_ocr(path: Path) -> StillModel:
    rope = GLM4V_WORDS["rope_parameters"] | {"mrope_section": [4, 4, 8]}
    rope["partial_rotary_factor"] = 1.0
    return make_glm4v(path, "GlmOcr", head_dim=32, rope_parameters=rope)


def make_qwen2_5_vl(path: Path) -> StillModel:
    return make_qwen2_vl(path, "Qwen2_5_VL")


PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
    "hidden_act": "gelu",
}


def make_mistral3(path: Path, text: str = "mistral", **more: Any) -> StillModel:
    """Return Mistral 3; the byte tokens "~" and "|" are the marks after rows."""
    config = transformers.Mistral3Config(
        text_config=WORDS | {"model_type": text, "head_dim": 16, "sliding_window": None} | more,
        vision_config=PIXTRAL,
        image_token_index=PAD,
    )
    processor = PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size=8)
    return in_rows(path, save(path, config, "Mistral3", processor), processor, 8)


def make_pixtral(path: Path) -> StillModel:
    """Return Pixtral 12B, which has the architecture of LLaVA; each patch is a token."""
    config = transformers.LlavaConfig(
        text_config=WORDS | {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        vision_config=PIXTRAL,
        image_token_index=PAD,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    processor = PixtralImageProcessorPil(size={"longest_edge": 20}, patch_size=4)
    return in_rows(path, save(path, config, "Llava", processor), processor, 4)


def in_rows(path: Path, oracle: Any, processor: Any, unit: int) -> StillModel:
    """Return a model whose images stand in rows of tokens for ``unit`` pixels each."""
    marks = {"image_break_token": "~", "image_end_token": "|"}
    (path / "processor_config.json").write_text(json.dumps(marks))
    row_mark, end_mark = (ALPHABET.index(mark) for mark in marks.values())

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        made: list[list[int]] = []
        if images:
            found = dict(processor(list(images), return_tensors="pt"))
            for height, width in found["image_sizes"].tolist():
                row = [*[PAD] * (width // unit), row_mark]
                made.append([*(row * (height // unit))[:-1], end_mark])
        return {"input_ids": replaced(ids, made), **found}

    return StillModel(path, oracle, prepare)


def make_ministral3(path: Path) -> StillModel:
    return make_mistral3(path, "ministral3")


def make_mistral4(path: Path) -> StillModel:
    sizes = {
        "q_lora_rank": 40,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 24,
        "qk_rope_head_dim": 16,
        "head_dim": 40,
        "num_key_value_heads": 4,
        "v_head_dim": 20,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
    }
    return make_mistral3(path, "mistral4", **sizes)


MAKERS: dict[str, Callable[[Path], StillModel]] = {
    "gemma3n": make_gemma3n,
    "glm4v": make_glm4v,
    "glm4v-moe": make_glm4v_moe,
    "glm46v": make_glm46v,
    "glm-ocr": make_glm_ocr,
    "idefics3": make_idefics3,
    "smolvlm": make_smolvlm,
    "smolvlm-uncut": make_smolvlm_uncut,
    "internvl": make_internvl,
    "internvl-large": make_internvl_large,
    "kimi-k2.5": make_kimi_k25,
    "llama4": make_llama4,
    "llava": make_llava,
    "llava-mistral": make_llava_mistral,
    "llava-qwen2": make_llava_qwen2,
    "llava-next": make_llava_next,
    "llava-onevision": make_llava_onevision,
    "mistral3": make_mistral3,
    "ministral3": make_ministral3,
    "mistral4": make_mistral4,
    "pixtral": make_pixtral,
    "qwen2-vl": make_qwen2_vl,
    "qwen2.5-vl": make_qwen2_5_vl,
}
QWEN2_VL_NAMES = ("qwen2-vl", "qwen2.5-vl")
"""Those of them that take videos."""

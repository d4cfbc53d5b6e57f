"""Small models of architectures that see images token by token, each as its hub checkpoints are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.vision.conftest import ALPHABET, END, ID_OF, PAD, START
from tests.vision.still import WORDS, StillModel, expanded, save

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

    def prepare(ids: list[int], images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        counts: list[int] = []
        if images:
            made = processor(list(images), return_tensors="pt")
            found = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
            counts = [int(grid.prod()) // 4 for grid in made["image_grid_thw"]]
        whole = expanded(ids, counts)
        return {"input_ids": whole, "mm_token_type_ids": (whole == PAD).int(), **found}

    return StillModel(path, oracle, prepare)


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
        whole: list[int] = []
        for token in ids:
            whole += made.pop(0) if token == PAD else [token]
        return {"input_ids": torch.tensor([whole]), **found}

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
    "llava": make_llava,
    "llava-mistral": make_llava_mistral,
    "llava-qwen2": make_llava_qwen2,
    "mistral3": make_mistral3,
    "ministral3": make_ministral3,
    "mistral4": make_mistral4,
    "pixtral": make_pixtral,
    "qwen2-vl": make_qwen2_vl,
    "qwen2.5-vl": make_qwen2_5_vl,
}

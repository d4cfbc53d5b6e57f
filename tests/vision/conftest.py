"""A small Qwen3-VL of random weights, saved as transformers saves it, and the oracle itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.models.conftest import randomize

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
ID_OF = {token: 256 + index for index, token in enumerate(SPECIALS)}
PAD, START, END = ID_OF["<|image_pad|>"], ID_OF["<|vision_start|>"], ID_OF["<|vision_end|>"]
TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n"
    "{%- if message.content is string %}{{ message.content }}"
    "{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- else %}{{ part.text }}{%- endif %}{%- endfor %}{%- endif %}<|im_end|>\n"
    "{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 272,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [8, 4, 4],
        "mrope_interleaved": True,
    },
    "eos_token_id": ID_OF["<|im_end|>"],
}
VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 1],
    "initializer_range": 0.2,
}


VIDEO = {
    "size": {"shortest_edge": 256, "longest_edge": 8192},
    "patch_size": 4,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "fps": 2,
    "min_frames": 4,
    "max_frames": 12,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@dataclass
class VisionModel:
    """A checkpoint on disk, the transformers model that wrote it, and its image processor."""

    path: Path
    oracle: transformers.PreTrainedModel
    processor: Qwen2VLImageProcessorPil

    def inputs(self, ids: Sequence[int], images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return what the oracle is given for ids with one placeholder an image."""
        found: dict[str, Any] = {}
        counts: list[int] = []
        if images:
            made = self.processor(list(images), return_tensors="pt")
            found = {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
            counts = [int(grid.prod()) // 4 for grid in made["image_grid_thw"]]
        expanded: list[int] = []
        for token in ids:
            expanded += [PAD] * counts.pop(0) if token == PAD else [token]
        types = [[int(token == PAD) for token in expanded]]
        return {
            "input_ids": torch.tensor([expanded]),
            "mm_token_type_ids": torch.tensor(types, dtype=torch.int32),
            **found,
        }

    def logprobs(self, ids: Sequence[int], images: Sequence[Image.Image]) -> Tensor:
        """Return the logprob of every id but the first of an expanded prompt. [T - 1]"""
        given = self.inputs(ids, images)
        with torch.no_grad():
            logits = self.oracle(**given).logits[0]
        return logits[:-1].log_softmax(-1).gather(1, given["input_ids"][0, 1:, None])[:, 0]

    def generate(self, ids: Sequence[int], images: Sequence[Image.Image], count: int) -> list[int]:
        """Return the ids that the oracle draws greedily, each by a forward pass of all before it.

        Its own ``generate`` draws others after a prompt of Qwen3.5 that ends with an image.
        """
        given = self.inputs(ids, images)
        drawn: list[int] = []
        for _ in range(count):
            with torch.no_grad():
                drawn.append(int(self.oracle(**given, use_cache=False).logits[0, -1].argmax()))
            for name, value in (("input_ids", drawn[-1]), ("mm_token_type_ids", 0)):
                more = torch.tensor([[value]], dtype=given[name].dtype)
                given[name] = torch.cat((given[name], more), dim=1)
        return drawn


HYBRID = {
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "rope_parameters": TEXT["rope_parameters"]
    | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25},
}
EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}
FAMILIES = {
    "Qwen3VL": (TEXT, VISION),
    "Qwen3VLMoe": (TEXT | EXPERTS, VISION),
    "Qwen3_5": (TEXT | HYBRID, VISION),
    "Qwen3_5Moe": (TEXT | HYBRID | EXPERTS, VISION),
}


@pytest.fixture(scope="session")
def vl(tmp_path_factory: pytest.TempPathFactory) -> VisionModel:
    return make_model("Qwen3VL", tmp_path_factory.mktemp("vl") / "tiny-vl")


def make_model(family: str, path: Path) -> VisionModel:
    torch.manual_seed(0)
    text, vision = FAMILIES[family]
    if not family.startswith("Qwen3VL"):
        vision = {name: value for name, value in vision.items() if "deepstack" not in name}
    config = getattr(transformers, f"{family}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=PAD,
        video_token_id=ID_OF["<|video_pad|>"],
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    kind = getattr(transformers, f"{family}ForConditionalGeneration")
    oracle = kind._from_config(config, attn_implementation="eager").eval()
    randomize(oracle)
    oracle.save_pretrained(path)
    save_tokenizer(path, TEMPLATE)
    processor = Qwen2VLImageProcessorPil(
        patch_size=4,
        size={"shortest_edge": 64, "longest_edge": 1024},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor.save_pretrained(path)
    (path / "video_preprocessor_config.json").write_text(json.dumps(VIDEO))
    return VisionModel(path, oracle, processor)


def save_tokenizer(
    path: Path, template: str, more: Sequence[str] = (), image: str = "<|image_pad|>"
) -> None:
    """Save one that has a token for each byte, the special ones, and ``more`` of them.

    ``image`` is what it calls the placeholder of an image.
    """
    template = template.replace("<|image_pad|>", image)
    specials = [image if token == "<|image_pad|>" else token for token in SPECIALS]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(ALPHABET)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*specials, *more])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=template
    )
    fast.save_pretrained(path)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(drawn)


def data_url(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"

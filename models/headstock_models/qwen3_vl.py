"""Qwen3-VL, dense and with experts: Qwen3 with positions on three axes, and an image encoder.

Source: Bai et al. 2025, "Qwen3-VL Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstock.checkpoint.files import StoredTensor
from headstock.graph.axes import AxialRotary
from headstock.graph.config import read_config, require
from headstock.graph.context import Context
from headstock.graph.stacked import Stacked, split_stacked
from headstock_models.llama import FULL, Decoder
from headstock_models.qwen3 import Qwen3Config
from headstock_models.qwen3_moe import Qwen3MoeConfig
from headstock_models.qwen_vision import QwenVisionConfig, VisualForConditionalGeneration

GATE_UP = "experts.gate_up_proj"


class Qwen3VLMoeConfig(Qwen3MoeConfig, frozen=True, kw_only=True):
    norm_topk_prob: bool = True


class Qwen3VLVisionConfig(QwenVisionConfig, frozen=True, kw_only=True):
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)


class Qwen3VLForConditionalGeneration(VisualForConditionalGeneration):
    """A decoder with an image encoder, and an output layer, perhaps tied to the embedding."""

    vision_type = Qwen3VLVisionConfig
    default_sections = (24, 20, 20)

    def read_text(self, text: dict[str, Any]) -> Qwen3Config:
        require(text, use_sliding_window=(False,))
        return read_config(Qwen3Config, text)

    def rotary_dim(self, text: dict[str, Any], c: Qwen3Config) -> int:
        return c.sizes[2]

    def make_decoder(self, ctx: Context, c: Qwen3Config, rotary: AxialRotary) -> Decoder:
        return Decoder(ctx, c, {FULL: rotary})


class Qwen3VLMoeForConditionalGeneration(Qwen3VLForConditionalGeneration):
    """The same with mixtures of experts in some layers, or all."""

    def read_text(self, text: dict[str, Any]) -> Qwen3Config:
        require(text, use_sliding_window=(False,), norm_topk_prob=(True,))
        # transformers 5 saves what the hub calls num_experts by another name.
        c = read_config(Qwen3VLMoeConfig, {"num_experts": text.get("num_local_experts"), **text})
        self._num_wide = 2 * c.moe_intermediate_size
        return c

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors with one for each matrix of each expert.

        The hub's have inputs before outputs, those that transformers saves after them.
        """
        shapes = (tensor.shape for name, tensor in index.items() if name.endswith(f".{GATE_UP}"))
        is_turned = any(len(shape) == 3 and shape[1] != self._num_wide for shape in shapes)
        stacks = {
            GATE_UP: Stacked("experts", ("gate_proj", "up_proj"), has_inputs_first=is_turned),
            "experts.down_proj": Stacked("experts", ("down_proj",), has_inputs_first=is_turned),
        }
        return split_stacked(index, stacks)

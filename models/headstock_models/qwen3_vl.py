"""Qwen3-VL, dense: Qwen3 with positions in time, height and width, and an image encoder.

Source: Bai et al. 2025, "Qwen3-VL Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from typing import Any

from headstock.graph.axes import AxialRotary
from headstock.graph.config import read_config, require
from headstock.graph.context import Context
from headstock_models.llama import FULL, Decoder
from headstock_models.qwen3 import Qwen3Config
from headstock_models.qwen_vision import QwenVisionConfig, VisualForConditionalGeneration


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

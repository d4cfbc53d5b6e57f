"""Qwen3.5, dense and with experts: Qwen3-Next with a matrix for each kind of features.

Text has the same place on all three axes of its rotary positions, so that one table does for it.
Source: Qwen team 2026, "Qwen3.5"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from headstock.graph.arranged import ArrangedLinear, Rows
from headstock.graph.axes import AxialRotary
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock_models.qwen3_next import (
    Decoder,
    DeltaNet,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    read_text_config,
    rotary_size,
)
from headstock_models.qwen_vision import QwenVisionConfig, VisualForConditionalGeneration


class Qwen35Config(Qwen3NextConfig, frozen=True, kw_only=True):
    intermediate_size: int = 0

    def make_mixer(self, ctx: Context) -> Module:
        return SeparateDeltaNet(ctx, self)


class SeparateDeltaNet(DeltaNet):
    """W_o of what linear attention reads; each kind of features has its own matrix, or rows."""

    def make_inputs(self, ctx: Context, c: Qwen3NextConfig) -> Linear:
        """Return the product that makes queries, keys, values, gates, b and a."""
        heads, keys = c.linear_num_key_heads, c.linear_key_head_dim
        each = c.linear_num_value_heads // heads
        wide = each * c.linear_value_head_dim
        key = partial(Rows, size=keys, stride=keys, num_heads=heads)
        value = partial(Rows, size=wide, stride=wide, num_heads=heads)
        small = [Rows(first=0, size=each, stride=each, num_heads=heads)]
        leaves = {
            "in_proj_qkv": [key(first=0), key(first=heads * keys), value(first=2 * heads * keys)],
            "in_proj_z": [value(first=0)],
            "in_proj_b": small,
            "in_proj_a": small,
        }
        return ArrangedLinear(ctx, c.hidden_size, leaves)


class Qwen35ForConditionalGeneration(VisualForConditionalGeneration):
    """The same with an image encoder, as all its checkpoints are: Qwen3-VL's, without deepstack."""

    vision_type = QwenVisionConfig
    default_sections = (11, 11, 10)
    skip: Mapping[str, str] = Qwen3NextForCausalLM.skip

    def read_text(self, text: dict[str, Any]) -> Qwen35Config:
        return read_text_config(Qwen35Config, text)

    def rotary_dim(self, text: dict[str, Any], c: Qwen35Config) -> int:
        return rotary_size(c, text)

    def make_decoder(self, ctx: Context, c: Qwen35Config, rotary: AxialRotary) -> Decoder:
        return Decoder(ctx, c, rotary)


class Qwen35ForCausalLM(Qwen3NextForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Qwen35Config

"""LLaVA-Next and LLaVA-OneVision: an image small, then a mosaic of its parts, row by row.

Tokens of a mosaic are what the encoder makes of its tiles, without padding, and behind each row a
feature that is the same in all images. LLaVA-OneVision resamples large mosaics.

Shapes: N patches of tiles, each a token; M tokens of images; F hidden size of the decoder. Source:
Liu et al. 2024, "LLaVA-NeXT", and Li et al. 2024, "LLaVA-OneVision"; names as in Hugging Face
transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.config import read_config, require, section
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.vision import ENCODER_ACTIVATIONS, Grid, PlainMLP, Send, View, encoder_context
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.vision import mix_patches, put_before_runs, take_patches
from headstock_models.clip import ClipConfig, ClipEncoder
from headstock_models.image_text import (
    ImageDecoder,
    ImageTextModel,
    LearnedRow,
    PlainMedia,
    image_text_names,
)
from headstock_models.llama import Decoder
from headstock_models.llava import ENCODER, TEXT, num_layers_of
from headstock_models.siglip import SiglipConfig, SiglipEncoder

SIGLIP = "siglip_vision_model"
NEAR = 4
"""Patches that a resampled token is made of."""


class MosaicModel(ImageTextModel):
    """A decoder with an encoder of tiles, and a feature that ends rows."""

    def __init__(
        self, ctx: Context, tower: Module, projector: Module, decoder: Module, size: int, side: int
    ) -> None:
        super().__init__(tower, projector, decoder)
        self.row_end = LearnedRow(ctx, size, leaf="image_newline")
        self._side = side
        spec = ctx.spec(size=size)
        self._put = ctx.ops.resolve(put_before_runs, spec)
        self._take = ctx.ops.resolve(take_patches, spec)
        self._mix = ctx.ops.resolve(mix_patches, spec)

    def arrange(
        self, features_NF: Tensor, grids: Sequence[Grid], views: Sequence[View | None], send: Send
    ) -> Tensor:
        """Return the features of tokens, of those of patches as the tiles have them. [M, F]"""
        begin, rows, weights = 1, [], []
        for grid, view in zip(grids, views, strict=True):
            count = int(np.prod(grid))
            places_HW = begin + tiled(grid, self._side)
            rows_MB, weights_MB = seen(places_HW, view)
            rows.append(rows_MB)
            weights.append(weights_MB)
            begin += count
        ended = self._put(features_NF, self.row_end.values_D, lengths=[begin - 1])
        rows_MB, weights_MB = np.concatenate(rows), np.concatenate(weights)
        if all(view is None or is_whole(view) for view in views):
            return self._take(ended, send(rows_MB[:, 0].copy()))
        return self._mix(ended, send(rows_MB), send(weights_MB))


def is_whole(view: View) -> bool:
    """Whether each token is one patch."""
    return (view.rows, view.columns) == (view.tall, view.wide)


def tiled(grid: Grid, side: int) -> np.ndarray:
    """Return where each patch of a mosaic is among those of its tiles, one after another. [H, W]"""
    _, height, width = grid
    tiles = np.arange(height * width).reshape(height // side, width // side, side, side)
    return tiles.transpose(0, 2, 1, 3).reshape(height, width)


def seen(places_HW: np.ndarray, view: View | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the patches that make each token of an image, and their weights. [M, NEAR] each

    Patch 0 is the feature that ends rows.
    """
    if view is None:
        return _alone(places_HW.reshape(-1))
    height, width = places_HW.shape
    top, left = (height - view.rows) // 2, (width - view.columns) // 2
    shown = places_HW[top : top + view.rows, left : left + view.columns]
    down, across = _near(view.rows, view.tall), _near(view.columns, view.wide)
    rows = [shown[np.ix_(y, x)].reshape(-1) for y, _ in down for x, _ in across]
    weights = [np.outer(v, h).reshape(-1) for _, v in down for _, h in across]
    rows_MB, weights_MB = np.stack(rows, axis=1), np.stack(weights, axis=1)
    if not view.marks:
        return rows_MB, weights_MB
    rows_MB = rows_MB.reshape(view.marks, -1, NEAR)
    weights_MB = weights_MB.reshape(view.marks, -1, NEAR)
    ends, one = _alone(np.zeros(view.marks, np.int64))
    rows_MB = np.concatenate((rows_MB, ends[:, None]), axis=1).reshape(-1, NEAR)
    weights_MB = np.concatenate((weights_MB, one[:, None]), axis=1).reshape(-1, NEAR)
    return rows_MB, weights_MB


def _alone(places_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what :func:`seen` returns of tokens that are one patch each."""
    weights_MB = np.zeros((len(places_M), NEAR), np.float32)
    weights_MB[:, 0] = 1
    return np.repeat(places_M.astype(np.int64)[:, None], NEAR, axis=1), weights_MB


def _near(count: int, wanted: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the two places of ``count`` next to each of ``wanted`` in their middles, and weights.

    Source:
        ``interpolate`` of PyTorch, bilinear, with corners that are not aligned.
    """
    middles = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * np.float32(count / wanted)
    exact = np.maximum(middles - np.float32(0.5), 0)
    low = np.minimum(np.floor(exact).astype(np.int64), count - 1)
    part = exact - low.astype(np.float32)
    return [(low, 1 - part), (np.minimum(low + 1, count - 1), part)]


class LlavaNextForConditionalGeneration(Model):
    """A decoder with CLIP's encoder of tiles; nothing is resampled."""

    text_type, defaults = "llama", ENCODER
    longest = 3
    """Tiles of a mosaic's longer side where the configuration has no sizes."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = {"model_type": self.text_type, **section(config, "text_config")}
        if config.get("tie_word_embeddings"):
            text["tie_word_embeddings"] = True
        vision = {**self.defaults, **(config.get("vision_config") or {})}
        require(text, model_type=TEXT)
        require(config, multimodal_projector_bias=(True,), projector_hidden_act=BY_CONFIG_NAME)
        require(vision, model_type=(self.defaults["model_type"],))
        decoder = TEXT[text["model_type"]](ctx, text)
        assert isinstance(decoder.model, Decoder), f"{decoder.model} is not a decoder of text"
        whole, size = encoder_context(ctx), int(text["hidden_size"])
        tower, c = self.make_tower(whole, config, vision)
        activation = BY_CONFIG_NAME[config.get("projector_hidden_act") or "gelu"]
        sizes, leaves = (c.hidden_size, size, size), ("linear_1", "linear_2")
        projector = PlainMLP(whole, sizes, activation, leaves)
        words = ImageDecoder(ctx, decoder.model, size)
        self.model = MosaicModel(whole, tower, projector, words, size, c.side)
        self.lm_head = decoder.lm_head
        self.media = PlainMedia(
            self.model.encode,
            feature_size=size,
            merge=1,
            patch_bytes=c.patch_bytes,
            max_side=self._longest(config, c),
            tile_side=c.side,
            arrange=self.model.arrange,
        )

    def _longest(self, config: Mapping[str, Any], c: SiglipConfig) -> int:
        """Return the patches of the longer side of the largest mosaic."""
        sizes = config.get("image_grid_pinpoints") or [[self.longest * c.image_size]]
        return max(max(size) for size in sizes) // c.patch_size

    def make_tower(
        self, ctx: Context, config: Mapping[str, Any], vision: Mapping[str, Any]
    ) -> tuple[Module, SiglipConfig]:
        """Return the encoder and its configuration."""
        require(config, vision_feature_select_strategy=("default",))
        require(vision, hidden_act=ENCODER_ACTIVATIONS)
        c = read_config(ClipConfig, vision)
        num_layers = num_layers_of(config.get("vision_feature_layer", -2), c.num_hidden_layers)
        self.skip = {**Model.skip, **unused_parts(num_layers, c.num_hidden_layers)}
        return ClipEncoder(ctx, c, num_layers), c

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names: the hub has older ones."""
        return image_text_names(index)


class LlavaOnevisionForConditionalGeneration(LlavaNextForConditionalGeneration):
    """A decoder with SigLIP's encoder of tiles; large mosaics are resampled."""

    text_type, longest = "qwen2", 6
    defaults: Mapping[str, Any] = {
        "model_type": SIGLIP,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }

    def make_tower(
        self, ctx: Context, config: Mapping[str, Any], vision: Mapping[str, Any]
    ) -> tuple[Module, SiglipConfig]:
        strategy = config.get("vision_feature_select_strategy", "full")
        require(
            {"vision_feature_select_strategy": strategy}, vision_feature_select_strategy=("full",)
        )
        require(vision, hidden_act=BY_CONFIG_NAME)
        c = read_config(SiglipConfig, vision)
        num_layers = num_layers_of(config.get("vision_feature_layer", -1), c.num_hidden_layers)
        self.skip = {**Model.skip, **unused_parts(num_layers, c.num_hidden_layers)}
        return SiglipEncoder(ctx, c, merge=1, num_layers=num_layers), c


def unused_parts(num_layers: int, count: int) -> Mapping[str, str]:
    """Return what of a checkpoint's encoder is not read, and why."""
    unused = "|".join(str(number) for number in range(num_layers, count))
    layers = (
        {}
        if not unused
        else {
            rf"vision_tower\.encoder\.layers\.({unused})\.": "the layers before make the features"
        }
    )
    return {
        **layers,
        r"vision_tower\.post_layernorm\.": "it follows the last layer",
        r"vision_tower\.head\.": "it makes one vector of an image",
        r"vision_tower\.embeddings\.position_ids$": "old files count the places, too",
    }

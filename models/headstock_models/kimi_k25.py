"""Kimi K2.5 to K2.7: DeepSeek V3 under names of its own, with MoonViT 3D for images.

Source: Kimi team 2026, "Kimi K2.5"; names as on the hub, or as transformers calls them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.config import require, section
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.vision import Grid, encoder_context
from headstock.ops.attention import StepBatch
from headstock_models.deepseek_v3 import DeepseekV3ForCausalLM
from headstock_models.image_text import ImageDecoder, PlainMedia, TextDecoder, image_text_names
from headstock_models.moonvit import (
    EPS,
    MAX_SIDE,
    MoonVit,
    MoonVitProjector,
    moonvit_names,
    read_moonvit,
)


class KimiModel(Module):
    """An encoder, a projector and a decoder of text."""

    def __init__(self, tower: MoonVit, projector: MoonVitProjector, decoder: ImageDecoder) -> None:
        self.vision_tower = tower
        self.mm_projector = projector
        self.language_model = decoder

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        return self.language_model(ids_T, batch)

    def encode(self, pixels_NP: Tensor, grids: Sequence[Grid], *more: Any) -> Tensor:
        """Return features of tokens. [M, F]"""
        return self.mm_projector(self.vision_tower(pixels_NP, grids, *more))


class KimiK25ForConditionalGeneration(Model):
    """A decoder with an encoder of images, and an output layer."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = section(config, "text_config")
        require(text, model_type=("deepseek_v3", "kimi_k2"))
        if config.get("tie_word_embeddings") is not None:
            text["tie_word_embeddings"] = config["tie_word_embeddings"]
        vision = section(config, "vision_config")
        require(vision, projector_hidden_act=("gelu",))
        c = read_moonvit(vision)
        require(config, projection_hidden_size=(c.hidden_size,))
        eps = config.get("projection_layer_norm_eps") or vision.get("projector_ln_eps") or EPS
        decoder = DeepseekV3ForCausalLM(ctx, text)
        drafts = {
            pattern.replace(r"^model\.", r"^model\.language_model\."): why
            for pattern, why in decoder.skip.items()
        }
        self.skip = {**Model.skip, **drafts}
        whole, size = encoder_context(ctx), int(text["hidden_size"])
        tower, projector = MoonVit(whole, c), MoonVitProjector(whole, c, size, float(eps))
        words = ImageDecoder(ctx, cast("TextDecoder", decoder.model), size)
        self.model = KimiModel(tower, projector, words)
        self.lm_head = decoder.lm_head
        self._num_heads = c.num_attention_heads
        self.media = PlainMedia(
            self.model.encode,
            feature_size=size,
            merge=c.merge,
            patch_bytes=c.patch_bytes,
            max_side=MAX_SIDE,
            pooled_frames=c.pos_emb_time,
        )

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names; transformers writes layers as ``blocks``."""
        blocks = re.compile(r"^model\.language_model\.blocks\.")
        named = image_text_names(moonvit_names(index, self._num_heads))
        return {blocks.sub("model.language_model.layers.", name): x for name, x in named.items()}

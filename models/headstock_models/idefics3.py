"""Idefics3 and SmolVLM: squares of what SigLIP makes of an image's tiles, projected to a decoder.

Shapes: N patches, M = N / merge² tokens of images, D hidden size of the encoder, F the decoder's.
Source: Laurençon et al. 2024, "Building and better understanding vision-language models"; names as
in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.config import read_config, require, section
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.vision import encoder_context
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock_models.image_text import ImageDecoder, ImageTextModel, PlainMedia
from headstock_models.llama import Decoder
from headstock_models.llava import TEXT
from headstock_models.siglip import SiglipConfig, SiglipEncoder
from headstock_models.stored_rows import renamed

NAMES = (
    (r"^model\.text_model\.", "model.language_model."),
    (r"^model\.vision_model\.", "model.vision_tower."),
    (r"^model\.connector\.modality_projection\.", "model.multi_modal_projector."),
)
"""What checkpoints call tensors, to what they are called here."""
NEARLY_ONE = 1 - 1e-6


class Idefics3VisionConfig(SiglipConfig, frozen=True, kw_only=True):
    hidden_size: int = 1152
    num_attention_heads: int = 16
    patch_size: int = 32


class SquareProjector(Module):
    """Patches of a square joined and projected to the decoder's size."""

    def __init__(self, ctx: Context, size: int, merge: int, out: int) -> None:
        self._joined = size * merge**2
        self.layer = Linear(ctx, self._joined, {"proj": out})

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return features of tokens. [M, F]"""
        return self.layer(x_ND.view(-1, self._joined))


class Idefics3ForConditionalGeneration(Model):
    """A decoder with SigLIP's encoder of tiles."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = {"model_type": "llama", **section(config, "text_config")}
        if config.get("tie_word_embeddings"):
            text["tie_word_embeddings"] = True
        vision = config.get("vision_config") or {}
        require(text, model_type=TEXT)
        require(vision, hidden_act=BY_CONFIG_NAME)
        c = read_config(Idefics3VisionConfig, vision)
        decoder = TEXT[text["model_type"]](ctx, text)
        assert isinstance(decoder.model, Decoder), f"{decoder.model} is not a decoder of text"
        whole, merge = encoder_context(ctx), int(config.get("scale_factor") or 2)
        size = int(text["hidden_size"])
        tower = SiglipEncoder(whole, c, merge=merge, places_L=table_places(c.side))
        projector = SquareProjector(whole, c.hidden_size, merge, size)
        self.model = ImageTextModel(tower, projector, ImageDecoder(ctx, decoder.model, size))
        self.lm_head = decoder.lm_head
        self.media = PlainMedia(
            self.model.encode,
            feature_size=size,
            merge=merge,
            patch_bytes=c.patch_bytes,
            max_side=c.side,
        )

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by the names of :class:`ImageTextModel`'s leaves."""
        return renamed(index, NAMES)


def table_places(side: int) -> np.ndarray:
    """Return the place in the table of positions of each row of a tile of ``side`` rows.

    Nearly always its own: fractions of the side are looked for among others, and both are rounded.

    Source:
        ``Idefics3VisionEmbeddings`` of Hugging Face transformers.
    """
    bounds = torch.arange(1 / side, 1.0, 1 / side)
    fractions = torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor(side))
    return torch.bucketize(fractions.clamp(max=NEARLY_ONE), bounds, right=True).numpy()

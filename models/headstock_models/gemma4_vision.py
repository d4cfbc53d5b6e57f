"""Gemma 4 with images: features of the encoder stand in the place of embeddings.

Shapes: M tokens of images, D features of the encoder, T tokens in the step. Source:
``Gemma4ForConditionalGeneration`` of Hugging Face transformers; names as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.config import section
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.vision import encoder_context
from headstock.ops.attention import StepBatch
from headstock.ops.media import place_features, replace_ids
from headstock.ops.norm import rms_norm
from headstock_models.gemma4 import Gemma4Config, Gemma4Decoder, Gemma4ForCausalLM
from headstock_models.gemma4_encoder import Gemma4Encoder, Gemma4VisionConfig, read_vision
from headstock_models.image_text import ImageTextModel, PlainMedia, image_text_names
from headstock_models.llama import SLIDING

WITHOUT = {
    r"^model\.(audio_tower|embed_audio)\.": "requests bring no sound",
}


class Gemma4Projector(Module):
    """W x / rms(x): features of tokens in the decoder's size."""

    alias = "embed_vision"

    def __init__(self, ctx: Context, c: Gemma4VisionConfig, size: int) -> None:
        width, eps = c.hidden_size, c.rms_norm_eps
        self._ones_D = torch.ones(width, dtype=ctx.dtype, device=ctx.device.torch_device)
        self._norm = partial(ctx.ops.resolve(rms_norm, ctx.spec(size=width)), eps=eps)
        self.product = Linear(ctx, width, {"embedding_projection": size})

    def forward(self, x_MD: Tensor) -> Tensor:
        return self.product(self._norm(x_MD, self._ones_D))


class Gemma4ImageDecoder(Module):
    """A decoder of text; tokens of images have features instead of embeddings.

    For layers that have embeddings of their own they are padding.
    """

    def __init__(self, ctx: Context, decoder: Gemma4Decoder, size: int, padding: int) -> None:
        self.embed, self.layers, self.norm = decoder.embed, decoder.layers, decoder.norm
        self.layer_embed = decoder.layer_embed
        if decoder.layer_embed is not None:
            self.to_layers, self.layers_norm = decoder.to_layers, decoder.layers_norm
        self._layer_inputs, self._decode = decoder.layer_inputs, decoder.decode
        self._place = ctx.ops.resolve(place_features, ctx.spec(size=size))
        self._replace = partial(ctx.ops.resolve(replace_ids, ctx.spec()), other=padding)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, media = self.embed(ids_T), batch.media
        if media is not None:
            x_TD = self._place(x_TD, media.features_MF, media.rows_T)
            ids_T = self._replace(ids_T, media.rows_T)
        return self._decode(x_TD, self._layer_inputs(ids_T, x_TD), batch)


class Gemma4ImageTextConfig(Gemma4Config, frozen=True, kw_only=True):
    """Of a model of images."""

    pad_token_id: int = 0

    def sees_spans(self, number: int) -> bool:
        """Whether tokens of an image see all of it: in layers with a window, of some models."""
        return self.sees_images and self.kind(number) == SLIDING

    @property
    def sees_images(self) -> bool:
        """Whether there are such layers."""
        return self.use_bidirectional_attention == "vision"


class Gemma4ForConditionalGeneration(Gemma4ForCausalLM):
    """A decoder with an image encoder."""

    config_type = Gemma4ImageTextConfig
    skip: Mapping[str, str] = {**Model.skip, **WITHOUT}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = section(config, "text_config")
        if "tie_word_embeddings" in config:
            text["tie_word_embeddings"] = config["tie_word_embeddings"]
        vision = read_vision(config.get("vision_config"))
        super().__init__(ctx, text)
        c = self.read(ctx, text)
        assert isinstance(c, Gemma4ImageTextConfig), f"{c} is of a model without images"
        assert isinstance(self.model, Gemma4Decoder), f"{self.model} is not a decoder of Gemma 4"
        size, whole = c.hidden_size, encoder_context(ctx)
        decoder = Gemma4ImageDecoder(ctx, self.model, size, c.pad_token_id)
        projector = Gemma4Projector(whole, vision, size)
        self.model = ImageTextModel(Gemma4Encoder(whole, vision), projector, decoder)
        self.media = PlainMedia(
            self.model.encode,
            feature_size=size,
            merge=vision.pooling_kernel_size,
            patch_bytes=vision.patch_bytes,
            max_side=vision.position_embedding_size,
            sees_spans=c.sees_images,
        )

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names, with a matrix for each expert."""
        return super().named(image_text_names(index))

"""Gemma 3n with images: features of the encoder stand in the place of embeddings.

Ids behind those of text are of images and of sound: they have embeddings of their own, projected to
the decoder's size. What they are is computed once, when the weights are loaded.

Shapes: M tokens of images, F features of the encoder, T tokens in the step, D hidden size, K ids.
Source: ``Gemma3nForConditionalGeneration`` of Hugging Face transformers; names as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.errors import UnsupportedError
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require, section
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Layer, Leaf, Module
from headstock.graph.source import Source
from headstock.graph.vision import encoder_context
from headstock.ops.attention import StepBatch
from headstock.ops.embedding import put_rows
from headstock.ops.media import place_features
from headstock.ops.norm import rms_norm
from headstock.quantization.plan import Layout, Role
from headstock_models.gemma3n import Gemma3nDecoder, Gemma3nForCausalLM
from headstock_models.image_text import ImageTextModel, PlainMedia, image_text_names
from headstock_models.mobilenet_v5 import FEATURES, MobileNetConfig, MobileNetV5

ARCHITECTURE = "mobilenetv5_300m_enc"
SIZES = ("channel_multiplier", "msfa_output_resolution")
"""Of timm's arguments those that say how large the encoder is."""


class ImageIds(ModelConfig, frozen=True, kw_only=True):
    """What is said of the ids of images and the features of their tokens."""

    hidden_size: int = 2048
    vocab_size: int = 128
    vocab_offset: int = 262_144
    rms_norm_eps: float = 1e-6


class SoundIds(ImageIds, frozen=True, kw_only=True):
    """Likewise of sound."""

    hidden_size: int = 1536
    vocab_offset: int = 262_272


class Embedder(Layer):
    """Embeddings of some ids, and features of tokens, in the decoder's size.

    That is rms_norm(W (w · rms_norm(x))), with one w for embeddings and another for features.

    Args:
        ctx: What to build with.
        c: Sizes.
        rows_KD: Filled with the embeddings, once all weights are there.
        leaf: What is before the checkpoint names.
        has_features: Whether features of tokens go through it.
    """

    def __init__(
        self, ctx: Context, c: ImageIds, rows_KD: Tensor, *, leaf: str, has_features: bool
    ) -> None:
        self._rows_KD, size, width = rows_KD, rows_KD.shape[1], c.hidden_size
        new = partial(torch.ones, dtype=ctx.dtype, device=ctx.device.torch_device)
        self._values = {
            f"{leaf}.embedding.weight": new(c.vocab_size, width),
            f"{leaf}.hard_embedding_norm.weight": new(width),
        }
        if has_features:
            self._values[f"{leaf}.soft_embedding_norm.weight"] = new(width)
        self._product = Linear(ctx, width, {f"{leaf}.embedding_projection": size})
        self._ones_D = new(size)
        self._norm = ctx.ops.resolve(rms_norm, ctx.spec(size=width))
        run = ctx.ops.resolve(rms_norm, ctx.spec(size=size))
        self._eps, self._out_norm = c.rms_norm_eps, partial(run, eps=c.rms_norm_eps)
        self._features_eps = c.rms_norm_eps / width
        self._missing = {found.name for found in self.leaves()}

    def forward(self, x_MF: Tensor) -> Tensor:
        """Return features of tokens. The encoder's are taken times sqrt(F). [M, D]"""
        *_, weight_F = self._values.values()
        # A norm takes the factor away again, but for what is added to the mean square.
        return self._project(self._norm(x_MF, weight_F, eps=self._features_eps))

    def _project(self, x_MF: Tensor) -> Tensor:
        return self._out_norm(self._product(x_MF), self._ones_D)

    def leaves(self) -> Sequence[Leaf]:
        """Return the embeddings, the weights of norms and the matrix."""
        own = [Leaf(name, tuple(value.shape), Role.BIAS) for name, value in self._values.items()]
        return [*own, *self._product.leaves()]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Make room for the matrix; all else is small, and made at once."""
        self._product.allocate({leaf.name: layouts[leaf.name] for leaf in self._product.leaves()})

    def load(self, name: str, source: Source) -> None:
        """Take a tensor; when none is missing any more, the embeddings are made."""
        if name in self._values:
            self._values[name].copy_(source.read(0, source.shape[0])["weight"])
        else:
            self._product.load(name, source)
        self._missing.discard(name)
        if not self._missing:
            embeddings_KF, weight_F, *_ = self._values.values()
            self._rows_KD.copy_(self._project(self._norm(embeddings_KF, weight_F, eps=self._eps)))

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, and of the embeddings that are made of them."""
        own = sum(value.nbytes for value in self._values.values())
        return own + self._rows_KD.nbytes + self._product.num_bytes


class Gemma3nImageDecoder(Module):
    """A decoder of text; ids of images have other embeddings, tokens of images features."""

    def __init__(self, ctx: Context, decoder: Gemma3nDecoder, rows_KD: Tensor, first: int) -> None:
        self.embed, self.layers, self.norm = decoder.embed, decoder.layers, decoder.norm
        self.spread, self.gathers = decoder.spread, decoder.gathers
        self.layer_embed, self.to_layers = decoder.layer_embed, decoder.to_layers
        self.layers_norm = decoder.layers_norm
        self._layer_inputs, self._decode = decoder.layer_inputs, decoder.decode
        spec = ctx.spec(size=rows_KD.shape[1])
        self._put = partial(ctx.ops.resolve(put_rows, spec), first=first)
        self._place = ctx.ops.resolve(place_features, spec)
        self._rows_KD = rows_KD

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, media = self._put(self.embed(ids_T), ids_T, self._rows_KD), batch.media
        if media is not None:
            x_TD = self._place(x_TD, media.features_MF, media.rows_T)
        return self._decode(x_TD, self._layer_inputs(ids_T, x_TD), batch)


class TimmTower(Module):
    """What the encoder's tensors are below, in checkpoints."""

    def __init__(self, ctx: Context, c: MobileNetConfig) -> None:
        self.timm_model = MobileNetV5(ctx, c)
        self.forward = self.timm_model.forward


class Gemma3nImageTextModel(ImageTextModel):
    def __init__(
        self, tower: Module, of_images: Embedder, of_sound: Embedder, decoder: Module
    ) -> None:
        super().__init__(tower, of_images, decoder)
        self.embed_audio = of_sound


class Gemma3nForConditionalGeneration(Model):
    """A decoder with an output layer and an encoder of images; it takes no sound."""

    skip: Mapping[str, str] = {
        **Model.skip,
        r"^model\.(audio_tower|embed_audio\.soft_embedding_norm)\.": "requests bring no sound",
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = section(config, "text_config")
        if config.get("tie_word_embeddings") is not None:
            text["tie_word_embeddings"] = config["tie_word_embeddings"]
        of_text = Gemma3nForCausalLM(ctx, text)
        assert isinstance(of_text.model, Gemma3nDecoder), f"{of_text.model} is no decoder"
        vision = config.get("vision_config") or {}
        images = read_config(ImageIds, vision)
        sound = read_config(SoundIds, config.get("audio_config") or {})
        encoder = _encoder_config(config, vision)
        _check_ids(images, sound)
        size, whole = int(text["hidden_size"]), encoder_context(ctx)
        counts = (images.vocab_size, sound.vocab_size)
        where = ctx.device.torch_device
        rows_KD = torch.zeros((sum(counts), size), dtype=ctx.dtype, device=where)
        of_images, of_sound = rows_KD.split(counts)
        self.model = Gemma3nImageTextModel(
            TimmTower(whole, encoder),
            Embedder(whole, images, of_images, leaf="embed_vision", has_features=True),
            Embedder(whole, sound, of_sound, leaf="embed_audio", has_features=False),
            Gemma3nImageDecoder(ctx, of_text.model, rows_KD, images.vocab_offset),
        )
        self.lm_head = of_text.lm_head
        self.skip = {**self.skip, **of_text.skip}
        self.media = PlainMedia(
            self.model.encode,
            feature_size=size,
            merge=1,
            patch_bytes=encoder.patch_bytes,
            max_side=encoder.msfa_output_resolution,
        )

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names."""
        return image_text_names(index)


def _encoder_config(config: Mapping[str, Any], vision: Mapping[str, Any]) -> MobileNetConfig:
    """Return the sizes of the encoder.

    Raises:
        UnsupportedError: It is another one, or asked for more than sizes.
    """
    require(vision, architecture=(ARCHITECTURE,), do_pooling=(False,), hidden_size=(FEATURES,))
    given = dict(vision.get("model_args") or {})
    for name in given.keys() - set(SIZES):
        require({f"model_args.{name}": given[name]}, **{f"model_args.{name}": ()})
    c = read_config(MobileNetConfig, given)
    num_tokens = c.msfa_output_resolution**2
    require(config, vision_soft_tokens_per_image=(num_tokens,))
    return c


def _check_ids(images: ImageIds, sound: ImageIds) -> None:
    """Refuse ids that are not one after another.

    Raises:
        UnsupportedError: Those of sound are elsewhere.
    """
    behind = images.vocab_offset + images.vocab_size
    if sound.vocab_offset != behind:
        raise UnsupportedError(
            f"audio_config has vocab_offset = {sound.vocab_offset}, and the ids of images end"
            f" before {behind}.",
            remedy="Compare config.json with the model's original.",
        )

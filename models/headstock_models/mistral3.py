"""Mistral Small 3.1 to 4, Ministral 3: what Pixtral makes of images, and a decoder of text.

Shapes: N patches, M = N / merge² tokens of images, D hidden size of the encoder, F the decoder's.
Source: names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.config import read_config, require, section
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.source import Source
from headstock.graph.vision import PlainMLP, encoder_context
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.linear import CanonicalWeight
from headstock.quantization.plan import Layout
from headstock_models.image_text import (
    ImageDecoder,
    ImageTextModel,
    PlainMedia,
    TextDecoder,
    image_text_names,
)
from headstock_models.llama import LlamaForCausalLM
from headstock_models.mistral import Ministral3ForCausalLM, MistralForCausalLM
from headstock_models.mistral4 import Mistral4ForCausalLM
from headstock_models.pixtral import PixtralConfig, PixtralEncoder

TEXT: Mapping[str, type[LlamaForCausalLM | Mistral4ForCausalLM]] = {
    "mistral": MistralForCausalLM,
    "ministral3": Ministral3ForCausalLM,
    "mistral4": Mistral4ForCausalLM,
}
"""Decoders by the ``model_type`` of their configuration."""
MARKS = 1
"""Tokens after each row of an image."""


class MergingLayer(Linear):
    """Joins the patches of a square; the checkpoint has each feature of all of them together.

    Args:
        ctx: What to build with.
        size: D.
        count: Patches of a square.
    """

    def __init__(self, ctx: Context, size: int, count: int) -> None:
        self._count = count
        super().__init__(ctx, size * count, {"merging_layer": size})

    def load(self, name: str, source: Source) -> None:
        """Take the matrix, its columns by patches."""
        super().load(name, _ByPatches(source, self._count))


class _ByPatches:
    """A matrix of which each row's columns come patch after patch."""

    def __init__(self, source: Source, count: int) -> None:
        self._source, self._count = source, count
        self.layout: Layout = source.layout
        self.shape = source.shape

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end)."""
        rows = self._source.read(begin, end)["weight"]
        turned = rows.unflatten(1, (-1, self._count)).transpose(1, 2)
        return {"weight": turned.flatten(1).contiguous()}


class PatchMerger(Module):
    def __init__(self, ctx: Context, size: int, merge: int) -> None:
        self.layer = MergingLayer(ctx, size, merge**2)
        self._joined = size * merge**2

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.layer(x_ND.view(-1, self._joined))


class Mistral3Projector(Module):
    """Patches normalised, joined and projected to the decoder's size."""

    def __init__(self, ctx: Context, config: Mapping[str, Any], size: int, merge: int) -> None:
        text = section(config, "text_config")
        eps, out = float(text.get("rms_norm_eps") or 1e-6), int(text["hidden_size"])
        self.norm = RMSNorm(ctx, size, leaf="norm", eps=eps)
        self.patch_merger = PatchMerger(ctx, size, merge)
        activation = BY_CONFIG_NAME[config.get("projector_hidden_act") or "gelu"]
        has_bias = bool(config.get("multimodal_projector_bias"))
        sizes, leaves = (size, out, out), ("linear_1", "linear_2")
        self.mlp = PlainMLP(ctx, sizes, activation, leaves, has_bias=has_bias)

    def children(self) -> Any:
        """Yield the parts; those of the feed-forward layer have no name of their own."""
        yield "norm", self.norm
        yield "patch_merger", self.patch_merger
        yield from self.mlp.children()

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return features of tokens. [M, F]"""
        return self.mlp(self.patch_merger(self.norm(x_ND, None)[0]))


class Mistral3ForConditionalGeneration(Model):
    """A decoder with Pixtral's encoder of images; a mark stands after each row of an image."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = {"model_type": "mistral", **section(config, "text_config")}
        if config.get("tie_word_embeddings"):
            text["tie_word_embeddings"] = True
        vision = config.get("vision_config") or {}
        require(text, model_type=TEXT)
        require(config, vision_feature_layer=(-1,), projector_hidden_act=BY_CONFIG_NAME)
        require(vision, model_type=("pixtral",), hidden_act=BY_CONFIG_NAME)
        c = read_config(PixtralConfig, vision)
        decoder = TEXT[text["model_type"]](ctx, text)
        whole, merge = encoder_context(ctx), int(config.get("spatial_merge_size") or 2)
        size = int(text["hidden_size"])
        tower = PixtralEncoder(whole, c, merge=merge)
        projector = Mistral3Projector(whole, {**config, "text_config": text}, c.hidden_size, merge)
        words = ImageDecoder(ctx, cast("TextDecoder", decoder.model), size)
        self.model = ImageTextModel(tower, projector, words)
        self.lm_head = decoder.lm_head
        self._named = decoder.named

        self.media = PlainMedia(
            self.model.encode,
            feature_size=size,
            merge=merge,
            patch_bytes=c.patch_bytes,
            max_side=tower.max_side,
            row_tokens=MARKS,
        )

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names: the hub has older ones."""
        return self._named(image_text_names(index))

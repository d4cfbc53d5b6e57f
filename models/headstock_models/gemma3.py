"""Gemma 3: Gemma 2 with norms of queries and keys instead of caps, and two rotary bases.

Five of six layers see a window. In EmbeddingGemma tokens see each other both ways. Images are
squares of as many tokens each, which see each other.

Shapes: N patches, M tokens of images, D hidden size of the encoder, F that of the decoder. Sources:
Gemma Team 2025, "Gemma 3 Technical Report"; Vera et al. 2025, "EmbeddingGemma"; names as in Hugging
Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.errors import UnsupportedError
from headstock.graph.build import Model
from headstock.graph.config import read_config, require, section
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.module import Leaf, Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary
from headstock.graph.source import Source
from headstock.graph.vision import encoder_context
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.linear import CanonicalWeight
from headstock.ops.vision import mean_of_patches
from headstock.quantization.plan import Layout
from headstock_models.gemma2 import (
    FULL,
    SLIDING,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaDecoder,
    Rotaries,
)
from headstock_models.image_text import (
    ImageDecoder,
    ImageTextModel,
    PlainMedia,
    image_text_names,
)
from headstock_models.siglip import SiglipConfig, SiglipEncoder


class Gemma3Config(Gemma2Config, frozen=True, kw_only=True):
    sliding_window_pattern: int = 6
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    use_bidirectional_attention: bool = False
    has_qk_norm: ClassVar[bool] = True

    @property
    def window(self) -> int:
        """Tokens that a query sees; both ways it sees half of them on each side, and itself."""
        both_ways, size = self.use_bidirectional_attention, self.sliding_window
        return size // 2 + 1 if both_ways else size


class Gemma3ForCausalLM(Gemma2ForCausalLM):
    """A decoder whose output layer is the embedding."""

    config_type = Gemma3Config
    goes_both_ways = True

    def rotaries(self, ctx: Context, c: Gemma2Config, config: Mapping[str, Any]) -> Rotaries:
        """Return the tables of angles by kind of layer; full layers may be scaled."""
        assert isinstance(c, Gemma3Config), f"{c} is not a configuration of Gemma 3"
        given = dict(config)
        if not given.get("rope_parameters"):  # As on the hub: one base a key, one scaling for full.
            scaling = dict(given.pop("rope_scaling", None) or {})
            given["rope_parameters"] = {
                SLIDING: {"rope_theta": c.rope_local_base_freq},
                FULL: {**scaling, "rope_theta": c.rope_theta},
            }
        return {kind: Rotary(ctx, c.head_dim, given, layer_kind=kind) for kind in (SLIDING, FULL)}


class Gemma3TextConfig(Gemma3Config, frozen=True, kw_only=True):
    """Of a model of images."""

    sees_spans: ClassVar[bool] = True


class InputsFirst(Linear):
    """A product with one matrix that the checkpoint has turned, under its bare name.

    Args:
        ctx: What to build with.
        sizes: Features in and out.
        leaf: Checkpoint name.
    """

    def __init__(self, ctx: Context, sizes: tuple[int, int], *, leaf: str) -> None:
        self._name = leaf
        super().__init__(ctx, sizes[0], {leaf: sizes[1]})

    def leaves(self) -> Sequence[Leaf]:
        """Return the matrix, inputs by outputs."""
        (leaf,) = super().leaves()
        return [replace(leaf, name=self._name, shape=leaf.shape[::-1])]

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Make room for the matrix."""
        super().allocate({f"{self._name}.weight": layouts[self._name]})

    def load(self, name: str, source: Source) -> None:
        """Take the matrix."""
        super().load(f"{name}.weight", _Turned(source))


class _Turned:
    """A matrix of a checkpoint, its rows for its columns."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.layout: Layout = source.layout
        self.shape = source.shape[::-1]

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end)."""
        whole = self._source.read(0, self._source.shape[0])["weight"]
        return {"weight": whole.t()[begin:end].contiguous()}


class Gemma3Projector(Module):
    """The mean of a square of patches, normalised and projected to the decoder's size."""

    def __init__(self, ctx: Context, c: SiglipConfig, size: int, *, merge: int) -> None:
        self.norm = RMSNorm(
            ctx,
            c.hidden_size,
            leaf="mm_soft_emb_norm",
            eps=c.layer_norm_eps,
            is_zero_centered=True,
        )
        self.out = InputsFirst(ctx, (c.hidden_size, size), leaf="mm_input_projection_weight")
        self._count = merge**2
        self._mean = ctx.ops.resolve(mean_of_patches, ctx.spec(size=c.hidden_size))

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return features of tokens. [M, F]"""
        x_MD = self._mean(x_ND, count=self._count)
        return self.out(self.norm(x_MD, None)[0])


class Gemma3ForConditionalGeneration(Gemma3ForCausalLM):
    """A decoder with an image encoder; tokens of an image see all of it."""

    config_type = Gemma3TextConfig
    skip: Mapping[str, str] = {
        **Model.skip,
        r"^model\.vision_tower\.head\.": "it makes one vector of an image, which is not used",
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = section(config, "text_config")
        if "tie_word_embeddings" in config:
            text["tie_word_embeddings"] = config["tie_word_embeddings"]
        vision = read_config(SiglipConfig, config.get("vision_config") or {})
        require({"hidden_act": vision.hidden_act}, hidden_act=BY_CONFIG_NAME)
        merge = _merge(vision, int(config.get("mm_tokens_per_image") or 256))
        super().__init__(ctx, text)
        assert isinstance(self.model, GemmaDecoder), f"{self.model} is not a decoder of Gemma"
        size, whole = int(text["hidden_size"]), encoder_context(ctx)
        tower = SiglipEncoder(whole, vision, merge=merge)
        projector = Gemma3Projector(whole, vision, size, merge=merge)
        self.model = ImageTextModel(tower, projector, ImageDecoder(ctx, self.model, size))

        self.media = PlainMedia(
            self.model.encode,
            feature_size=size,
            merge=merge,
            patch_bytes=vision.patch_bytes,
            max_side=vision.side,
            sees_spans=True,
        )

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names: the hub has older ones."""
        return image_text_names(index)


def _merge(vision: SiglipConfig, num_tokens: int) -> int:
    """Return how many patches in height and width become a token.

    Raises:
        UnsupportedError: They do not divide.
    """
    per_side = round(num_tokens**0.5)
    if per_side**2 != num_tokens or vision.side % per_side:
        raise UnsupportedError(
            f"mm_tokens_per_image is {num_tokens}, and an image has {vision.side} x {vision.side}"
            " patches.",
            remedy="Compare config.json with the model's original.",
        )
    return vision.side // per_side

"""LLaVA 1.5 and Pixtral 12B: what an encoder makes of an image, projected to a decoder's size.

The encoder is CLIP's or Pixtral's; with the latter a mark stands after each row of an image.

Shapes: N patches, each a token; F hidden size of the decoder. Source: Liu et al. 2023, "Improved
Baselines with Visual Instruction Tuning"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headstock.checkpoint.files import StoredTensor
from headstock.errors import UnsupportedError
from headstock.graph.build import Model
from headstock.graph.config import read_config, require, section
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.graph.vision import ENCODER_ACTIVATIONS, PlainMLP, encoder_context
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock_models.clip import ClipConfig, ClipEncoder
from headstock_models.image_text import (
    ImageDecoder,
    ImageTextModel,
    PlainMedia,
    image_text_names,
)
from headstock_models.llama import Decoder, LlamaForCausalLM
from headstock_models.mistral import MistralForCausalLM
from headstock_models.pixtral import PixtralConfig, PixtralEncoder
from headstock_models.qwen2 import Qwen2ForCausalLM

TEXT: Mapping[str, type[LlamaForCausalLM]] = {
    "llama": LlamaForCausalLM,
    "mistral": MistralForCausalLM,
    "qwen2": Qwen2ForCausalLM,
}
"""Decoders by the ``model_type`` of their configuration."""
CLIP, PIXTRAL = "clip_vision_model", "pixtral"
"""Encoders by the ``model_type`` of their configuration."""
ENCODER = {
    "model_type": CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""The encoder of configurations that do not say."""


class LlavaForConditionalGeneration(Model):
    """A decoder of any kind with CLIP's or Pixtral's encoder of images."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = {"model_type": "llama", **section(config, "text_config")}
        if config.get("tie_word_embeddings"):
            text["tie_word_embeddings"] = True
        vision = config.get("vision_config") or ENCODER
        require(text, model_type=TEXT)
        require(config, multimodal_projector_bias=(True,), projector_hidden_act=BY_CONFIG_NAME)
        require(vision, model_type=(CLIP, PIXTRAL))
        decoder = TEXT[text["model_type"]](ctx, text)
        assert isinstance(decoder.model, Decoder), f"{decoder.model} is not a decoder of text"
        whole, size = encoder_context(ctx), int(text["hidden_size"])
        is_pixtral = vision.get("model_type") == PIXTRAL
        make = self._make_pixtral if is_pixtral else self._make_clip
        tower, c, max_side = make(whole, config, vision)
        activation = BY_CONFIG_NAME[config.get("projector_hidden_act") or "gelu"]
        leaves = ("linear_1", "linear_2")
        projector = PlainMLP(whole, (c.hidden_size, size, size), activation, leaves)
        self.model = ImageTextModel(tower, projector, ImageDecoder(ctx, decoder.model, size))
        self.lm_head = decoder.lm_head

        self.media = PlainMedia(
            self.model.encode,
            feature_size=size,
            merge=1,
            patch_bytes=c.patch_bytes,
            max_side=max_side,
            row_tokens=int(is_pixtral),
        )

    def _make_clip(
        self, ctx: Context, config: Mapping[str, Any], vision: Mapping[str, Any]
    ) -> tuple[Module, ClipConfig, int]:
        """Return CLIP's encoder, its configuration, and the most patches of a side."""
        require(config, vision_feature_select_strategy=("default",))
        require(vision, hidden_act=ENCODER_ACTIVATIONS)
        c = read_config(ClipConfig, vision)
        num_layers = num_layers_of(config.get("vision_feature_layer", -2), c.num_hidden_layers)
        unused = "|".join(str(n) for n in range(num_layers, c.num_hidden_layers))
        self.skip = {
            **Model.skip,
            rf"vision_tower\.encoder\.layers\.({unused})\.": "the layers before make the features",
            r"vision_tower\.post_layernorm\.": "it follows the last layer",
            r"vision_tower\.embeddings\.position_ids$": "old files count the places, too",
        }
        return ClipEncoder(ctx, c, num_layers), c, c.side

    def _make_pixtral(
        self, ctx: Context, config: Mapping[str, Any], vision: Mapping[str, Any]
    ) -> tuple[Module, PixtralConfig, int]:
        """Return Pixtral's encoder, its configuration, and the most patches of a side."""
        strategy = config.get("vision_feature_select_strategy", "default")
        layer = config.get("vision_feature_layer", -2)
        given = {"vision_feature_select_strategy": strategy, "vision_feature_layer": layer}
        require(given, vision_feature_select_strategy=("full",), vision_feature_layer=(-1,))
        require(vision, hidden_act=BY_CONFIG_NAME)
        c = read_config(PixtralConfig, vision)
        tower = PixtralEncoder(ctx, c, merge=1)
        return tower, c, tower.max_side

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names: the hub has older ones."""
        return image_text_names(index)


def num_layers_of(wanted: object, count: int) -> int:
    """Return how many layers there are up to the one whose output is wanted.

    Raises:
        UnsupportedError: There is none, or several are wanted.
    """
    if not isinstance(wanted, int) or not -count <= wanted < count + 1:
        raise UnsupportedError(
            f"The model's configuration has vision_feature_layer = {wanted!r}; one of"
            f" {count} layers is served.",
            remedy="Serve another model.",
        )
    return wanted if wanted >= 0 else count + 1 + wanted

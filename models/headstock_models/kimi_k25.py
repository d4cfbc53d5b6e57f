"""Kimi K2.5 to K2.7, text alone: DeepSeek V3 under names of its own, beside an encoder of images.

Source: Kimi team 2026, "Kimi K2.5"; names as on the hub, or as transformers calls them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.config import require, section
from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock_models.deepseek_v3 import DeepseekV3ForCausalLM
from headstock_models.image_text import image_text_names

NO_IMAGES = "it is of images, and the model is served for its text"


class TextOnly(Module):
    """Where the decoder of text is in a model of images."""

    def __init__(self, decoder: Module) -> None:
        self.language_model = decoder
        self.forward = decoder.forward


class KimiK25ForConditionalGeneration(Model):
    """A decoder with an output layer; it takes no images."""

    skip: Mapping[str, str] = {
        **Model.skip,
        r"^(model\.)?vision_tower\.": NO_IMAGES,
        r"^(model\.)?mm_projector\.": NO_IMAGES,
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        text = section(config, "text_config")
        require(text, model_type=("deepseek_v3", "kimi_k2"))
        if config.get("tie_word_embeddings") is not None:
            text["tie_word_embeddings"] = config["tie_word_embeddings"]
        decoder = DeepseekV3ForCausalLM(ctx, text)
        drafts = {
            pattern.replace(r"^model\.", r"^model\.language_model\."): why
            for pattern, why in decoder.skip.items()
        }
        self.skip = {**type(self).skip, **drafts}
        self.model = TextOnly(decoder.model)
        self.lm_head = decoder.lm_head

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by today's names; transformers writes layers as ``blocks``."""
        blocks = re.compile(r"^model\.language_model\.blocks\.")
        named = image_text_names(index)
        return {blocks.sub("model.language_model.layers.", name): x for name, x in named.items()}

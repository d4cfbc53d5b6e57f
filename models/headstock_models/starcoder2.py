"""StarCoder 2: a decoder with biases, means subtracted, and no gates.

Source: Lozhkov et al. 2024, "StarCoder 2 and The Stack v2"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.context import Context
from headstock.graph.feed_forward import MLP
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock_models.llama import LlamaConfig
from headstock_models.mistral import MistralForCausalLM


class Starcoder2Config(LlamaConfig, frozen=True, kw_only=True):
    norm_epsilon: float = 1e-5
    hidden_act: str = "gelu_pytorch_tanh"
    tie_word_embeddings: bool = True

    def make_norm(self, ctx: Context, leaf: str) -> LayerNorm:
        return LayerNorm(ctx, self.hidden_size, leaf=leaf, eps=self.norm_epsilon)

    def make_mlp(self, ctx: Context, number: int) -> Module:
        return MLP(
            ctx,
            self.hidden_size,
            self.intermediate_size,
            BY_CONFIG_NAME[self.hidden_act],
            up="c_fc",
            down="c_proj",
            has_bias=self.mlp_bias,
        )


class Starcoder2ForCausalLM(MistralForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Starcoder2Config
    accepted: ClassVar = {
        **MistralForCausalLM.accepted,
        "hidden_act": BY_CONFIG_NAME,
        "norm_type": ("layer_norm",),
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # One key for the biases of attention and of the feed-forward layers.
        has_bias = config.get("use_bias", True)
        super().__init__(ctx, {**config, "attention_bias": has_bias, "mlp_bias": has_bias})

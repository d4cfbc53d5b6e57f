"""ERNIE 4.5, dense and with experts: Llama that rotates neighbours.

Source: Baidu 2025, "ERNIE 4.5 Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.build import Model
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.routing import Routing
from headstock_models.llama import LlamaConfig, LlamaForCausalLM


class Ernie45Config(LlamaConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5
    use_bias: bool = False
    tie_word_embeddings: bool = True
    is_interleaved: ClassVar[bool] = True
    rope_theta_default: ClassVar[float] = 500_000.0


class Ernie45MoeConfig(Ernie45Config, frozen=True, kw_only=True):
    moe_num_experts: int = 64
    moe_k: int = 6
    moe_intermediate_size: int = 1536
    moe_num_shared_experts: int = 2
    moe_layer_start_index: int = 1
    moe_layer_end_index: int = -1
    moe_layer_interval: int = 1

    def has_experts(self, number: int) -> bool:
        last = self.moe_layer_end_index
        last = self.num_hidden_layers - 1 if last == -1 else last
        is_within = self.moe_layer_start_index <= number <= last
        return is_within and (number + 1) % self.moe_layer_interval == 0

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if not self.has_experts(number):
            return super().make_mlp(ctx, number)
        size, between, shared = self.hidden_size, self.moe_intermediate_size, None
        if self.moe_num_shared_experts:
            shared = GatedMLP(ctx, size, between * self.moe_num_shared_experts)
            shared.alias = "shared_experts"
        return RoutedMoE(
            ctx,
            size,
            between,
            self.moe_num_experts,
            Routing(k=self.moe_k, is_normalized=True),
            bias_leaf="moe_statics.e_score_correction_bias",
            bias_shape=(1, self.moe_num_experts),
            shared=shared,
        )


class Ernie45ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Ernie45Config

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # One key for the biases of attention and of the feed-forward layers.
        biases = dict.fromkeys(("attention_bias", "mlp_bias"), config.get("use_bias"))
        super().__init__(ctx, {**config, **biases})


class Ernie45MoeForCausalLM(Ernie45ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Ernie45MoeConfig
    accepted: ClassVar = {**LlamaForCausalLM.accepted, "use_bias": (False,)}
    skip: Mapping[str, str] = {
        **Model.skip,
        r"^model\.mtp_": "layers that draft tokens to come",
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers may save these by names of its own.
        ours = {"moe_num_experts": "num_experts", "moe_k": "num_experts_per_tok"}
        super().__init__(
            ctx, {key: config.get(other) for key, other in ours.items()} | dict(config)
        )

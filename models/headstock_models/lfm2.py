"""LFM2 and LFM2-MoE: short convolutions in most layers, attention in the others; perhaps experts.

Shapes: T tokens in the step, D hidden size.
Source: Liquid AI 2025, "LFM2 Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headstock.graph.arranged import ArrangedLinear, features
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.routed_moe import RoutedMoE
from headstock.graph.short_convolution import ShortConvolution
from headstock.ops.attention import StepBatch
from headstock.ops.moe import Matrix
from headstock.ops.routing import Routing
from headstock_models.llama import (
    FULL,
    LlamaConfig,
    LlamaForCausalLM,
    Rotaries,
)

CONV = "conv"
NAMES: Mapping[Matrix, str] = {"gate": "w1", "up": "w3", "down": "w2"}
NORMS = {
    "input_layernorm": "operator_norm",
    "post_attention_layernorm": "ffn_norm",
    "norm": "embedding_norm",
}
"""What checkpoints call the norms, the last one of all included."""


class Lfm2Config(LlamaConfig, frozen=True, kw_only=True):
    norm_eps: float = 1e-5
    conv_L_cache: int = 3
    conv_bias: bool = False
    block_multiple_of: int = 256
    block_ffn_dim_multiplier: float | None = 1.0
    block_auto_adjust_ff_dim: bool = True
    full_attn_idxs: tuple[int, ...] | None = None
    tie_word_embeddings: bool = True
    has_qk_norm: ClassVar[bool] = True
    norm_leaves: ClassVar[tuple[str, str]] = ("q_layernorm", "k_layernorm")
    out_leaf: ClassVar[str] = "out_proj"
    rope_theta_default: ClassVar[float] = 1_000_000.0

    def usual_kind(self, number: int) -> str:
        """Return what layer ``number`` is where the configuration has no list of kinds."""
        has_attention = self.full_attn_idxs is None or number in self.full_attn_idxs
        return FULL if has_attention else CONV

    @property
    def feed_forward_size(self) -> int:
        """Features between the matrices, which configurations give before it is adjusted."""
        size = self.intermediate_size
        if not self.block_auto_adjust_ff_dim:
            return size
        size = int(2 * size / 3)
        if self.block_ffn_dim_multiplier is None:
            return size
        size, unit = int(self.block_ffn_dim_multiplier * size), self.block_multiple_of
        return -(-size // unit) * unit

    def make_norm(self, ctx: Context, leaf: str) -> RMSNorm:
        return RMSNorm(ctx, self.hidden_size, leaf=NORMS[leaf], eps=self.norm_eps)

    def make_mlp(self, ctx: Context, number: int) -> Module:
        mlp = GatedMLP(ctx, self.hidden_size, self.feed_forward_size, names=NAMES)
        mlp.alias = "feed_forward"
        return mlp

    def make_attention(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        if self.kind(number) == FULL:
            return super().make_attention(ctx, rotaries, number)
        return Convolution(ctx, self)


class Lfm2MoeConfig(Lfm2Config, frozen=True, kw_only=True):
    block_auto_adjust_ff_dim: bool = False
    moe_intermediate_size: int = 1792
    num_dense_layers: int = 2
    num_experts: int = 32
    num_experts_per_tok: int = 4
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    use_expert_bias: bool = True

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if number < self.num_dense_layers:
            return super().make_mlp(ctx, number)
        mlp = RoutedMoE(
            ctx,
            self.hidden_size,
            self.moe_intermediate_size,
            self.num_experts,
            Routing(
                k=self.num_experts_per_tok,
                scores="sigmoid",
                is_normalized=self.norm_topk_prob,
                factor=self.routed_scaling_factor,
            ),
            bias_leaf="expert_bias" if self.use_expert_bias else "",
            names=NAMES,
        )
        mlp.alias = "feed_forward"
        return mlp


class Convolution(Module):
    """W_o (c · conv(b · x)), where W_in makes b, c and x."""

    alias = CONV

    def __init__(self, ctx: Context, c: Lfm2Config) -> None:
        size, has_bias = c.hidden_size, c.conv_bias
        kinds = [features(size, first=i * size) for i in range(3)]
        self.inputs = ArrangedLinear(ctx, size, {"in_proj": kinds}, has_bias=has_bias)
        self.mix = ShortConvolution(ctx, size, c.conv_L_cache, leaf="conv", has_bias=has_bias)
        self.out = Linear(ctx, size, {"out_proj": size}, split="in", has_bias=has_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        return self.out(keep(self.mix(self.inputs(x_TD), batch), batch))


class Lfm2ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Lfm2Config
    accepted: ClassVar = {**LlamaForCausalLM.accepted, "layer_types": (FULL, CONV)}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # Keys of the hub, which stand for these where they are given.
        hub = {"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"}
        given = {ours: config[key] for key, ours in hub.items() if config.get(key) is not None}
        epsilons = {"rms_norm_eps": config.get("norm_eps") or 1e-5}
        super().__init__(ctx, {**config, **given, **epsilons})


class Lfm2MoeForCausalLM(Lfm2ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Lfm2MoeConfig

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers 5 saves what the hub calls num_experts by another name.
        super().__init__(ctx, {"num_experts": config.get("num_local_experts"), **config})

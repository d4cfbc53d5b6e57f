"""GLM-4 of both generations: fused gate and up, neighbours rotated in half of each head.

The second has norms behind attention and the feed-forward layer too. Shapes: T tokens in the step,
D hidden size. Source: GLM team 2024, "ChatGLM"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock.ops.attention import StepBatch
from headstock_models.llama import DecoderLayer, LlamaConfig, LlamaForCausalLM, Rotaries


class GlmConfig(LlamaConfig, frozen=True, kw_only=True):
    head_dim: int | None = 128
    attention_bias: bool = True
    is_interleaved: ClassVar[bool] = True
    rotary_share: ClassVar[float] = 0.5

    @property
    def has_out_bias(self) -> bool:
        return False

    def make_mlp(self, ctx: Context, number: int) -> Module:
        return GatedMLP(ctx, self.hidden_size, self.intermediate_size, is_fused=True)


class Glm4Config(GlmConfig, frozen=True, kw_only=True):
    attention_bias: bool = False

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return SandwichedLayer(ctx, self, rotaries, number)


class SandwichedLayer(DecoderLayer):
    """Attention, then the feed-forward layer, each between two norms."""

    def __init__(self, ctx: Context, c: LlamaConfig, rotaries: Rotaries, number: int) -> None:
        super().__init__(ctx, c, rotaries, number)
        self.attn_out_norm = c.make_norm(ctx, "post_self_attn_layernorm")
        self.mlp_out_norm = c.make_norm(ctx, "post_mlp_layernorm")

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD, _ = self.attn_out_norm(self.self_attn(x_TD, batch, self.keep), None)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        x_TD, _ = self.mlp_out_norm(self.mlp(x_TD), None)
        return x_TD, total_TD


class GlmForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = GlmConfig
    accepted: ClassVar = {**LlamaForCausalLM.accepted, "partial_rotary_factor": None}


class Glm4ForCausalLM(GlmForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Glm4Config

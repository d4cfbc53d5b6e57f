"""Olmo 2: norms behind each sublayer instead of before, and of all queries and keys together.

Shapes: T tokens in the step, D hidden size. Source: Walsh et al. 2024, "2 OLMo 2 Furious"; names as
in Hugging Face transformers.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.last import LastOfRows
from headstock.graph.module import Module
from headstock.ops.attention import StepBatch
from headstock.ops.features import add_features
from headstock_models.llama import DecoderAttention, LlamaConfig, LlamaForCausalLM, Rotaries


class PostNormConfig(LlamaConfig, frozen=True, kw_only=True):
    """Of families whose layers normalise what they add, not what they read."""

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return PostNormLayer(ctx, self, rotaries, number)


class Olmo2Config(PostNormConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5
    has_wide_norm: ClassVar[bool] = True


class PostNormLayer(Module):
    """x + norm(attention(x)), then the same of the feed-forward layer."""

    def __init__(self, ctx: Context, c: LlamaConfig, rotaries: Rotaries, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.self_attn = DecoderAttention(ctx, c, rotaries, number)
        self.attn_norm = c.make_norm(ctx, "post_attention_layernorm")
        self.mlp = c.make_mlp(ctx, number)
        self.mlp_norm = c.make_norm(ctx, "post_feedforward_layernorm")
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        total_TD = x_TD if sum_TD is None else self._add(sum_TD, x_TD)
        x_TD, _ = self.attn_norm(self.self_attn(total_TD, batch, self.keep), None)
        total_TD = self._add(self.keep(total_TD, batch), x_TD)
        x_TD, _ = self.mlp_norm(self.mlp(total_TD), None)
        return x_TD, total_TD


class Olmo2ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = Olmo2Config

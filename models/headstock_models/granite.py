"""Granite 3 and 4, dense: Llama with four multipliers.

Shapes: T tokens in the step, D hidden size. Source: IBM 2024, "Granite 3.0 Language Models"; names
as in Hugging Face transformers.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.module import Module
from headstock.ops.attention import StepBatch
from headstock.ops.features import scale_features
from headstock_models.llama import DecoderLayer, LlamaConfig, LlamaForCausalLM, Rotaries


class GraniteConfig(LlamaConfig, frozen=True, kw_only=True):
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0

    @property
    def attention_scale(self) -> float | None:
        return self.attention_multiplier

    @property
    def embedding_scale(self) -> float:
        return self.embedding_multiplier

    @property
    def logits_scale(self) -> float:
        return 1 / self.logits_scaling

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        if self.residual_multiplier == 1:
            return super().make_layer(ctx, rotaries, number)
        return ScaledLayer(ctx, self, rotaries, number, self.residual_multiplier)


class ScaledLayer(DecoderLayer):
    """A layer that adds a share of what it computes to the residual stream."""

    def __init__(
        self, ctx: Context, c: LlamaConfig, rotaries: Rotaries, number: int, share: float
    ) -> None:
        super().__init__(ctx, c, rotaries, number)
        self._scale = partial(ctx.ops.resolve(scale_features, ctx.spec()), factor=share)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD = self._scale(self.self_attn(x_TD, batch, self.keep))
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        return self._scale(self.mlp(x_TD)), total_TD


class GraniteForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = GraniteConfig

"""Command R and A: attention and the feed-forward layer side by side, on one norm of the stream.

Of the second generation three of four layers see a window, and the others know no positions.
Shapes: T tokens in the step, D hidden size. Source: Cohere 2025, "Command A"; names as in Hugging
Face transformers.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from headstock.graph.context import Context
from headstock.graph.last import LastOfRows
from headstock.graph.module import Module
from headstock.graph.norm import LayerNorm
from headstock.ops.attention import StepBatch
from headstock.ops.features import add_features
from headstock_models.llama import (
    FULL,
    SLIDING,
    WINDOWED,
    DecoderAttention,
    LlamaConfig,
    LlamaForCausalLM,
    Rotaries,
)


class CohereConfig(LlamaConfig, frozen=True, kw_only=True):
    layer_norm_eps: float = 1e-5
    logit_scale: float = 0.0625
    tie_word_embeddings: bool = True
    is_interleaved: ClassVar[bool] = True

    @property
    def logits_scale(self) -> float:
        return self.logit_scale

    def make_norm(self, ctx: Context, leaf: str) -> LayerNorm:
        eps = self.layer_norm_eps
        return LayerNorm(ctx, self.hidden_size, leaf=leaf, eps=eps, has_bias=False)

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return ParallelLayer(ctx, self, rotaries, number)


class Cohere2Config(CohereConfig, frozen=True, kw_only=True):
    sliding_window: int | None = 4096
    sliding_window_pattern: int = 4

    def usual_kind(self, number: int) -> str:
        """Return what layer ``number`` is: the last of each pattern sees all."""
        return SLIDING if (number + 1) % self.sliding_window_pattern else FULL

    def rotates(self, number: int) -> bool:
        return self.kind(number) == SLIDING


class ParallelLayer(Module):
    """x + attention(norm(x)) + feed_forward(norm(x))."""

    def __init__(self, ctx: Context, c: LlamaConfig, rotaries: Rotaries, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = c.make_norm(ctx, "input_layernorm")
        self.self_attn = DecoderAttention(ctx, c, rotaries, number)
        self.mlp = c.make_mlp(ctx, number)
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        y_TD = self.self_attn(x_TD, batch, self.keep)
        z_TD = self.mlp(self.keep(x_TD, batch))
        return self._add(y_TD, z_TD), self.keep(total_TD, batch)


class CohereForCausalLM(LlamaForCausalLM):
    """A decoder whose output layer is the embedding."""

    config_type = CohereConfig
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        "use_qk_norm": (False,),
        "mlp_bias": (False,),
    }


class Cohere2ForCausalLM(LlamaForCausalLM):
    """A decoder whose output layer is the embedding."""

    config_type = Cohere2Config
    accepted: ClassVar = {**CohereForCausalLM.accepted, **WINDOWED}

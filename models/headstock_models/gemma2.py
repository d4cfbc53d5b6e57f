"""Gemma 2: norms around each sublayer, capped scores and logits, windows in every other layer.

Shapes: T tokens in the step, D hidden size. Source: Gemma Team 2024, "Gemma 2"; names as in Hugging
Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headstock.graph.attention import Attention
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, QKVLinear
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.attention import StepBatch

SLIDING, FULL = "sliding_attention", "full_attention"
Rotaries = Mapping[str, Rotary]


class Gemma2Config(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    query_pre_attn_scalar: float = 256
    sliding_window: int = 4096
    sliding_window_pattern: int = 2
    layer_types: tuple[str, ...] = ()
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0
    tie_word_embeddings: bool = True
    has_qk_norm: ClassVar[bool] = False
    sees_spans: ClassVar[bool] = False

    @property
    def window(self) -> int:
        """Tokens that a query of a layer with a window sees."""
        return self.sliding_window

    def kind(self, number: int) -> str:
        """Return what layer ``number`` is; without a list every pattern ends with a full one."""
        if self.layer_types:
            return self.layer_types[number]
        return SLIDING if (number + 1) % self.sliding_window_pattern else FULL


class GemmaAttention(Module):
    """W_o attend(rotate(W_q x), rotate(W_k x), W_v x), over a window in some layers."""

    def __init__(self, ctx: Context, c: Gemma2Config, rotary: Rotary, kind: str) -> None:
        size, heads, has_bias = c.hidden_size, c.num_attention_heads, c.attention_bias
        sizes = (heads, c.num_key_value_heads, c.head_dim)
        self.qkv = QKVLinear(ctx, size, *sizes, has_bias=has_bias)
        self.attend = Attention(
            ctx,
            *sizes,
            rotary=rotary,
            qk_norm=c.rms_norm_eps if c.has_qk_norm else None,
            sees_spans=c.sees_spans,
            is_zero_centered=True,
            scale=c.query_pre_attn_scalar**-0.5,
            window=c.window if kind == SLIDING else None,
            soft_cap=c.attn_logit_softcapping,
        )
        leaves = {"o_proj": size}
        self.out = Linear(ctx, heads * c.head_dim, leaves, split="in", has_bias=has_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        return self.out(keep(self.attend(self.qkv(x_TD), batch), batch))


class GemmaLayer(Module):
    """Attention, then the feed-forward layer, each between two norms."""

    def __init__(self, ctx: Context, c: Gemma2Config, rotaries: Rotaries, number: int) -> None:
        kind = c.kind(number)
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = _norm(ctx, c, "input_layernorm")
        self.self_attn = GemmaAttention(ctx, c, rotaries[kind], kind)
        self.attn_norm = _norm(ctx, c, "post_attention_layernorm")
        self.mlp_norm = _norm(ctx, c, "pre_feedforward_layernorm")
        activation = BY_CONFIG_NAME[c.hidden_activation]
        self.mlp = GatedMLP(ctx, c.hidden_size, c.intermediate_size, activation)
        self.out_norm = _norm(ctx, c, "post_feedforward_layernorm")

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD, _ = self.attn_norm(self.self_attn(x_TD, batch, self.keep), None)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        x_TD, _ = self.out_norm(self.mlp(x_TD), None)
        return x_TD, total_TD


class GemmaDecoder(Module):
    def __init__(self, ctx: Context, c: Gemma2Config, rotaries: Rotaries) -> None:
        sizes, scale = (c.vocab_size, c.hidden_size), c.hidden_size**0.5
        self.embed = Embedding(ctx, *sizes, leaf="embed_tokens", scale=scale)
        self.layers = [GemmaLayer(ctx, c, rotaries, n) for n in range(c.num_hidden_layers)]
        self.norm = _norm(ctx, c, "norm")

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embed(ids_T), None
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


class Gemma2ForCausalLM(Model):
    """A decoder whose output layer is the embedding, its logits capped."""

    config_type: type[Gemma2Config] = Gemma2Config
    goes_both_ways: ClassVar[bool] = False
    """Whether a configuration may have tokens see those behind them."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        both_ways = (False, not ctx.is_causal and self.goes_both_ways)
        require(config, use_bidirectional_attention=both_ways, hidden_activation=BY_CONFIG_NAME)
        for kind in config.get("layer_types") or ():
            require({"layer_types": kind}, layer_types=(SLIDING, FULL))
        c = read_config(self.config_type, config)
        self.model = GemmaDecoder(ctx, c, self.rotaries(ctx, c, config))
        self.lm_head = LMHead(
            ctx,
            c.vocab_size,
            c.hidden_size,
            leaf="lm_head",
            tied=self.model.embed if c.tie_word_embeddings else None,
            soft_cap=c.final_logit_softcapping,
        )

    def rotaries(self, ctx: Context, c: Gemma2Config, config: Mapping[str, Any]) -> Rotaries:
        """Return the tables of angles by kind of layer."""
        both = Rotary(ctx, c.head_dim, config)
        return {SLIDING: both, FULL: both}


def _norm(ctx: Context, c: Gemma2Config, leaf: str) -> RMSNorm:
    return RMSNorm(ctx, c.hidden_size, leaf=leaf, eps=c.rms_norm_eps, is_zero_centered=True)

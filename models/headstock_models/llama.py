"""Llama 2 and 3, and Mistral where no request is longer than its window; parts of other families.

Shapes: T tokens in the step, D hidden size. Source: Touvron et al. 2023, "Llama 2".
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torch import Tensor

from headstock.graph.attention import Attention
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require, without_idle_window
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, QKVLinear
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary
from headstock.ops.attention import StepBatch


class LlamaConfig(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    has_qk_norm: ClassVar[bool] = False
    has_sinks: ClassVar[bool] = False

    def window(self, number: int) -> int | None:
        """Return the tokens that a query of layer ``number`` sees; None: all before it."""
        return None

    def make_mlp(self, ctx: Context, number: int) -> Module:
        return GatedMLP(ctx, self.hidden_size, self.intermediate_size)


class DecoderAttention(Module):
    """W_o attend(rotate(W_q x), rotate(W_k x), W_v x), perhaps with norms on q and k."""

    def __init__(self, ctx: Context, c: LlamaConfig, rotary: Rotary, number: int) -> None:
        size, heads, head_dim = c.hidden_size, c.num_attention_heads, rotary.rotary_dim
        kv_heads, has_bias = c.num_key_value_heads or heads, c.attention_bias
        qk_norm = c.rms_norm_eps if c.has_qk_norm else None
        self.qkv = QKVLinear(ctx, size, heads, kv_heads, head_dim, has_bias=has_bias)
        self.attend = Attention(
            ctx,
            heads,
            kv_heads,
            head_dim,
            rotary=rotary,
            qk_norm=qk_norm,
            window=c.window(number),
            has_sinks=c.has_sinks,
        )
        self.out = Linear(ctx, heads * head_dim, {"o_proj": size}, split="in", has_bias=has_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        return self.out(keep(self.attend(self.qkv(x_TD), batch), batch))


class DecoderLayer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream."""

    def __init__(self, ctx: Context, c: LlamaConfig, rotary: Rotary, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="input_layernorm", eps=c.rms_norm_eps)
        self.self_attn = DecoderAttention(ctx, c, rotary, number)
        leaf = "post_attention_layernorm"
        self.mlp_norm = RMSNorm(ctx, c.hidden_size, leaf=leaf, eps=c.rms_norm_eps)
        self.mlp = c.make_mlp(ctx, number)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD = self.self_attn(x_TD, batch, self.keep)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        return self.mlp(x_TD), total_TD


class Decoder(Module):
    def __init__(self, ctx: Context, c: LlamaConfig, rotary: Rotary) -> None:
        self.embed = Embedding(ctx, c.vocab_size, c.hidden_size, leaf="embed_tokens")
        self.layers = [DecoderLayer(ctx, c, rotary, n) for n in range(c.num_hidden_layers)]
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="norm", eps=c.rms_norm_eps)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embed(ids_T), None
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


class LlamaForCausalLM(Model):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type: type[LlamaConfig] = LlamaConfig
    accepted: ClassVar[Mapping[str, Collection[Any] | None]] = {
        "hidden_act": ("silu", "swish"),
        "mlp_bias": (False,),
        "sliding_window": (),
        "partial_rotary_factor": (1,),
    }
    """Configuration keys to the values that are computed; None: whatever it is."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        config = without_idle_window(config, ctx.limits.max_length)
        require(config, **{k: values for k, values in self.accepted.items() if values is not None})
        c = read_config(self.config_type, config)
        head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
        self.model = Decoder(ctx, c, Rotary(ctx, head_dim, config))
        tied = self.model.embed if c.tie_word_embeddings else None
        self.lm_head = LMHead(ctx, c.vocab_size, c.hidden_size, leaf="lm_head", tied=tied)

"""Llama without its options: the model of docs/adding-a-model.md, from its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headstock.graph.attention import Attention
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.linear import Linear, QKVLinear
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary
from headstock.ops.attention import StepBatch


class TinyConfig(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rms_norm_eps: float = 1e-6


class TinyAttention(Module):
    def __init__(self, ctx: Context, c: TinyConfig, rotary: Rotary) -> None:
        size, heads, kv_heads = c.hidden_size, c.num_attention_heads, c.num_key_value_heads
        head_dim = rotary.rotary_dim
        self.qkv = QKVLinear(ctx, size, heads, kv_heads, head_dim)
        self.attend = Attention(ctx, heads, kv_heads, head_dim, rotary=rotary)
        self.out = Linear(ctx, heads * head_dim, {"o_proj": size}, split="in")

    def forward(self, x_TD: Tensor, batch: StepBatch) -> Tensor:
        return self.out(self.attend(self.qkv(x_TD), batch))


class TinyLayer(Module):
    def __init__(self, ctx: Context, c: TinyConfig, rotary: Rotary) -> None:
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="input_layernorm", eps=c.rms_norm_eps)
        self.self_attn = TinyAttention(ctx, c, rotary)
        leaf = "post_attention_layernorm"
        self.mlp_norm = RMSNorm(ctx, c.hidden_size, leaf=leaf, eps=c.rms_norm_eps)
        self.mlp = GatedMLP(ctx, c.hidden_size, c.intermediate_size)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, sum_TD = self.norm(x_TD, sum_TD)
        x_TD, sum_TD = self.mlp_norm(self.self_attn(x_TD, batch), sum_TD)
        return self.mlp(x_TD), sum_TD


class TinyDecoder(Module):
    def __init__(self, ctx: Context, c: TinyConfig, rotary: Rotary) -> None:
        self.embed = Embedding(ctx, c.vocab_size, c.hidden_size, leaf="embed_tokens")
        self.layers = [TinyLayer(ctx, c, rotary) for _ in range(c.num_hidden_layers)]
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="norm", eps=c.rms_norm_eps)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embed(ids_T), None
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


class TinyForCausalLM(Model):
    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, hidden_act=("silu",), tie_word_embeddings=(False,))
        c = read_config(TinyConfig, config)
        head_dim = c.hidden_size // c.num_attention_heads
        self.model = TinyDecoder(ctx, c, Rotary(ctx, head_dim, config))
        self.lm_head = LMHead(ctx, c.vocab_size, c.hidden_size, leaf="lm_head")

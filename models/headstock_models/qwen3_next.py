"""Qwen3-Next: linear attention in most layers, gated attention in the others, and experts.

Shapes: T tokens in the step, D hidden size, H query heads.
Source: Qwen team 2025, "Qwen3-Next"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from headstock.graph.arranged import ArrangedLinear, Rows
from headstock.graph.attention import Attention
from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear
from headstock.graph.linear_attention import LinearAttention
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary, rotary_parameters
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.attention import StepBatch
from headstock.ops.gates import gate_features
from headstock.ops.routing import Routing

C = TypeVar("C", bound="Qwen3NextConfig")


class Qwen3NextConfig(ModelConfig, frozen=True, kw_only=True):
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 256
    vocab_size: int
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    layer_types: tuple[str, ...] = ()
    full_attention_interval: int = 4
    linear_conv_kernel_dim: int = 4
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    num_experts: int = 0
    num_experts_per_tok: int = 10
    moe_intermediate_size: int = 512
    shared_expert_intermediate_size: int = 512
    norm_topk_prob: bool = True
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    def has_full_attention(self, number: int) -> bool:
        if self.layer_types:
            return self.layer_types[number] == "full_attention"
        return (number + 1) % self.full_attention_interval == 0

    def make_mixer(self, ctx: Context) -> Module:
        return DeltaNet(ctx, self)

    def make_mlp(self, ctx: Context, number: int) -> Module:
        is_dense = number in self.mlp_only_layers or (number + 1) % self.decoder_sparse_step
        if is_dense or not self.num_experts:
            return GatedMLP(ctx, self.hidden_size, self.intermediate_size)
        shared = GatedMLP(ctx, self.hidden_size, self.shared_expert_intermediate_size)
        shared.alias = "shared_expert"
        return RoutedMoE(
            ctx,
            self.hidden_size,
            self.moe_intermediate_size,
            self.num_experts,
            Routing(k=self.num_experts_per_tok, is_normalized=self.norm_topk_prob),
            shared=shared,
            shared_gate="shared_expert_gate",
        )


class GatedAttention(Module):
    """W_o (attend(W_qkv x) · sigmoid(W_gate x)); the gate's rows are among the queries'."""

    def __init__(self, ctx: Context, c: Qwen3NextConfig, rotary: Rotary) -> None:
        size, heads, kv_heads, d = (
            c.hidden_size,
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
        )
        query = partial(Rows, size=d, stride=2 * d, num_heads=heads)
        kv = [Rows(first=0, size=d, stride=d, num_heads=kv_heads, is_shared=True)]
        leaves = {"q_proj": [query(first=d), query(first=0)]}
        leaves |= {"k_proj": kv, "v_proj": kv}
        self.inputs = ArrangedLinear(ctx, size, leaves, has_bias=c.attention_bias)
        self.attend = Attention(
            ctx,
            heads,
            kv_heads,
            d,
            rotary=rotary,
            qk_norm=c.rms_norm_eps,
            is_zero_centered=True,
        )
        self._gate_size = self.attend.num_heads * d
        self._gate = ctx.ops.resolve(gate_features, ctx.spec())
        self.out = Linear(ctx, heads * d, {"o_proj": size}, split="in", has_bias=c.attention_bias)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        both_TC = self.inputs(x_TD)
        gate_TC, qkv_TC = both_TC[:, : self._gate_size], both_TC[:, self._gate_size :]
        y_TC = self._gate(self.attend(qkv_TC, batch), gate_TC)
        return self.out(keep(y_TC, batch))


class DeltaNet(Module):
    """W_o of what linear attention reads; projections lie key head by key head."""

    def __init__(self, ctx: Context, c: Qwen3NextConfig) -> None:
        heads, keys, values = c.linear_num_key_heads, c.linear_key_head_dim, c.linear_value_head_dim
        each = c.linear_num_value_heads // heads
        self.inputs = self.make_inputs(ctx, c)
        self.attend = LinearAttention(
            ctx,
            num_key_heads=heads,
            num_value_heads=c.linear_num_value_heads,
            key_size=keys,
            value_size=values,
            kernel_size=c.linear_conv_kernel_dim,
            eps=c.rms_norm_eps,
        )
        wide = c.linear_num_value_heads * values
        self.out = Linear(ctx, wide, {"out_proj": c.hidden_size}, split="in")
        here = heads // ctx.tp.size
        gates, num_values = here * each * values, here * each
        self._sizes = (2 * here * keys + gates, gates, num_values, num_values)

    def make_inputs(self, ctx: Context, c: Qwen3NextConfig) -> Linear:
        """Return the product that makes queries, keys, values, gates, b and a."""
        heads, keys = c.linear_num_key_heads, c.linear_key_head_dim
        each = c.linear_num_value_heads // heads
        wide = each * c.linear_value_head_dim
        stride = 2 * keys + 2 * wide
        kinds = ((0, keys), (keys, keys), (2 * keys, wide), (2 * keys + wide, wide))
        qkvz = [Rows(first=f, size=s, stride=stride, num_heads=heads) for f, s in kinds]
        small = partial(Rows, size=each, stride=2 * each, num_heads=heads)
        ba = [small(first=0), small(first=each)]
        leaves = {"in_proj_qkvz": qkvz, "in_proj_ba": ba}
        return ArrangedLinear(ctx, c.hidden_size, leaves)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        parts = self.inputs(x_TD).split(self._sizes, 1)
        return self.out(keep(self.attend(*parts, batch), batch))


class Qwen3NextLayer(Module):
    """Attention of either kind, then the feed-forward layer, each on the residual stream."""

    def __init__(self, ctx: Context, c: Qwen3NextConfig, rotary: Rotary, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = _norm(ctx, c, "input_layernorm")
        is_full = c.has_full_attention(number)
        self.mixer = GatedAttention(ctx, c, rotary) if is_full else c.make_mixer(ctx)
        self.mixer.alias = "self_attn" if is_full else "linear_attn"
        self.mlp_norm = _norm(ctx, c, "post_attention_layernorm")
        self.mlp = c.make_mlp(ctx, number)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD = self.mixer(x_TD, batch, self.keep)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        return self.mlp(x_TD), total_TD


def _norm(ctx: Context, c: Qwen3NextConfig, leaf: str) -> RMSNorm:
    return RMSNorm(ctx, c.hidden_size, leaf=leaf, eps=c.rms_norm_eps, is_zero_centered=True)


class Decoder(Module):
    def __init__(self, ctx: Context, c: Qwen3NextConfig, rotary: Rotary) -> None:
        self.embed = Embedding(ctx, c.vocab_size, c.hidden_size, leaf="embed_tokens")
        self.layers = [Qwen3NextLayer(ctx, c, rotary, n) for n in range(c.num_hidden_layers)]
        self.norm = _norm(ctx, c, "norm")

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embed(ids_T), None
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


def read_text_config(kind: type[C], config: Mapping[str, Any]) -> C:
    """Return the configuration of a decoder of this kind."""
    # transformers 5 saves what the hub calls num_experts by another name.
    return read_config(kind, {"num_experts": config.get("num_local_experts"), **config})


def rotary_size(c: Qwen3NextConfig, config: Mapping[str, Any]) -> int:
    """Return the features of a head that are rotated."""
    share = rotary_parameters(config).get("partial_rotary_factor")
    share = share or config.get("partial_rotary_factor") or 0.25
    return int(c.head_dim * share)


class Qwen3NextForCausalLM(Model):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type: type[Qwen3NextConfig] = Qwen3NextConfig
    skip: Mapping[str, str] = {**Model.skip, r"^mtp\.": "layers that draft tokens to come"}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, hidden_act=("silu",))
        c = read_text_config(self.config_type, config)
        self.model = Decoder(ctx, c, Rotary(ctx, rotary_size(c, config), config))
        tied = self.model.embed if c.tie_word_embeddings else None
        self.lm_head = LMHead(ctx, c.vocab_size, c.hidden_size, leaf="lm_head", tied=tied)

"""DeepSeek V3, V3.1 and R1, and Kimi K2: latent attention, experts by sigmoid scores in groups.

Shapes: T tokens in the step, D hidden size, H heads.
Source: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headstock.graph.build import Model
from headstock.graph.config import ModelConfig, read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.latent_attention import LatentAttention
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary, sharpening
from headstock.ops.attention import StepBatch
from headstock_models.sigmoid_experts import sigmoid_moe

LATENT_EPS = 1e-6
"""Of the norms of latents, whatever the configuration's ``rms_norm_eps``."""


class DeepseekConfig(ModelConfig, frozen=True, kw_only=True):
    """What all versions' configurations have."""

    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    q_lora_rank: int | None = None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    n_shared_experts: int = 0
    num_experts_per_tok: int
    first_k_dense_replace: int = 0
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0
    rope_interleave: bool = True
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    tie_word_embeddings: bool = False

    def make_moe(self, ctx: Context) -> Module:
        return sigmoid_moe(ctx, self)

    def is_dense(self, number: int) -> bool:
        """Whether layer ``number`` has no experts."""
        return number < self.first_k_dense_replace

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if self.is_dense(number):
            return GatedMLP(ctx, self.hidden_size, self.intermediate_size)
        return self.make_moe(ctx)


class LatentParts(Module):
    """What latent attention is made of: W_b norm(W_a x) for queries, or W_q x; W_kv x; W_o."""

    def __init__(
        self,
        ctx: Context,
        c: DeepseekConfig,
        rotary: Rotary | None,
        scale: float,
        *,
        latent_factor: float = 1.0,
        num_chosen: int = 0,
    ) -> None:
        size, has_bias = c.hidden_size, c.attention_bias
        unit = c.qk_nope_head_dim + c.qk_rope_head_dim
        heads = Part(c.num_attention_heads * unit, unit=unit)
        # Latents are the same for all heads: every rank computes all of them.
        down = {
            "q_a_proj": c.q_lora_rank,
            "kv_a_proj_with_mqa": c.kv_lora_rank + c.qk_rope_head_dim,
        }
        shared = {name: Part(n, unit=n, is_shared=True) for name, n in down.items() if n}
        self.down = Linear(ctx, size, shared, has_bias=has_bias)
        self._sizes = [part.size for part in shared.values()]
        if c.q_lora_rank is None:
            self.q_norm, self.queries = None, Linear(ctx, size, {"q_proj": heads})
        else:
            self.q_norm = RMSNorm(ctx, c.q_lora_rank, leaf="q_a_layernorm", eps=LATENT_EPS)
            self.queries = Linear(ctx, c.q_lora_rank, {"q_b_proj": heads})
        self.attend = LatentAttention(
            ctx,
            c.num_attention_heads,
            latent_size=c.kv_lora_rank,
            key_size=c.qk_nope_head_dim,
            value_size=c.v_head_dim,
            rotary=rotary,
            shared_size=c.qk_rope_head_dim,
            eps=LATENT_EPS,
            scale=scale,
            latent_factor=latent_factor,
            num_chosen=num_chosen,
        )
        wide = c.num_attention_heads * c.v_head_dim
        self.out = Linear(ctx, wide, {"o_proj": size}, split="in", has_bias=has_bias)

    def narrow(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return what queries are made of, and latents with keys behind them."""
        *q_TR, kv_TX = self.down(x_TD).split(self._sizes, 1)
        if self.q_norm is None:
            return x_TD, kv_TX
        return self.q_norm(q_TR[0], None)[0], kv_TX


class DeepseekAttention(LatentParts):
    """W_o attend(W_b norm(W_a x), W_kv x)."""

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        q_TR, kv_TX = self.narrow(x_TD)
        return self.out(keep(self.attend(self.queries(q_TR), kv_TX, batch), batch))


class DeepseekLayer(Module):
    """Attention, then the feed-forward layer, each on the normalised residual stream."""

    def __init__(
        self, ctx: Context, c: DeepseekConfig, rotary: Rotary, scale: float, number: int
    ) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="input_layernorm", eps=c.rms_norm_eps)
        self.self_attn = DeepseekAttention(ctx, c, rotary, scale)
        leaf = "post_attention_layernorm"
        self.mlp_norm = RMSNorm(ctx, c.hidden_size, leaf=leaf, eps=c.rms_norm_eps)
        self.mlp = c.make_mlp(ctx, number)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD = self.self_attn(x_TD, batch, self.keep)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        return self.mlp(x_TD), total_TD


class Decoder(Module):
    def __init__(self, ctx: Context, c: DeepseekConfig, rotary: Rotary, scale: float) -> None:
        self.embed = Embedding(ctx, c.vocab_size, c.hidden_size, leaf="embed_tokens")
        numbers = range(c.num_hidden_layers)
        self.layers = [self.make_layer(ctx, c, rotary, scale, number) for number in numbers]
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="norm", eps=c.rms_norm_eps)

    def make_layer(
        self, ctx: Context, c: DeepseekConfig, rotary: Rotary, scale: float, number: int
    ) -> Module:
        return DeepseekLayer(ctx, c, rotary, scale, number)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embed(ids_T), None
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


class DeepseekV3ForCausalLM(Model):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type: type[DeepseekConfig] = DeepseekConfig
    decoder_type: type[Decoder] = Decoder

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, hidden_act=("silu",), scoring_func=("sigmoid",), moe_layer_freq=(1,))
        require(config, topk_method=("noaux_tc",))
        self.build(ctx, config)

    def build(self, ctx: Context, config: Mapping[str, Any]) -> None:
        """Build the parts: alike in all versions."""
        # transformers 5 may save what the hub calls n_routed_experts by another name.
        named = {"n_routed_experts": config.get("num_local_experts") or config.get("num_experts")}
        c = read_config(self.config_type, named | dict(config))
        is_interleaved = c.rope_interleave
        rotary = Rotary(ctx, c.qk_rope_head_dim, config, is_interleaved=is_interleaved)
        scale = (c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5 * sharpening(config)
        # Layers past the last draft tokens to come; nothing here drafts with them.
        drafts = {rf"^model\.layers\.{c.num_hidden_layers}\.": "a layer that drafts tokens to come"}
        self.skip = {**Model.skip, **drafts}
        self.model = self.decoder_type(ctx, c, rotary, scale)
        tied = self.model.embed if c.tie_word_embeddings else None
        self.lm_head = LMHead(ctx, c.vocab_size, c.hidden_size, leaf="lm_head", tied=tied)

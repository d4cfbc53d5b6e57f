"""Kimi Linear: the delta rule with decays by channel in most layers, else latent attention.

Neither kind of layer knows positions otherwise: latent attention rotates nothing. Experts are
chosen by sigmoid scores.

Shapes: T tokens in the step, D hidden size, H heads of d features.
Source: Kimi team 2025, "Kimi Linear"; names as on the hub, which transformers writes too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.config import read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, Part
from headstock.graph.linear_attention import LinearAttention
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.ops.attention import StepBatch
from headstock.ops.moe import Matrix
from headstock_models.deepseek_v3 import DeepseekAttention, DeepseekConfig
from headstock_models.sigmoid_experts import sigmoid_moe

LINEAR, FULL, DENSE, SPARSE = "linear_attention", "full_attention", "dense", "sparse"
HUB_KEYS = {
    "moe_renormalize": "norm_topk_prob",
    "num_expert_group": "n_group",
    "num_experts": "n_routed_experts",
    "num_local_experts": "n_routed_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "num_shared_experts": "n_shared_experts",
}
"""What configurations call the keys that DeepSeek V3 has."""
LINEAR_KEYS = {
    "head_dim": "linear_head_dim",
    "num_heads": "linear_num_heads",
    "short_conv_kernel_size": "linear_conv_kernel_dim",
}
"""Keys of ``linear_attn_config``, which the hub has, and what transformers calls them."""
EXPERT_NAMES: Mapping[Matrix, str] = {"gate": "w1", "up": "w3", "down": "w2"}


class KimiLinearConfig(DeepseekConfig, frozen=True, kw_only=True):
    n_shared_experts: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.446
    rms_norm_eps: float = 1e-5
    layer_types: tuple[str, ...] = ()
    mlp_layer_types: tuple[str, ...] = ()
    first_k_dense_replace: int = 1
    linear_head_dim: int = 128
    linear_num_heads: int = 32
    linear_conv_kernel_dim: int = 4

    def is_linear(self, number: int) -> bool:
        """Whether layer ``number`` keeps a state, not tokens."""
        if self.layer_types:
            return self.layer_types[number] == LINEAR
        return number == 0 or number % 4 != 0

    def is_dense(self, number: int) -> bool:
        """Whether layer ``number`` has no experts."""
        if self.mlp_layer_types:
            return self.mlp_layer_types[number] == DENSE
        return super().is_dense(number)

    def make_moe(self, ctx: Context) -> Module:
        return sigmoid_moe(ctx, self, names=EXPERT_NAMES)


class KimiDeltaAttention(Module):
    """W_o of what linear attention reads; decays and gates come through narrow matrices."""

    def __init__(self, ctx: Context, c: KimiLinearConfig) -> None:
        size, heads, d = c.hidden_size, c.linear_num_heads, c.linear_head_dim
        wide = Part(heads * d, unit=d)
        narrow = Part(d, unit=d, is_shared=True)  # every rank computes all of it
        leaves = {"q_proj": wide, "k_proj": wide, "v_proj": wide, "b_proj": Part(heads)}
        self.inputs = Linear(ctx, size, {**leaves, "f_a_proj": narrow, "g_a_proj": narrow})
        self.decays = Linear(ctx, d, {"f_b_proj": wide})
        self.gates = Linear(ctx, d, {"g_b_proj": wide})
        self.attend = LinearAttention(
            ctx,
            num_key_heads=heads,
            num_value_heads=heads,
            key_size=d,
            value_size=d,
            kernel_size=c.linear_conv_kernel_dim,
            eps=c.rms_norm_eps,
            decays_by_channel=True,
            gate="sigmoid",
            decay_shape=(1, 1, heads, 1),
            convs=("q_conv1d", "k_conv1d", "v_conv1d"),
            norm="o_norm",
        )
        self.out = Linear(ctx, heads * d, {"o_proj": size}, split="in")
        here = heads // ctx.tp.size
        self._sizes = (3 * here * d, here, d, d)

    def forward(self, x_TD: Tensor, batch: StepBatch, keep: LastOfRows) -> Tensor:
        qkv_TC, b_TH, decay_Td, gate_Td = self.inputs(x_TD).split(self._sizes, 1)
        gate_TX, a_TG = self.gates(gate_Td), self.decays(decay_Td)
        return self.out(keep(self.attend(qkv_TC, gate_TX, b_TH, a_TG, batch), batch))


class KimiLinearLayer(Module):
    """Attention of either kind, then the feed-forward layer, each on the residual stream."""

    def __init__(self, ctx: Context, c: KimiLinearConfig, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="input_layernorm", eps=c.rms_norm_eps)
        if c.is_linear(number):
            self.self_attn = KimiDeltaAttention(ctx, c)
        else:
            scale = (c.qk_nope_head_dim + c.qk_rope_head_dim) ** -0.5
            self.self_attn = DeepseekAttention(ctx, c, None, scale)
        leaf = "post_attention_layernorm"
        self.mlp_norm = RMSNorm(ctx, c.hidden_size, leaf=leaf, eps=c.rms_norm_eps)
        self.mlp = c.make_mlp(ctx, number)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD = self.self_attn(x_TD, batch, self.keep)
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        return self.mlp(x_TD), total_TD


class Decoder(Module):
    def __init__(self, ctx: Context, c: KimiLinearConfig) -> None:
        self.embed = Embedding(ctx, c.vocab_size, c.hidden_size, leaf="embed_tokens")
        self.layers = [KimiLinearLayer(ctx, c, number) for number in range(c.num_hidden_layers)]
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="norm", eps=c.rms_norm_eps)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embed(ids_T), None
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


class KimiLinearForCausalLM(Model):
    """A decoder with an output layer, perhaps tied to the embedding."""

    length_keys: ClassVar[tuple[str, ...]] = ("model_max_length", "max_position_embeddings")

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, hidden_act=("silu",), mla_use_nope=(True,), moe_layer_freq=(1,))
        require(config, moe_router_activation_func=("sigmoid",), num_nextn_predict_layers=(0,))
        for kind in config.get("layer_types") or ():
            require({"layer_types": kind}, layer_types=(LINEAR, FULL))
        for kind in config.get("mlp_layer_types") or ():
            require({"mlp_layer_types": kind}, mlp_layer_types=(DENSE, SPARSE))
        c = read_config(KimiLinearConfig, _with_our_keys(config))
        self.model = Decoder(ctx, c)
        tied = self.model.embed if c.tie_word_embeddings else None
        self.lm_head = LMHead(ctx, c.vocab_size, c.hidden_size, leaf="lm_head", tied=tied)

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return feed-forward layers of all kinds as ``mlp``.

        The hub calls those with experts ``block_sparse_moe``, and transformers the dense ones too.
        """
        return {re.sub(r"\.block_sparse_moe\.", ".mlp.", name): x for name, x in index.items()}


def _with_our_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in the keys of :class:`KimiLinearConfig`."""
    linear = config.get("linear_attn_config") or {}
    read = [(config, HUB_KEYS), (linear, LINEAR_KEYS)]
    given = {ours: of[key] for of, keys in read for key, ours in keys.items() if key in of}
    full, delta = linear.get("full_attn_layers"), linear.get("kda_layers")
    if full is not None and delta is not None:
        # Counted from 1.
        numbers = range(1, int(config["num_hidden_layers"]) + 1)
        given["layer_types"] = [FULL if n in full else LINEAR for n in numbers]
    return given | {key: value for key, value in config.items() if value is not None}

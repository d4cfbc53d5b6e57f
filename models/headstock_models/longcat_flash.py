"""LongCat-Flash: two sublayers a layer, with experts beside the second; some experts do nothing.

Experts take what the first sublayer's feed-forward layer takes, and what they make of it is added
behind the second sublayer.

Shapes: T tokens in the step, D hidden size.
Source: Meituan 2025, "LongCat-Flash"; names as in Hugging Face transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.config import require
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.attention import StepBatch
from headstock.ops.features import add_features
from headstock.ops.routing import Routing
from headstock_models.deepseek_v3 import (
    Decoder,
    DeepseekAttention,
    DeepseekConfig,
    DeepseekV3ForCausalLM,
)

OUR_KEYS = {
    "num_layers": "num_hidden_layers",
    "ffn_hidden_size": "intermediate_size",
    "expert_ffn_hidden_size": "moe_intermediate_size",
    "moe_topk": "num_experts_per_tok",
}
"""What the keys that DeepSeek V3 has are called here."""


class LongcatFlashConfig(DeepseekConfig, frozen=True, kw_only=True):
    q_lora_rank: int = 1536
    routed_scaling_factor: float = 6.0
    rms_norm_eps: float = 1e-5
    zero_expert_num: int = 256

    def make_attention(self, ctx: Context, rotary: Rotary, scale: float) -> Module:
        # Latents are scaled as if they had the hidden state's width.
        for_queries = (self.hidden_size / self.q_lora_rank) ** 0.5
        factor = (self.hidden_size / self.kv_lora_rank) ** 0.5
        return DeepseekAttention(ctx, self, rotary, scale * for_queries, latent_factor=factor)

    def make_moe(self, ctx: Context) -> Module:
        return RoutedMoE(
            ctx,
            self.hidden_size,
            self.moe_intermediate_size,
            self.n_routed_experts,
            Routing(k=self.num_experts_per_tok, factor=self.routed_scaling_factor),
            bias_leaf="router.e_score_correction_bias",
            router="router.classifier",
            num_identities=self.zero_expert_num,
        )


class LongcatFlashLayer(Module):
    """Attention and a feed-forward layer, twice, each on the normalised residual stream."""

    def __init__(
        self, ctx: Context, c: LongcatFlashConfig, rotary: Rotary, scale: float, number: int
    ) -> None:
        size, eps = c.hidden_size, c.rms_norm_eps
        before, after = "input_layernorm", "post_attention_layernorm"
        self.every = LastOfRows(ctx, is_last=False)
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm_0 = RMSNorm(ctx, size, leaf=f"{before}.0", eps=eps)
        self.norm_1 = RMSNorm(ctx, size, leaf=f"{before}.1", eps=eps)
        self.self_attn = [c.make_attention(ctx, rotary, scale) for _ in range(2)]
        self.mlp_norm_0 = RMSNorm(ctx, size, leaf=f"{after}.0", eps=eps)
        self.mlp_norm_1 = RMSNorm(ctx, size, leaf=f"{after}.1", eps=eps)
        self.mlps = [GatedMLP(ctx, size, c.intermediate_size) for _ in range(2)]
        self.mlp = c.make_moe(ctx)
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm_0(x_TD, sum_TD)
        x_TD = self.self_attn[0](x_TD, batch, self.every)
        x_TD, total_TD = self.mlp_norm_0(x_TD, total_TD)
        beside_TD = self.keep(self.mlp(x_TD), batch)
        x_TD, total_TD = self.norm_1(self.mlps[0](x_TD), total_TD)
        x_TD = self.self_attn[1](x_TD, batch, self.keep)
        x_TD, total_TD = self.mlp_norm_1(x_TD, self.keep(total_TD, batch))
        return self._add(self.mlps[1](x_TD), beside_TD), total_TD


class LongcatFlashDecoder(Decoder):
    def make_layer(
        self, ctx: Context, c: DeepseekConfig, rotary: Rotary, scale: float, number: int
    ) -> Module:
        assert isinstance(c, LongcatFlashConfig), type(c)
        return LongcatFlashLayer(ctx, c, rotary, scale, number)


class LongcatFlashForCausalLM(DeepseekV3ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = LongcatFlashConfig
    decoder_type = LongcatFlashDecoder

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, hidden_act=("silu",), router_bias=(False,), attention_method=("MLA",))
        require(config, zero_expert_type=("identity",), norm_topk_prob=(False,))
        require(config, mla_scale_q_lora=(True,), mla_scale_kv_lora=(True,))
        ours = {name: config[key] for key, name in OUR_KEYS.items() if key in config}
        self.build(ctx, {**config, **ours})
        self._num_experts = int(config["n_routed_experts"])
        self.skip = {**self.skip, r"^model\.mtp\.": "layers that draft tokens to come"}

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Leave out matrices of experts that have none, which transformers writes."""
        number = re.compile(r"\.mlp\.experts\.(\d+)\.")
        found = ((name, number.search(name), tensor) for name, tensor in index.items())
        return {
            name: tensor
            for name, match, tensor in found
            if match is None or int(match[1]) < self._num_experts
        }

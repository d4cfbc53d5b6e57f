"""Hunyuan V1, dense and with experts: Llama with norms of queries and keys behind the rotation.

Source: Tencent 2025, "Hunyuan-A13B"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.routing import Routing
from headstock_models.llama import LlamaConfig, LlamaForCausalLM


class HunYuanConfig(LlamaConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-5
    has_qk_norm: ClassVar[bool] = True
    is_normed_last: ClassVar[bool] = True
    norm_leaves: ClassVar[tuple[str, str]] = ("query_layernorm", "key_layernorm")


class HunYuanMoEConfig(HunYuanConfig, frozen=True, kw_only=True):
    num_experts: int = 1
    moe_topk: int | tuple[int, ...] = 1

    def make_mlp(self, ctx: Context, number: int) -> Module:
        k = self.moe_topk if isinstance(self.moe_topk, int) else self.moe_topk[number]
        shared = GatedMLP(ctx, self.hidden_size, self.intermediate_size)
        shared.alias = "shared_mlp"
        return RoutedMoE(
            ctx,
            self.hidden_size,
            self.intermediate_size,
            self.num_experts,
            Routing(k=k, is_normalized=True),
            shared=shared,
            router="gate.wg",
        )


class HunYuanDenseV1ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = HunYuanConfig
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        "use_qk_norm": (True,),
        "use_cla": (False,),
        "attention_head_dim": None,
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # The hub has another key for the size of heads.
        super().__init__(ctx, {"head_dim": config.get("attention_head_dim"), **config})


class HunYuanMoEV1ForCausalLM(HunYuanDenseV1ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = HunYuanMoEConfig
    accepted: ClassVar = {
        **HunYuanDenseV1ForCausalLM.accepted,
        "mlp_bias": (False,),
        "use_mixed_mlp_moe": (True,),
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers 5 may save what the hub calls these by other names.
        named = {
            "num_experts": config.get("num_local_experts"),
            "moe_topk": config.get("num_experts_per_tok"),
        }
        super().__init__(ctx, named | dict(config))

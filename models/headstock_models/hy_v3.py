"""Hy3: Qwen3 with experts by sigmoid scores, a bias on the choice, and a shared expert.

Source: Tencent 2026, "Hy3-preview"; names as on the hub (``hy_v3`` of transformers' conversion map,
and what Tencent's training scripts save), or as transformers calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.routing import Routing
from headstock_models.llama import LlamaConfig, LlamaForCausalLM
from headstock_models.stored_rows import renamed

DENSE, SPARSE = "dense", "sparse"
HUB_NAMES = (
    (r"\.mlp\.gate\.weight$", ".mlp.router.gate.weight"),
    (r"\.mlp\.e_score_correction_bias$", ".mlp.expert_bias"),
    (r"\.mlp\.shared_experts\.", ".mlp.shared_mlp."),
)
"""What the classes of transformers call what the hub calls otherwise."""


class HYV3Config(LlamaConfig, frozen=True, kw_only=True):
    head_dim: int | None = 128
    rms_norm_eps: float = 1e-5
    num_experts: int = 192
    num_experts_per_tok: int = 8
    num_shared_experts: int = 1
    moe_intermediate_size: int = 1536
    router_scaling_factor: float = 2.826
    mlp_layer_types: tuple[str, ...] = ()
    has_qk_norm: ClassVar[bool] = True
    rope_theta_default: ClassVar[float] = 11_158_840.0

    def is_dense(self, number: int) -> bool:
        """Whether layer ``number`` has no experts: without a list, the first has none."""
        return self.mlp_layer_types[number] == DENSE if self.mlp_layer_types else number == 0

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if self.is_dense(number):
            return super().make_mlp(ctx, number)
        size, between = self.hidden_size, self.moe_intermediate_size
        wide = between * self.num_shared_experts
        shared = GatedMLP(ctx, size, wide, has_bias=self.mlp_bias)
        shared.alias = "shared_mlp"
        routing = Routing(
            k=self.num_experts_per_tok,
            scores="sigmoid",
            is_normalized=True,
            factor=self.router_scaling_factor,
        )
        return RoutedMoE(
            ctx,
            size,
            between,
            self.num_experts,
            routing,
            bias_leaf="expert_bias",
            shared=shared,
            router="router.gate",
        )


class HYV3ForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = HYV3Config
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        "mlp_layer_types": (DENSE, SPARSE),
        "first_k_dense_replace": (1,),
        "qk_norm": (True,),
        "route_norm": (True,),
        "moe_router_use_sigmoid": (True,),
        "moe_router_enable_expert_bias": (True,),
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers 5 may save num_experts by another name.
        super().__init__(ctx, {"num_experts": config.get("num_local_experts"), **config})
        drafts = rf"^model\.layers\.{config['num_hidden_layers']}\."
        self.skip = {**Model.skip, drafts: "a layer that drafts tokens to come"}

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by the hub's names."""
        return renamed(super().named(index), HUB_NAMES)

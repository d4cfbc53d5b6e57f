"""K-EXAONE: Exaone 4's attention between the usual norms, and experts by sigmoid scores.

Source: LG AI Research 2026, "K-EXAONE"; names as on the hub, or as transformers calls them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock_models.exaone4 import Exaone4Config, Exaone4ForCausalLM
from headstock_models.llama import DecoderLayer, Rotaries
from headstock_models.sigmoid_experts import BIAS_LEAF, sigmoid_moe

DENSE, SPARSE = "dense", "sparse"
HUB_BIAS = "e_score_correction_bias"


class ExaoneMoeConfig(Exaone4Config, frozen=True, kw_only=True):
    moe_intermediate_size: int = 1024
    n_routed_experts: int = 64
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int = 1
    mlp_layer_types: tuple[str, ...] = ()

    def is_dense(self, number: int) -> bool:
        """Whether layer ``number`` has no experts."""
        if self.mlp_layer_types:
            return self.mlp_layer_types[number] == DENSE
        return number < self.first_k_dense_replace

    def make_mlp(self, ctx: Context, number: int) -> Module:
        if self.is_dense(number):
            return GatedMLP(ctx, self.hidden_size, self.intermediate_size)
        return sigmoid_moe(ctx, self, bias_leaf=HUB_BIAS)

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return DecoderLayer(ctx, self, rotaries, number)


class ExaoneMoeForCausalLM(Exaone4ForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = ExaoneMoeConfig
    accepted: ClassVar = {
        **Exaone4ForCausalLM.accepted,
        "mlp_layer_types": (DENSE, SPARSE),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
    }
    skip: Mapping[str, str] = {**Model.skip, r"^mtp\.": "layers that draft tokens to come"}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        # transformers 5 may save num_experts by another name.
        count = config.get("num_experts") or config.get("num_local_experts")
        shared = config.get("num_shared_experts")
        named = {"n_routed_experts": count, "n_shared_experts": shared}
        super().__init__(ctx, {**named, **config})

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors by the hub's names."""
        ours, hub = f".mlp.{BIAS_LEAF}", f".mlp.{HUB_BIAS}"
        return {name.replace(ours, hub): tensor for name, tensor in index.items()}

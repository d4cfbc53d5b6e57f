"""Granite 4, hybrid and with experts: Granite with state spaces of Mamba 2 in most layers.

Shapes: T tokens in the step, D hidden size.
Source: IBM 2025, "Granite 4.0 Language Models"; names as in Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock.graph.routed_moe import RoutedMoE
from headstock.graph.stacked import Stacked, split_stacked
from headstock.ops.attention import StepBatch
from headstock.ops.features import scale_features
from headstock.ops.moe import Matrix
from headstock.ops.routing import Routing, add_shared
from headstock_models.llama import FULL, DecoderLayer, LlamaForCausalLM, Rotaries
from headstock_models.mamba_layers import STATE, HybridConfig, read_old_kinds

STACKS = {
    "block_sparse_moe.input_linear.weight": Stacked(
        "block_sparse_moe.experts", ("gate_proj", "up_proj")
    ),
    "block_sparse_moe.output_linear.weight": Stacked("block_sparse_moe.experts", ("down_proj",)),
}


class GraniteHybridConfig(HybridConfig, frozen=True, kw_only=True):
    rms_norm_eps: float = 1e-6
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0
    num_local_experts: int = 0
    num_experts_per_tok: int = 2
    shared_intermediate_size: int = 1024
    position_embedding_type: str | None = None

    @property
    def attention_scale(self) -> float | None:
        return self.attention_multiplier

    @property
    def embedding_scale(self) -> float:
        return self.embedding_multiplier

    @property
    def logits_scale(self) -> float:
        return 1 / self.logits_scaling

    def rotates(self, number: int) -> bool:
        return self.position_embedding_type == "rope"

    def make_mlp(self, ctx: Context, number: int) -> Module:
        names: Mapping[Matrix, str] = {"gate": "input_linear", "down": "output_linear"}
        size = self.shared_intermediate_size
        mlp = GatedMLP(ctx, self.hidden_size, size, is_fused=True, names=names)
        mlp.alias = "shared_mlp"
        return mlp

    def make_experts(self, ctx: Context) -> Module:
        """Return what stands beside the feed-forward layer."""
        experts = RoutedMoE(
            ctx,
            self.hidden_size,
            self.intermediate_size,
            self.num_local_experts,
            Routing(k=self.num_experts_per_tok, is_normalized=True),
            router="router.layer",
        )
        experts.alias = "block_sparse_moe"
        return experts

    def make_layer(self, ctx: Context, rotaries: Rotaries, number: int) -> Module:
        return ScaledLayer(ctx, self, rotaries, number)


class ScaledLayer(DecoderLayer):
    """A layer that adds a share of what it computes to the residual stream."""

    def __init__(
        self, ctx: Context, c: GraniteHybridConfig, rotaries: Rotaries, number: int
    ) -> None:
        super().__init__(ctx, c, rotaries, number)
        run = ctx.ops.resolve(scale_features, ctx.spec())
        self._scale = partial(run, factor=c.residual_multiplier)
        self.experts = c.make_experts(ctx) if c.num_local_experts else None
        self._add = ctx.ops.resolve(add_shared, ctx.spec())

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        x_TD = self._scale(self.self_attn(x_TD, batch, self.keep))
        x_TD, total_TD = self.mlp_norm(x_TD, self.keep(total_TD, batch))
        y_TD = self.mlp(x_TD)
        if self.experts is not None:
            y_TD = self._add(self.experts(x_TD), y_TD, None)
        return self._scale(y_TD), total_TD


class GraniteMoeHybridForCausalLM(LlamaForCausalLM):
    """A decoder with an output layer, perhaps tied to the embedding."""

    config_type = GraniteHybridConfig
    accepted: ClassVar = {
        **LlamaForCausalLM.accepted,
        "layer_types": (FULL, STATE),
        "position_embedding_type": ("rope", "nope"),
    }

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        super().__init__(ctx, read_old_kinds(config))

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors with a matrix for each expert."""
        return split_stacked(index, STACKS)

"""Nemotron-H and Nemotron 3: layers of one part each, state spaces, attention, or feed-forward.

Shapes: T tokens in the step, D hidden size.
Source: "Nemotron-H: A Family of Accurate and Efficient Hybrid Mamba-Transformer Models" (2025), its
authors' report; names as in Hugging Face transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.config import read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import Embedding, LMHead
from headstock.graph.feed_forward import MLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear
from headstock.graph.mamba2 import Mamba2, Mamba2Sizes
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.activation_kinds import RELU2
from headstock.ops.attention import StepBatch
from headstock.ops.routing import Routing
from headstock_models.llama import FULL, DecoderAttention, LlamaConfig
from headstock_models.mamba_layers import OLD_KINDS, STATE, step_limits
from headstock_models.sigmoid_experts import BIAS_LEAF

EXPERTS, PLAIN = "moe", "mlp"
BY_LETTER = {"M": STATE, "*": FULL, "E": EXPERTS, "-": PLAIN}
"""Of ``hybrid_override_pattern``, which old configurations have."""
OLD_KEYS = {
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_limit": "time_step_limit",
    "mamba_conv_bias": "use_conv_bias",
    "num_local_experts": "n_routed_experts",
}


class NemotronHConfig(LlamaConfig, frozen=True, kw_only=True):
    layer_norm_epsilon: float = 1e-5
    mamba_num_heads: int = 128
    mamba_head_dim: int = 64
    n_groups: int = 8
    ssm_state_size: int = 128
    conv_kernel: int = 4
    use_conv_bias: bool = True
    use_bias: bool = False
    time_step_limit: tuple[float, float] | None = None
    n_routed_experts: int = 8
    moe_intermediate_size: int = 7688
    moe_shared_expert_intermediate_size: int = 7688
    moe_latent_size: int | None = None
    num_experts_per_tok: int = 2
    routed_scaling_factor: float = 1.0
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True

    def rotates(self, number: int) -> bool:
        return False  # states know the order

    @property
    def state_spaces(self) -> Mamba2Sizes:
        """What the layers with state spaces are made of."""
        return Mamba2Sizes(
            hidden_size=self.hidden_size,
            num_heads=self.mamba_num_heads,
            head_dim=self.mamba_head_dim,
            num_groups=self.n_groups,
            state_size=self.ssm_state_size,
            kernel_size=self.conv_kernel,
            eps=self.layer_norm_epsilon,
            has_conv_bias=self.use_conv_bias,
            has_bias=self.use_bias,
            has_out_bias=self.use_bias,
            step_limits=self.time_step_limit or (0.0, math.inf),
        )

    def make_mixer(self, ctx: Context, number: int) -> Module:
        """Return the one part of layer ``number``."""
        kind = self.layer_types[number]
        if kind == STATE:
            return Mamba2(ctx, self.state_spaces)
        if kind == FULL:
            return DecoderAttention(ctx, self, {}, number)
        return self.make_experts(ctx) if kind == EXPERTS else self.make_plain(ctx)

    def make_plain(self, ctx: Context, size: int | None = None) -> Module:
        """Return a feed-forward layer without a gate."""
        size = size or self.intermediate_size
        return MLP(ctx, self.hidden_size, size, RELU2, has_bias=self.mlp_bias)

    def make_experts(self, ctx: Context) -> Module:
        size = self.hidden_size
        shared = self.make_plain(ctx, self.moe_shared_expert_intermediate_size)
        shared.alias = "shared_experts"
        inner, latent = self.moe_latent_size, None
        if inner is not None:
            whole = partial(Linear, ctx, split="none", has_bias=self.mlp_bias)
            to_latent, from_latent = {"fc1_latent_proj": inner}, {"fc2_latent_proj": size}
            latent = (inner, whole(size, to_latent), whole(inner, from_latent))
        routing = Routing(
            k=self.num_experts_per_tok,
            scores="sigmoid",
            is_normalized=self.norm_topk_prob,
            num_groups=self.n_group,
            groups_kept=self.topk_group,
            group_best=2 if self.n_group > 1 else 1,
            factor=self.routed_scaling_factor,
        )
        return RoutedMoE(
            ctx,
            size,
            self.moe_intermediate_size,
            self.n_routed_experts,
            routing,
            bias_leaf=BIAS_LEAF,
            shared=shared,
            names={"up": "up_proj", "down": "down_proj"},
            activation=RELU2,
            latent=latent,
        )


class NemotronHLayer(Module):
    """x + part(norm(x)), where the part is one of several."""

    def __init__(self, ctx: Context, c: NemotronHConfig, number: int) -> None:
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="norm", eps=c.layer_norm_epsilon)
        self.mixer = c.make_mixer(ctx, number)
        self._has_state = c.layer_types[number] in (STATE, FULL)

    def forward(self, x_TD: Tensor, sum_TD: Tensor | None, batch: StepBatch) -> tuple[Tensor, ...]:
        x_TD, total_TD = self.norm(x_TD, sum_TD)
        if self._has_state:
            return self.mixer(x_TD, batch, self.keep), self.keep(total_TD, batch)
        return self.mixer(self.keep(x_TD, batch)), self.keep(total_TD, batch)


class NemotronHDecoder(Module):
    def __init__(self, ctx: Context, c: NemotronHConfig) -> None:
        self.embed = Embedding(ctx, c.vocab_size, c.hidden_size, leaf="embeddings")
        self.layers = [NemotronHLayer(ctx, c, n) for n in range(c.num_hidden_layers)]
        self.norm = RMSNorm(ctx, c.hidden_size, leaf="norm_f", eps=c.layer_norm_epsilon)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD, sum_TD = self.embed(ids_T), None
        for layer in self.layers:
            x_TD, sum_TD = layer(x_TD, sum_TD, batch)
        return self.norm(x_TD, sum_TD)[0]


class NemotronHForCausalLM(Model):
    """A decoder with an output layer, perhaps tied to the embedding."""

    skip: Mapping[str, str] = {**Model.skip, r"^mtp\.": "layers that draft tokens to come"}

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, mlp_hidden_act=("relu2",), mamba_hidden_act=("silu",), sliding_window=())
        c = read_config(NemotronHConfig, _read_old_keys(config))
        self.model = NemotronHDecoder(ctx, c)
        tied = self.model.embed if c.tie_word_embeddings else None
        self.lm_head = LMHead(ctx, c.vocab_size, c.hidden_size, leaf="lm_head", tied=tied)

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors below ``model.``: the hub has ``backbone.`` for it."""
        return {re.sub(r"^backbone\.", "model.", name): tensor for name, tensor in index.items()}


def _read_old_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with layers by kind, and in today's keys."""
    given = {ours: config.get(key) for key, ours in OLD_KEYS.items()} | dict(config)
    kinds = config.get("layers_block_type") or config.get("layer_types")
    kinds = kinds or [BY_LETTER[letter] for letter in config.get("hybrid_override_pattern") or ""]
    kinds = [OLD_KINDS.get(kind, kind) for kind in kinds]
    for kind in kinds:
        require({"layer_types": kind}, layer_types=tuple(BY_LETTER.values()))
    given |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    return given | {"time_step_limit": step_limits(given.get("time_step_limit"))}

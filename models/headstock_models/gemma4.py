"""Gemma 4: heads of two sizes, layers that read the keys and values of others, own embeddings.

Layers with a window have more and smaller heads than full ones, whose keys may be their values too.
The last layers keep no keys and values: each reads those of the last layer of its kind that does.
Some models have experts beside the feed-forward layer, some an embedding for each layer.

Shapes: T tokens in the step, D hidden size, E experts, k experts of a token, P features of an
embedding of a layer. Source: ``Gemma4TextModel`` of Hugging Face transformers; names as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.errors import UnsupportedError
from headstock.graph.build import Model
from headstock.graph.config import read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import LMHead
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear, Part
from headstock.graph.module import Leaf, Module
from headstock.graph.moe import Experts
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary
from headstock.graph.routed_moe import SelectionBias
from headstock.graph.source import Source
from headstock.graph.stacked import Stacked, split_stacked
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.attention import StepBatch
from headstock.ops.features import add_features
from headstock.ops.moe import route_topk
from headstock.ops.routing import weigh_experts
from headstock.quantization.plan import Role
from headstock_models.feature_scale import FeatureScale
from headstock_models.llama import FULL, SLIDING, Rotaries
from headstock_models.per_layer import EmbeddingDecoder, LayerWithInput
from headstock_models.shared_kv import (
    HeadSizes,
    SharingConfig,
    make_attentions,
    unread_leaves,
)

STACKS = {
    "experts.gate_up_proj": Stacked("experts", ("gate_proj", "up_proj")),
    "experts.down_proj": Stacked("experts", ("down_proj",)),
}
USUAL_ROPE: Mapping[str, Mapping[str, Any]] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
LAYER_KEYS = {"head_dim", "num_key_value_heads"}
"""What may differ from layer to layer in a way that ``layer_types`` does not say."""


class Gemma4Config(SharingConfig, frozen=True, kw_only=True):
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 30
    vocab_size: int = 262_144
    global_head_dim: int = 512
    num_global_key_value_heads: int | None = None
    per_layer_config: dict[str, dict[str, Any]] | None = None
    attention_k_eq_v: bool = False
    use_double_wide_mlp: bool = False
    enable_moe_block: bool = False
    num_experts: int | None = None
    top_k_experts: int | None = None
    moe_intermediate_size: int | None = None
    final_logit_softcapping: float | None = None
    tie_word_embeddings: bool = True
    use_bidirectional_attention: str | None = None

    def kind(self, number: int) -> str:
        """Return what layer ``number`` is; the last is full, whatever the list says."""
        return FULL if number == self.num_hidden_layers - 1 else super().kind(number)

    def sizes(self, number: int) -> HeadSizes:
        """Return what heads layer ``number`` has."""
        given = {"head_dim": self.head_dim, "num_key_value_heads": self.num_key_value_heads}
        if self.per_layer_config is not None:
            given |= self.per_layer_config.get(str(number)) or {}
        elif self.kind(number) == FULL:
            given["head_dim"] = self.global_head_dim
            if self.attention_k_eq_v and self.num_global_key_value_heads:
                given["num_key_value_heads"] = self.num_global_key_value_heads
        heads = self.num_attention_heads
        return HeadSizes(heads, given["num_key_value_heads"], given["head_dim"])

    def takes_keys(self, number: int) -> bool:
        """Whether the keys of layer ``number`` are its values too."""
        return self.attention_k_eq_v and self.kind(number) == FULL

    @property
    def expert_sizes(self) -> tuple[int, int, int]:
        """Experts, those of a token, and features between an expert's matrices.

        Raises:
            UnsupportedError: The configuration does not say.
        """
        sizes = {
            "num_experts": self.num_experts,
            "top_k_experts": self.top_k_experts,
            "moe_intermediate_size": self.moe_intermediate_size,
        }
        for key, size in sizes.items():
            if not size:
                raise UnsupportedError(
                    f"The configuration has enable_moe_block and {key} = {size!r}.",
                    remedy="Compare config.json with the model's original.",
                )
        return self.num_experts or 0, self.top_k_experts or 0, self.moe_intermediate_size or 0

    def feed_forward_size(self, number: int) -> int:
        """Return the features between the matrices of layer ``number``."""
        is_wide = self.use_double_wide_mlp and number >= self.first_shared
        return self.intermediate_size * (2 if is_wide else 1)


class RouterNorm(RMSNorm):
    """What a router takes: x / rms(x) · ``scale`` / sqrt(D)."""

    def __init__(self, ctx: Context, size: int, *, eps: float) -> None:
        super().__init__(ctx, size, leaf="scale", eps=eps)

    def leaves(self) -> Sequence[Leaf]:
        """Return the scale."""
        return [Leaf("scale", tuple(self._weight_D.shape), Role.SCALE)]

    def load(self, name: str, source: Source) -> None:
        """Take the scale."""
        super().load(name, source)
        self._weight_D.mul_(self._weight_D.shape[0] ** -0.5)


class Gemma4Router(Module):
    """The k best experts of a token; their weights sum to 1, each times its expert's scale."""

    alias = "router"

    def __init__(self, ctx: Context, c: Gemma4Config, num_experts: int, k: int) -> None:
        self.norm = RouterNorm(ctx, c.hidden_size, eps=c.rms_norm_eps)
        logits = Part(num_experts, unit=num_experts, is_shared=True)
        self.logits = Linear(ctx, c.hidden_size, {"proj": logits}, role=Role.ROUTER)
        self.scales = SelectionBias(ctx, "per_expert_scale", num_experts, (num_experts,))
        spec = ctx.spec(num_experts=num_experts, experts_per_token=k)
        self._k, self._route = k, ctx.ops.resolve(route_topk, spec)
        self._weigh = ctx.ops.resolve(weigh_experts, ctx.spec())

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and experts. [T, k] each"""
        logits_TE = self.logits(self.norm(x_TD, None)[0])
        weights_Tk, experts_Tk = self._route(logits_TE, k=self._k, is_normalized=True)
        return self._weigh(weights_Tk, experts_Tk, self.scales.values_E), experts_Tk


class Gemma4Layer(LayerWithInput):
    """Attention, the feed-forward layer beside experts, and the token's embedding for the layer."""

    def __init__(self, ctx: Context, c: Gemma4Config, number: int, attention: Module) -> None:
        super().__init__(ctx, c)
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.norm = c.make_norm(ctx, "input_layernorm")
        self.self_attn = attention
        self.attn_norm = c.make_norm(ctx, "post_attention_layernorm")
        self.mlp_norm = c.make_norm(ctx, "pre_feedforward_layernorm")
        activation, size = BY_CONFIG_NAME[c.hidden_activation], c.feed_forward_size(number)
        self.mlp = GatedMLP(ctx, c.hidden_size, size, activation)
        self.has_experts = c.enable_moe_block
        if c.enable_moe_block:
            self._build_experts(ctx, c)
        self.out_norm = c.make_norm(ctx, "post_feedforward_layernorm")
        self.scale = FeatureScale(ctx, c.hidden_size, leaf="layer_scalar", num_factors=1)
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def _build_experts(self, ctx: Context, c: Gemma4Config) -> None:
        """Make the experts, and the norms before and behind them."""
        num_experts, k, between = c.expert_sizes
        self.router = Gemma4Router(ctx, c, num_experts, k)
        activation = BY_CONFIG_NAME[c.hidden_activation]
        sizes = (c.hidden_size, between, num_experts, k)
        self.experts = Experts(ctx, *sizes, activation=activation)
        self.dense_norm = c.make_norm(ctx, "post_feedforward_layernorm_1")
        self.experts_in = c.make_norm(ctx, "pre_feedforward_layernorm_2")
        self.experts_out = c.make_norm(ctx, "post_feedforward_layernorm_2")

    def forward(self, x_TD: Tensor, given_TP: Tensor | None, batch: StepBatch) -> Tensor:
        keep = self.keep
        normed_TD, _ = self.norm(x_TD, None)
        y_TD, _ = self.attn_norm(self.self_attn(normed_TD, batch, keep), None)
        normed_TD, x_TD = self.mlp_norm(y_TD, keep(x_TD, batch))
        y_TD = self.mlp(normed_TD)
        if self.has_experts:
            y_TD = self._join_experts(y_TD, x_TD)
        x_TD = self._add(x_TD, self.out_norm(y_TD, None)[0])
        if given_TP is not None:
            x_TD = self._add(x_TD, self.of_input(x_TD, keep(given_TP, batch)))
        return self.scale(x_TD)

    def _join_experts(self, dense_TD: Tensor, x_TD: Tensor) -> Tensor:
        """Return the feed-forward layer's output with that of the experts, each normalised."""
        weights_Tk, experts_Tk = self.router(x_TD)
        y_TD = self.experts(self.experts_in(x_TD, None)[0], weights_Tk, experts_Tk)
        return self._add(self.dense_norm(dense_TD, None)[0], self.experts_out(y_TD, None)[0])


class Gemma4Decoder(EmbeddingDecoder):
    def __init__(self, ctx: Context, c: Gemma4Config, rotaries: Rotaries) -> None:
        super().__init__(ctx, c)
        self.layers = [
            Gemma4Layer(ctx, c, number, attention)
            for number, attention in enumerate(make_attentions(ctx, c, rotaries))
        ]
        self.norm = c.make_norm(ctx, "norm")

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD = self.embed(ids_T)
        return self.decode(x_TD, self.layer_inputs(ids_T, x_TD), batch)

    def decode(self, x_TD: Tensor, given: Sequence[Tensor | None], batch: StepBatch) -> Tensor:
        """Return hidden states of embeddings, and of what layers have beside these. [T, D]"""
        for layer, given_TP in zip(self.layers, given, strict=True):
            x_TD = layer(x_TD, given_TP, batch)
        return self.norm(x_TD, None)[0]


class Gemma4ForCausalLM(Model):
    """A decoder whose output layer is the embedding, its logits perhaps capped."""

    config_type: type[Gemma4Config] = Gemma4Config

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        c = self.read(ctx, config)
        given = {"rope_parameters": USUAL_ROPE} | {k: v for k, v in config.items() if v is not None}
        first = {c.kind(n): n for n in reversed(range(c.num_hidden_layers))}
        rotaries = {
            kind: Rotary(ctx, c.sizes(number).head_dim, given, layer_kind=kind)
            for kind, number in first.items()
        }
        self.model = Gemma4Decoder(ctx, c, rotaries)
        self.lm_head = LMHead(
            ctx,
            c.vocab_size,
            c.hidden_size,
            leaf="lm_head",
            tied=self.model.embed if c.tie_word_embeddings else None,
            soft_cap=c.final_logit_softcapping,
        )
        self.skip = {**self.skip, **unread_leaves(c)}

    def read(self, ctx: Context, config: Mapping[str, Any]) -> Gemma4Config:
        """Return the configuration.

        Raises:
            UnsupportedError: It asks for what is not computed.
        """
        require(
            config,
            hidden_activation=BY_CONFIG_NAME,
            use_bidirectional_attention=("vision",),
        )
        for kind in config.get("layer_types") or ():
            require({"layer_types": kind}, layer_types=(SLIDING, FULL))
        for number, sizes in (config.get("per_layer_config") or {}).items():
            for key in set(sizes) - LAYER_KEYS:
                given = f"{key} of layer {number} in per_layer_config"
                require({given: sizes[key]}, **{given: ()})
        c = read_config(self.config_type, config)
        if not ctx.is_causal:
            raise UnsupportedError(
                "The model's tokens see those before them alone.", remedy="Serve another model."
            )
        return c

    def named(self, index: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
        """Return the tensors with a matrix for each expert."""
        return split_stacked(index, STACKS)

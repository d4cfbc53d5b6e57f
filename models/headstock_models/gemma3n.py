"""Gemma 3n's text: streams of hidden states of which layers compute one and predict the others.

Beside them: a low-rank product next to attention (Laurel), feed-forward layers of which the highest
gates count, embeddings for each layer, and layers that read the keys and values of others.

Shapes: T tokens in the step, D hidden size, A streams, side by side in C = A D features, P features
of an embedding of a layer. Source: ``Gemma3nTextModel`` of Hugging Face transformers; names as
there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.graph.build import Model
from headstock.graph.config import read_config, require
from headstock.graph.context import Context
from headstock.graph.embedding import LMHead
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.last import LastOfRows
from headstock.graph.linear import Linear
from headstock.graph.module import Module
from headstock.graph.norm import RMSNorm
from headstock.graph.rotary import Rotary
from headstock.graph.source import Source
from headstock.graph.sparse_mlp import SparseMLP
from headstock.ops.activation_kinds import BY_CONFIG_NAME
from headstock.ops.attention import StepBatch
from headstock.ops.features import add_features, scale_features
from headstock.ops.outputs import join_features, soft_cap
from headstock.ops.streams import (
    add_to_others,
    correct_streams,
    match_magnitudes,
    mean_of_streams,
    predict_streams,
)
from headstock.quantization.plan import Role
from headstock_models.feature_scale import FeatureScale
from headstock_models.llama import FULL, SLIDING, Rotaries
from headstock_models.per_layer import EmbeddingDecoder, LayerWithInput
from headstock_models.shared_kv import SharingConfig, make_attentions, unread_leaves

NUM_SPARSE = 10
"""Layers whose feed-forward is sparse where the configuration has no list, if there are more."""


class Gemma3nConfig(SharingConfig, frozen=True, kw_only=True):
    vocab_size: int = 262_400
    hidden_size: int = 2048
    intermediate_size: int | tuple[int, ...] = 16_384
    num_hidden_layers: int = 35
    num_key_value_heads: int = 2
    num_kv_shared_layers: int = 15
    final_logit_softcapping: float | None = 30.0
    altup_num_inputs: int = 4
    altup_correct_scale: bool = True
    laurel_rank: int = 64
    activation_sparsity_pattern: float | tuple[float, ...] | None = None
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    tie_word_embeddings: bool = True
    pattern: ClassVar[int] = 5
    knows_all_ids: ClassVar[bool] = False

    def feed_forward_size(self, number: int) -> int:
        """Return the features between the matrices of layer ``number``."""
        sizes = self.intermediate_size
        return sizes if isinstance(sizes, int) else sizes[number]

    def sparsity(self, number: int) -> float:
        """Return the part of layer ``number``'s gates that do not count."""
        given = self.activation_sparsity_pattern
        if given is None:
            is_sparse = self.num_hidden_layers > NUM_SPARSE > number
            return 0.95 if is_sparse else 0.0
        return given[number] if isinstance(given, tuple) else given

    def make_mlp(self, ctx: Context, number: int) -> Module:
        sizes = (self.hidden_size, self.feed_forward_size(number))
        activation, share = BY_CONFIG_NAME[self.hidden_activation], self.sparsity(number)
        if not share:
            return GatedMLP(ctx, *sizes, activation)
        return SparseMLP(ctx, *sizes, activation, share=share)


class StreamNorm(RMSNorm):
    """What weighs streams: x / rms(x) · w / D."""

    def load(self, name: str, source: Source) -> None:
        """Take the weight."""
        super().load(name, source)
        self._weight_D.div_(self._weight_D.shape[0])


class AltUp(Module):
    """Predicts all streams before a layer, and corrects them by what it has made of the first."""

    def __init__(self, ctx: Context, c: Gemma3nConfig) -> None:
        size, streams = c.hidden_size, c.altup_num_inputs
        options: Any = {"split": "none", "role": Role.ROUTER}
        self.norm = StreamNorm(ctx, size, leaf="router_norm", eps=c.rms_norm_eps)
        self.router = Linear(ctx, size, {"modality_router": streams}, **options)
        self.prediction = Linear(ctx, streams, {"prediction_coefs": streams**2}, **options)
        self.correction = Linear(ctx, streams, {"correction_coefs": streams}, **options)
        leaf = "correct_output_scale"
        self.scale = FeatureScale(ctx, size, leaf=leaf, num_factors=size)
        self._tanh = partial(ctx.ops.resolve(soft_cap, ctx.spec()), cap=1.0)
        predict = ctx.ops.resolve(predict_streams, ctx.spec())
        self._predict = partial(predict, num_streams=streams)
        self._correct = ctx.ops.resolve(correct_streams, ctx.spec())
        self._size = size

    def _weigh(self, x_TD: Tensor) -> Tensor:
        """Return what a token's coefficients are made of. [T, A]"""
        return self._tanh(self.router(self.norm(x_TD, None)[0]))

    def predict(self, x_TC: Tensor) -> Tensor:
        """Return the streams as they are before the layer. [T, C]"""
        return self._predict(x_TC, self.prediction(self._weigh(x_TC[:, : self._size])))

    def correct(self, x_TC: Tensor, computed_TD: Tensor) -> Tensor:
        """Return the streams as they are behind it. [T, C]"""
        return self._correct(x_TC, computed_TD, self.correction(self._weigh(computed_TD)))


class Laurel(Module):
    """x + rms_norm(W_right W_left x), of low rank."""

    def __init__(self, ctx: Context, c: Gemma3nConfig) -> None:
        size, rank = c.hidden_size, c.laurel_rank
        self.left = Linear(ctx, size, {"linear_left": rank}, split="none")
        self.right = Linear(ctx, rank, {"linear_right": size}, split="none")
        self.norm = c.make_norm(ctx, "post_laurel_norm")
        self._add = ctx.ops.resolve(add_features, ctx.spec())

    def forward(self, x_TD: Tensor) -> Tensor:
        return self._add(x_TD, self.norm(self.right(self.left(x_TD)), None)[0])


class Gemma3nLayer(LayerWithInput):
    """Attention beside Laurel, then the feed-forward layer, on the first of the streams."""

    def __init__(self, ctx: Context, c: Gemma3nConfig, number: int, attention: Module) -> None:
        super().__init__(ctx, c)
        self.keep = LastOfRows(ctx, is_last=number == c.num_hidden_layers - 1)
        self.altup = AltUp(ctx, c)
        self.norm = c.make_norm(ctx, "input_layernorm")
        self.laurel = Laurel(ctx, c)
        self.self_attn = attention
        self.attn_norm = c.make_norm(ctx, "post_attention_layernorm")
        self.mlp_norm = c.make_norm(ctx, "pre_feedforward_layernorm")
        self.mlp = c.make_mlp(ctx, number)
        self.out_norm = c.make_norm(ctx, "post_feedforward_layernorm")
        self._size, self._is_scaled = c.hidden_size, c.altup_correct_scale
        self._add = ctx.ops.resolve(add_features, ctx.spec())
        self._halve = partial(ctx.ops.resolve(scale_features, ctx.spec()), factor=2**-0.5)
        self._add_to_others = ctx.ops.resolve(add_to_others, ctx.spec())

    def forward(self, x_TC: Tensor, given_TP: Tensor, batch: StepBatch) -> Tensor:
        keep = self.keep
        x_TC = self.altup.predict(x_TC)
        normed_TD, _ = self.norm(x_TC[:, : self._size], None)
        y_TD, _ = self.attn_norm(self.self_attn(normed_TD, batch, keep), None)
        x_TC, normed_TD = keep(x_TC, batch), keep(normed_TD, batch)
        first_TD = self._add(self._add(x_TC[:, : self._size], y_TD), self.laurel(normed_TD))
        first_TD = self._halve(first_TD)
        y_TD = self.mlp(self.mlp_norm(first_TD, None)[0])
        first_TD = self._add(first_TD, self.out_norm(y_TD, None)[0])
        x_TC = self.altup.correct(x_TC, first_TD)
        first_TD = x_TC[:, : self._size]
        if self._is_scaled:
            first_TD = self.altup.scale(first_TD)
        return self._add_to_others(x_TC, self.of_input(first_TD, keep(given_TP, batch)))


class Gemma3nDecoder(EmbeddingDecoder):
    def __init__(self, ctx: Context, c: Gemma3nConfig, rotaries: Rotaries) -> None:
        super().__init__(ctx, c)
        size, others = c.hidden_size, range(c.altup_num_inputs - 1)
        leaves = {f"altup_projections.{number}": size for number in others}
        self.spread = Linear(ctx, size, leaves, split="none")
        self.layers = [
            Gemma3nLayer(ctx, c, number, attention)
            for number, attention in enumerate(make_attentions(ctx, c, rotaries))
        ]
        self.gathers = [
            Linear(ctx, size, {f"altup_unembed_projections.{n}": size}, split="none")
            for n in others
        ]
        self.norm = c.make_norm(ctx, "norm")
        self._size = size
        self._join = ctx.ops.resolve(join_features, ctx.spec())
        self._match = ctx.ops.resolve(match_magnitudes, ctx.spec())
        mean = ctx.ops.resolve(mean_of_streams, ctx.spec())
        self._mean = partial(mean, num_streams=c.altup_num_inputs)

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        x_TD = self.embed(ids_T)
        return self.decode(x_TD, self.layer_inputs(ids_T, x_TD), batch)

    def decode(self, x_TD: Tensor, given: Sequence[Tensor | None], batch: StepBatch) -> Tensor:
        """Return hidden states, of embeddings and what layers get beside them. [T, D]"""
        x_TC = self._join(x_TD, self._match(self.spread(x_TD), x_TD))
        for layer, given_TP in zip(self.layers, given, strict=True):
            x_TC = layer(x_TC, given_TP, batch)
        return self.norm(self._mean(self._gather(x_TC)), None)[0]

    def _gather(self, x_TC: Tensor) -> Tensor:
        """Return the streams in one space, and of one magnitude. [T, C]"""
        first_TD, *others = x_TC.split(self._size, dim=1)
        joined_TC = first_TD
        for gather, x_TD in zip(self.gathers, others, strict=True):
            joined_TC = self._join(joined_TC, self._match(gather(x_TD), first_TD))
        return joined_TC


class Gemma3nForCausalLM(Model):
    """A decoder whose output layer is the embedding, its logits capped."""

    def __init__(self, ctx: Context, config: Mapping[str, Any]) -> None:
        require(config, hidden_activation=BY_CONFIG_NAME, altup_active_idx=(0,))
        for kind in config.get("layer_types") or ():
            require({"layer_types": kind}, layer_types=(SLIDING, FULL))
        c = read_config(Gemma3nConfig, config)
        _check(c)
        self.model = Gemma3nDecoder(ctx, c, _rotaries(ctx, c, config))
        self.lm_head = LMHead(
            ctx,
            c.vocab_size,
            c.hidden_size,
            leaf="lm_head",
            tied=self.model.embed if c.tie_word_embeddings else None,
            soft_cap=c.final_logit_softcapping,
        )
        self.skip = {**self.skip, **unread_leaves(c)}


def _check(c: Gemma3nConfig) -> None:
    """Refuse what is not computed, by key and value.

    Raises:
        UnsupportedError: It is there.
    """
    sizes = {
        "hidden_size_per_layer_input": c.hidden_size_per_layer_input,
        "altup_num_inputs": c.altup_num_inputs - 1,
    }
    lists = {
        "intermediate_size": c.intermediate_size,
        "activation_sparsity_pattern": c.activation_sparsity_pattern,
    }
    wrong = [f"{key} = {getattr(c, key)}" for key, size in sizes.items() if size < 1]
    for key, values in lists.items():
        if isinstance(values, tuple) and len(values) != c.num_hidden_layers:
            wrong.append(f"{key} = {list(values)}")
    wrong += [
        f"activation_sparsity_pattern = {share} in layer {number}"
        for number in range(0 if wrong else c.num_hidden_layers)
        if not 0 <= (share := c.sparsity(number)) < 1
    ]
    if wrong:
        raise UnsupportedError(
            f"The configuration has {wrong[0]}, which is not computed for"
            f" {c.num_hidden_layers} layers.",
            remedy="Compare config.json with the model's original.",
        )


def _rotaries(ctx: Context, c: Gemma3nConfig, config: Mapping[str, Any]) -> Rotaries:
    """Return the tables of angles by kind of layer; full layers may be scaled."""
    given = dict(config)
    if not given.get("rope_parameters"):  # As on the hub: one base a key, one scaling for full.
        scaling = dict(given.pop("rope_scaling", None) or {})
        given["rope_parameters"] = {
            SLIDING: {"rope_theta": c.rope_local_base_freq},
            FULL: {**scaling, "rope_theta": c.rope_theta},
        }
    return {kind: Rotary(ctx, c.head_dim, given, layer_kind=kind) for kind in (SLIDING, FULL)}

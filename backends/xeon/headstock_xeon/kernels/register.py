"""Offers the native kernels to the registry."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headstock.ops import drafts, sampling, steps
from headstock.ops.activation import activate, activate_and_mul, silu_and_mul
from headstock.ops.activation_kinds import FEATURES as ACTIVATIONS
from headstock.ops.attention import NARROW_PAGES, attention
from headstock.ops.base import OpRegistry, Requires, Sizes
from headstock.ops.embedding import embed_places
from headstock.ops.features import (
    add_features,
    scale_by_position,
    scale_features,
    scale_tokens,
    weigh_features,
)
from headstock.ops.gates import (
    gate_by_silu,
    gate_by_softplus,
    gate_features,
    gate_heads,
    gated_group_norm,
    gated_norm,
)
from headstock.ops.latent import latent_attention, rotate_and_write_latent
from headstock.ops.linear import DENSE, INT4_GROUP, INT8_GROUP, MXFP4, ROWS, SCALED_ROWS, linear
from headstock.ops.linear_attention import BY_CHANNEL, linear_attention
from headstock.ops.lora import add_lora
from headstock.ops.mamba2 import mamba2
from headstock.ops.moe import BIAS, UNGATED, experts, route_topk
from headstock.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from headstock.ops.outputs import as_float32, join_features, soft_cap
from headstock.ops.pooling import pool_rows
from headstock.ops.rotary import (
    KEYS_AS_VALUES,
    NORMED_LAST,
    NORMED_VALUES,
    rotate_and_write,
    rotate_queries,
)
from headstock.ops.routing import add_shared, route_experts, weigh_experts
from headstock.ops.selective_scan import selective_scan
from headstock.ops.short_convolution import UNGATED as UNGATED_CONVOLUTION
from headstock.ops.short_convolution import short_convolution
from headstock.ops.wide_norm import norm_queries_and_keys, sum_squares
from headstock_xeon.kernels.attention import (
    FEATURES,
    MAX_GROUP,
    PAGE_SIZES,
    TAG,
    NativeAttention,
)
from headstock_xeon.kernels.choices import ChoiceKernels
from headstock_xeon.kernels.delta import GateKernels, NativeLinearAttention
from headstock_xeon.kernels.drafts import DraftKernels
from headstock_xeon.kernels.encoder import EncoderKernels
from headstock_xeon.kernels.experts import NativeExperts, RoutingKernels
from headstock_xeon.kernels.features import FeatureKernels
from headstock_xeon.kernels.latent import LATENT_TAG, LatentKernels, NativeLatentAttention
from headstock_xeon.kernels.layers import LayerKernels
from headstock_xeon.kernels.linear import NativeLinear
from headstock_xeon.kernels.lora import RANK_UNIT, LoraKernels
from headstock_xeon.kernels.routing import ScoreKernels
from headstock_xeon.kernels.sampling import SamplingKernels
from headstock_xeon.kernels.states import (
    NativeMamba2,
    NativeSelectiveScan,
    NativeShortConvolution,
)
from headstock_xeon.kernels.steps import StepKernels

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice

PROVIDER = "xeon"
FLOAT32 = Requires(dtypes=frozenset({"float32"}), capabilities=frozenset({"avx2"}))


def register(registry: OpRegistry, device: XeonDevice) -> None:
    """Offer every native kernel."""
    layers = LayerKernels(device)
    registry.add(rms_norm, PROVIDER, layers.rms_norm, requires=FLOAT32)
    registry.add(add_rms_norm, PROVIDER, layers.add_rms_norm, requires=FLOAT32)
    registry.add(soft_cap, PROVIDER, layers.soft_cap, requires=FLOAT32)
    registry.add(join_features, PROVIDER, layers.join_features, requires=FLOAT32)
    ranks = replace(FLOAT32, sizes={"rank": Sizes(multiple_of=RANK_UNIT)})
    registry.add(add_lora, PROVIDER, LoraKernels(device).add_lora, requires=ranks)
    activations = replace(FLOAT32, features=ACTIVATIONS)
    registry.add(silu_and_mul, PROVIDER, layers.silu_and_mul, requires=activations)
    registry.add(activate_and_mul, PROVIDER, layers.activate_and_mul, requires=activations)
    registry.add(route_topk, PROVIDER, RoutingKernels(device).route_topk, requires=FLOAT32)
    _register_sampling(registry, SamplingKernels(device))
    _register_steps(registry, StepKernels(device))
    _register_drafts(registry, DraftKernels(device))
    _register_linear(registry)
    _register_attention(registry, layers)
    _register_features(registry, FeatureKernels(device))
    _register_choices(registry, ChoiceKernels(device))
    _register_latent(registry, LatentKernels(device))
    _register_delta(registry, GateKernels(device))
    _register_encoder(registry, EncoderKernels(device))
    scores = ScoreKernels(device)
    registry.add(route_experts, PROVIDER, scores.route_experts, requires=FLOAT32)
    registry.add(add_shared, PROVIDER, scores.add_shared, requires=FLOAT32)
    registry.add(weigh_experts, PROVIDER, scores.weigh_experts, requires=FLOAT32)


def _register_features(registry: OpRegistry, kernels: FeatureKernels) -> None:
    for op, run in (
        (add_features, kernels.add_features),
        (scale_features, kernels.scale_features),
        (weigh_features, kernels.weigh_features),
        (scale_tokens, kernels.scale_tokens),
        (scale_by_position, kernels.scale_by_position),
        (sum_squares, kernels.sum_squares),
        (norm_queries_and_keys, kernels.norm_queries_and_keys),
    ):
        registry.add(op, PROVIDER, run, requires=FLOAT32)


def _register_choices(registry: OpRegistry, kernels: ChoiceKernels) -> None:
    for op, run in (
        (as_float32, kernels.as_float32),
        (steps.apply_masks, kernels.apply_masks),
        (steps.take_draws, kernels.take_draws),
    ):
        registry.add(op, PROVIDER, run, requires=FLOAT32)
    table = Requires(dtypes=frozenset({"int32"}), capabilities=FLOAT32.capabilities)
    registry.add(drafts.keep_accepted, PROVIDER, kernels.keep_accepted, requires=table)
    registry.add(drafts.count_drafts, PROVIDER, kernels.count_drafts, requires=table)


def _register_encoder(registry: OpRegistry, kernels: EncoderKernels) -> None:
    for op, run in (
        (layer_norm, kernels.layer_norm),
        (add_layer_norm, kernels.add_layer_norm),
        (embed_places, kernels.embed_places),
        (pool_rows, kernels.pool_rows),
    ):
        registry.add(op, PROVIDER, run, requires=FLOAT32)
    activations = replace(FLOAT32, features=ACTIVATIONS - {"clipped-swiglu", "bounded-swiglu"})
    registry.add(activate, PROVIDER, kernels.activate, requires=activations)


def _register_sampling(registry: OpRegistry, kernels: SamplingKernels) -> None:
    for op, run in (
        (sampling.argmax_tokens, kernels.argmax_tokens),
        (sampling.draw_tokens, kernels.draw_tokens),
        (sampling.apply_penalties, kernels.apply_penalties),
        (sampling.add_bias, kernels.add_bias),
    ):
        registry.add(op, PROVIDER, run, requires=FLOAT32)


def _register_steps(registry: OpRegistry, kernels: StepKernels) -> None:
    table = Requires(dtypes=frozenset({"int32"}), capabilities=FLOAT32.capabilities)
    for op, run in (
        (steps.place_step, kernels.place_step),
        (steps.take_rows, kernels.take_rows),
        (steps.count_outputs, kernels.count_outputs),
        (steps.advance_lengths, kernels.advance_lengths),
        (steps.settle_step, kernels.settle_step),
    ):
        registry.add(op, PROVIDER, run, requires=table)
    for op, run in (
        (steps.last_of_rows, kernels.last_of_rows),
        (steps.keep_rows, kernels.keep_rows),
        (steps.mark_faults, kernels.mark_faults),
        (steps.forbid_stops, kernels.forbid_stops),
    ):
        registry.add(op, PROVIDER, run, requires=FLOAT32)


def _register_drafts(registry: OpRegistry, kernels: DraftKernels) -> None:
    table = Requires(dtypes=frozenset({"int32"}), capabilities=FLOAT32.capabilities)
    for op, run in (
        (steps.accept_drafts, kernels.accept_drafts),
        (steps.spread_draws, kernels.spread_draws),
        (drafts.append_outputs, kernels.append_outputs),
        (drafts.draft_ngrams, kernels.draft_ngrams),
        (drafts.enter_drafts, kernels.enter_drafts),
    ):
        registry.add(op, PROVIDER, run, requires=table)


def _register_linear(registry: OpRegistry) -> None:
    for layouts, unit in (({DENSE, INT8_GROUP}, 16), ({INT4_GROUP, MXFP4}, 32)):
        requires = Requires(
            dtypes=FLOAT32.dtypes,
            capabilities=FLOAT32.capabilities,
            layouts=frozenset(layouts),
            sizes={"group_size": Sizes(multiple_of=unit)},
        )
        joined = replace(requires, features=(ACTIVATIONS | {BIAS, UNGATED}) - {"xielu"})
        registry.add(experts, PROVIDER, NativeExperts, requires=joined)
        with_rows = replace(requires, features=frozenset({ROWS, SCALED_ROWS}))
        registry.add(linear, PROVIDER, NativeLinear, requires=with_rows)


def _register_attention(registry: OpRegistry, layers: LayerKernels) -> None:
    head_dim, page_size = Sizes(multiple_of=8), Sizes(only=frozenset(PAGE_SIZES))
    registry.add(
        attention,
        PROVIDER,
        NativeAttention,
        requires=Requires(
            dtypes=FLOAT32.dtypes,
            capabilities=FLOAT32.capabilities,
            layouts=frozenset({"float32", "bfloat16", "float16", *NARROW_PAGES}),
            features=FEATURES,
            sizes={
                "head_dim": head_dim,
                "page_size": page_size,
                "heads_per_kv_head": Sizes(at_most=MAX_GROUP),
            },
        ),
    )
    registry.add(
        rotate_and_write,
        PROVIDER,
        layers.rotate_and_write,
        requires=Requires(
            dtypes=FLOAT32.dtypes,
            capabilities=FLOAT32.capabilities,
            layouts=frozenset({TAG}),
            features=frozenset({NORMED_LAST, NORMED_VALUES, KEYS_AS_VALUES}),
            sizes={"head_dim": head_dim},
        ),
    )
    queries = replace(FLOAT32, sizes={"head_dim": head_dim})
    registry.add(rotate_queries, PROVIDER, layers.rotate_queries, requires=queries)


def _register_latent(registry: OpRegistry, kernels: LatentKernels) -> None:
    sizes = {
        "latent_size": Sizes(multiple_of=8),
        "rotary_size": Sizes(multiple_of=8),
        "page_size": Sizes(only=frozenset(PAGE_SIZES)),
    }
    registry.add(
        latent_attention,
        PROVIDER,
        NativeLatentAttention,
        requires=replace(
            FLOAT32, layouts=frozenset({"float32", "bfloat16", "float16"}), sizes=sizes
        ),
    )
    registry.add(
        rotate_and_write_latent,
        PROVIDER,
        kernels.rotate_and_write_latent,
        requires=replace(
            FLOAT32,
            layouts=frozenset({LATENT_TAG}),
            sizes={"latent_size": Sizes(multiple_of=8), "rotary_size": Sizes(multiple_of=8)},
        ),
    )


def _register_delta(registry: OpRegistry, gates: GateKernels) -> None:
    sizes = {"key_size": Sizes(multiple_of=8), "value_size": Sizes(multiple_of=8)}
    requires = replace(FLOAT32, sizes=sizes, features=frozenset({BY_CHANNEL}))
    registry.add(linear_attention, PROVIDER, NativeLinearAttention, requires=requires)
    registry.add(gated_norm, PROVIDER, gates.gated_norm, requires=FLOAT32)
    registry.add(gate_features, PROVIDER, gates.gate_features, requires=FLOAT32)
    registry.add(gate_heads, PROVIDER, gates.gate_heads, requires=FLOAT32)
    registry.add(gate_by_silu, PROVIDER, gates.gate_by_silu, requires=FLOAT32)
    registry.add(gate_by_softplus, PROVIDER, gates.gate_by_softplus, requires=FLOAT32)
    registry.add(gated_group_norm, PROVIDER, gates.gated_group_norm, requires=FLOAT32)
    ungated = replace(FLOAT32, features=frozenset({UNGATED_CONVOLUTION}))
    registry.add(short_convolution, PROVIDER, NativeShortConvolution, requires=ungated)
    vectors = replace(FLOAT32, sizes={"state_size": Sizes(multiple_of=8)})
    registry.add(selective_scan, PROVIDER, NativeSelectiveScan, requires=vectors)
    heads = replace(FLOAT32, sizes={"head_dim": Sizes(multiple_of=8)})
    registry.add(mamba2, PROVIDER, NativeMamba2, requires=heads)

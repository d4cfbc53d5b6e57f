"""What a backend calls to offer the kernels of this package for its device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from headstock.ops.activation import silu_and_mul, silu_and_mul_groups
from headstock.ops.activation_kinds import FEATURES as ACTIVATIONS
from headstock.ops.attention import AttentionSpec, attention
from headstock.ops.base import Requires, Sizes
from headstock.ops.gates import gate_features, gated_norm
from headstock.ops.latent import LatentSpec, latent_attention, rotate_and_write_latent
from headstock.ops.linear import (
    DENSE,
    FP8_GROUP,
    GATED,
    GROUPED_INPUTS,
    INT4_GROUP,
    INT8_GROUP,
    MXFP4,
    ROWS,
    SCALED_ROWS,
    linear,
)
from headstock.ops.linear_attention import linear_attention
from headstock.ops.moe import BIAS, experts, route_topk
from headstock.ops.norm import WIDE_WEIGHT, add_rms_norm, rms_norm
from headstock.ops.outputs import soft_cap
from headstock.ops.rotary import rotate_and_write
from headstock.ops.routing import add_shared, route_experts
from headstock.ops.sampling import (
    add_bias,
    apply_penalties,
    argmax_tokens,
    draw_tokens,
    token_logprobs,
)
from headstock.ops.steps import (
    advance_lengths,
    last_of_rows,
    mark_faults,
    place_step,
    settle_step,
)
from headstock_triton.activation import Activations
from headstock_triton.attention.pages import TAG
from headstock_triton.attention.provider import PAGE_SIZES, PagedAttention
from headstock_triton.dense import build_dense
from headstock_triton.fp8 import GROUP, OUT_UNIT, Fp8Gate, build_fp8
from headstock_triton.ints import GROUP_UNIT, build_int
from headstock_triton.latent.provider import LatentRotations, PagedLatentAttention
from headstock_triton.latent.scan import TAG as LATENT_TAG
from headstock_triton.linear_attention import Gates, TritonLinearAttention
from headstock_triton.moe import MAX_EXPERTS, build_experts
from headstock_triton.norm import Norms
from headstock_triton.rotary import Rotations
from headstock_triton.routing import Routing
from headstock_triton.sampling.argmax import Argmax
from headstock_triton.sampling.draw import Draws
from headstock_triton.sampling.logprobs import Logprobs
from headstock_triton.sampling.shaping import Shaping
from headstock_triton.scores import Scores
from headstock_triton.steps import Steps
from headstock_triton.target import Target

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.ops.device import OpDevice

PROVIDER = "triton"
FLOATS = frozenset({"float32", "float16", "bfloat16"})


def register_ops(registry: OpRegistry, device: OpDevice) -> None:
    """Offer every op of this package as provider ``triton``."""
    target = Target.of(device)
    register_layers(registry, target)
    register_latent(registry, target)
    register_delta(registry, target)
    register_linear(registry)
    register_experts(registry, target)
    register_sampling(registry, target)
    register_steps(registry, target)


def register_layers(registry: OpRegistry, target: Target) -> None:
    """Offer attention, and what lies between it and the products."""
    offer = partial(registry.add, provider=PROVIDER)
    normed, norms = Requires(dtypes=FLOATS, features=frozenset({WIDE_WEIGHT})), Norms(target)
    offer(rms_norm, run=norms.rms_norm, requires=normed)
    offer(add_rms_norm, run=norms.add_rms_norm, requires=normed)
    offer(soft_cap, run=Activations(target).soft_cap, requires=Requires(dtypes=FLOATS))
    offer(
        silu_and_mul,
        run=Activations(target).silu_and_mul,
        requires=Requires(dtypes=FLOATS, features=ACTIVATIONS),
    )
    offer(
        silu_and_mul_groups,
        run=Fp8Gate(target).silu_and_mul_groups,
        requires=Requires(
            dtypes=frozenset({"bfloat16"}),
            sizes={"group_size": Sizes(only=frozenset({GROUP})), "size": Sizes(multiple_of=GROUP)},
            capabilities=frozenset({"sm_90"}),
        ),
    )
    offer(
        rotate_and_write,
        run=Rotations(target).rotate_and_write,
        requires=replace(normed, layouts=frozenset({TAG})),
    )
    offer(
        attention,
        run=build_attention,
        requires=Requires(
            dtypes=FLOATS,
            layouts=FLOATS,
            features=frozenset({"sliding_window", "sinks", "soft_cap"}),
            sizes={
                "head_dim": Sizes(at_most=256),
                "heads_per_kv_head": Sizes(at_most=64),
                "page_size": Sizes(only=frozenset(PAGE_SIZES)),
            },
        ),
    )


def register_delta(registry: OpRegistry, target: Target) -> None:
    """Offer linear attention, and gates on attention's output."""
    gates, floats = Gates(target), Requires(dtypes=FLOATS)
    registry.add(gated_norm, PROVIDER, gates.gated_norm, requires=floats)
    registry.add(gate_features, PROVIDER, gates.gate_features, requires=floats)
    sizes = {"key_size": Sizes(at_most=128)}
    requires = Requires(dtypes=FLOATS, sizes=sizes)
    registry.add(linear_attention, PROVIDER, TritonLinearAttention, requires=requires)


def register_latent(registry: OpRegistry, target: Target) -> None:
    """Offer latent attention, and routing by scores."""
    offer, scores = partial(registry.add, provider=PROVIDER), Scores(target)
    floats = Requires(dtypes=FLOATS)
    offer(route_experts, run=scores.route_experts, requires=floats)
    offer(add_shared, run=scores.add_shared, requires=floats)
    offer(
        rotate_and_write_latent,
        run=LatentRotations(target).rotate_and_write_latent,
        requires=Requires(dtypes=FLOATS, layouts=frozenset({LATENT_TAG})),
    )
    offer(
        latent_attention,
        run=build_latent_attention,
        requires=Requires(
            dtypes=FLOATS,
            layouts=FLOATS,
            sizes={
                "latent_size": Sizes(at_most=512),
                "rotary_size": Sizes(at_most=128),
                "page_size": Sizes(only=frozenset(PAGE_SIZES)),
            },
        ),
    )


def register_linear(registry: OpRegistry) -> None:
    """Offer matrix products, layout by layout."""
    offer = partial(registry.add, linear, PROVIDER)
    features = frozenset({ROWS, SCALED_ROWS, GATED})
    dense = Requires(dtypes=FLOATS, layouts=frozenset({DENSE}), features=features)
    offer(run=build_dense, requires=dense)
    offer(
        run=build_int,
        requires=Requires(
            dtypes=FLOATS,
            layouts=frozenset({INT4_GROUP, INT8_GROUP}),
            features=frozenset({ROWS, SCALED_ROWS}),
            sizes={"group_size": Sizes(multiple_of=GROUP_UNIT)},
        ),
    )
    offer(
        run=build_fp8,
        requires=Requires(
            dtypes=frozenset({"bfloat16"}),
            layouts=frozenset({FP8_GROUP}),
            features=frozenset({GROUPED_INPUTS}),
            sizes={
                "group_size": Sizes(only=frozenset({GROUP})),
                "out_features": Sizes(multiple_of=OUT_UNIT),
            },
            capabilities=frozenset({"sm_90"}),
        ),
    )


def register_experts(registry: OpRegistry, target: Target) -> None:
    """Offer routing to experts, and their products, layout by layout."""
    some = {"num_experts": Sizes(at_most=MAX_EXPERTS)}
    route = Requires(dtypes=FLOATS, sizes=some)
    registry.add(route_topk, PROVIDER, Routing(target).route_topk, requires=route)
    offer = partial(registry.add, experts, PROVIDER, build_experts)
    features = (ACTIVATIONS | {BIAS}) - {"xielu"}
    dense = frozenset({DENSE})
    offer(requires=Requires(dtypes=FLOATS, layouts=dense, features=features, sizes=some))
    grouped = some | {"group_size": Sizes(multiple_of=32)}
    integers = frozenset({INT8_GROUP, INT4_GROUP, MXFP4})
    offer(requires=Requires(dtypes=FLOATS, layouts=integers, features=features, sizes=grouped))
    offer(
        requires=Requires(
            dtypes=FLOATS,
            layouts=frozenset({FP8_GROUP}),
            features=features,
            sizes=grouped,
            capabilities=frozenset({"sm_90"}),
        )
    )


def register_steps(registry: OpRegistry, target: Target) -> None:
    """Offer the bookkeeping around a step."""
    offer, steps = partial(registry.add, provider=PROVIDER), Steps(target)
    offer(place_step, run=steps.place_step)
    offer(last_of_rows, run=steps.last_of_rows)
    offer(mark_faults, run=steps.mark_faults)
    offer(advance_lengths, run=steps.advance_lengths)
    offer(settle_step, run=steps.settle_step)


def register_sampling(registry: OpRegistry, target: Target) -> None:
    """Offer sampling; all but the greedy choice take logits widened to float32."""
    registry.add(argmax_tokens, PROVIDER, Argmax(target).argmax_tokens)
    offer = partial(
        registry.add, provider=PROVIDER, requires=Requires(dtypes=frozenset({"float32"}))
    )
    shaping = Shaping(target)
    offer(apply_penalties, run=shaping.apply_penalties)
    offer(add_bias, run=shaping.add_bias)
    offer(draw_tokens, run=Draws(target).draw_tokens)
    offer(token_logprobs, run=Logprobs(target).token_logprobs)


def build_attention(spec: AttentionSpec, device: OpDevice) -> PagedAttention:
    """Build the attention provider for ``spec``."""
    return PagedAttention(spec, device)


def build_latent_attention(spec: LatentSpec, device: OpDevice) -> PagedLatentAttention:
    """Build the provider of latent attention for ``spec``."""
    return PagedLatentAttention(spec, device)

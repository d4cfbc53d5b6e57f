"""What a backend calls to offer the kernels of this package for its device."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from headstock.ops.activation import silu_and_mul, silu_and_mul_groups
from headstock.ops.attention import AttentionSpec, attention
from headstock.ops.base import Requires, Sizes
from headstock.ops.linear import (
    DENSE,
    FP8_GROUP,
    GATED,
    GROUPED_INPUTS,
    INT4_GROUP,
    INT8_GROUP,
    ROWS,
    linear,
)
from headstock.ops.moe import experts, route_topk
from headstock.ops.norm import add_rms_norm, rms_norm
from headstock.ops.rotary import rotate_and_write
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
from headstock_triton.moe import MAX_EXPERTS, build_experts
from headstock_triton.norm import Norms
from headstock_triton.rotary import Rotations
from headstock_triton.routing import Routing
from headstock_triton.sampling.argmax import Argmax
from headstock_triton.sampling.draw import Draws
from headstock_triton.sampling.logprobs import Logprobs
from headstock_triton.sampling.shaping import Shaping
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
    offer = partial(registry.add, provider=PROVIDER)
    floats = Requires(dtypes=FLOATS)
    norms, steps = Norms(target), Steps(target)
    offer(rms_norm, run=norms.rms_norm, requires=floats)
    offer(add_rms_norm, run=norms.add_rms_norm, requires=floats)
    offer(silu_and_mul, run=Activations(target).silu_and_mul, requires=floats)
    offer(argmax_tokens, run=Argmax(target).argmax_tokens)
    register_sampling(registry, target)
    offer(place_step, run=steps.place_step)
    offer(last_of_rows, run=steps.last_of_rows)
    offer(mark_faults, run=steps.mark_faults)
    offer(advance_lengths, run=steps.advance_lengths)
    offer(settle_step, run=steps.settle_step)
    offer(
        rotate_and_write,
        run=Rotations(target).rotate_and_write,
        requires=Requires(dtypes=FLOATS, layouts=frozenset({TAG})),
    )
    offer(
        linear,
        run=build_dense,
        requires=Requires(
            dtypes=FLOATS, layouts=frozenset({DENSE}), features=frozenset({ROWS, GATED})
        ),
    )
    offer(
        linear,
        run=build_int,
        requires=Requires(
            dtypes=FLOATS,
            layouts=frozenset({INT4_GROUP, INT8_GROUP}),
            features=frozenset({ROWS}),
            sizes={"group_size": Sizes(multiple_of=GROUP_UNIT)},
        ),
    )
    offer(
        linear,
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
    some_experts = {"num_experts": Sizes(at_most=MAX_EXPERTS)}
    offer(
        route_topk,
        run=Routing(target).route_topk,
        requires=Requires(dtypes=FLOATS, sizes=some_experts),
    )
    dense = Requires(dtypes=FLOATS, layouts=frozenset({DENSE}), sizes=some_experts)
    groups = {"group_size": Sizes(multiple_of=32)}
    offer(experts, run=build_experts, requires=dense)
    for layouts, capabilities in (({INT8_GROUP, INT4_GROUP}, ()), ({FP8_GROUP}, ("sm_90",))):
        grouped = Requires(
            dtypes=FLOATS,
            layouts=frozenset(layouts),
            sizes=some_experts | groups,
            capabilities=frozenset(capabilities),
        )
        offer(experts, run=build_experts, requires=grouped)
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
        attention,
        run=build_attention,
        requires=Requires(
            dtypes=FLOATS,
            layouts=FLOATS,
            sizes={
                "head_dim": Sizes(at_most=256),
                "heads_per_kv_head": Sizes(at_most=64),
                "page_size": Sizes(only=frozenset(PAGE_SIZES)),
            },
        ),
    )


def register_sampling(registry: OpRegistry, target: Target) -> None:
    """Offer the sampling ops that take logits widened to float32."""
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

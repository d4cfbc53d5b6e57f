"""Which ops the kernels of CANN compute, and what each needs. The reference does the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headstock.ops.activation import silu_and_mul
from headstock.ops.attention import BIDIRECTIONAL, INT8_PAGES, attention
from headstock.ops.base import Requires, Sizes
from headstock.ops.latent import latent_attention, rotate_and_write_latent
from headstock.ops.linear import DENSE, INT4_GROUP, INT8_GROUP, linear
from headstock.ops.moe import experts, route_topk
from headstock.ops.norm import add_rms_norm, rms_norm
from headstock.ops.rotary import NORMED_LAST, rotate_and_write
from headstock.ops.routing import route_experts
from headstock.ops.sampling import (
    add_bias,
    apply_penalties,
    argmax_tokens,
    draw_tokens,
    token_logprobs,
)
from headstock.ops.steps import apply_masks
from headstock_ascend import layers, moe, sampling
from headstock_ascend.attention import build_attention
from headstock_ascend.int8_pages import build_int8
from headstock_ascend.linear import build_linear
from headstock_ascend.pages import PAGE_SIZES
from headstock_ascend.ragged import LATENT_TAG, build_latent, build_ragged

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry

PROVIDER = "cann"
NARROW = ("float16", "bfloat16")
FLOATS = frozenset({*NARROW, "float32"})


MOST = Sizes(at_least=1, at_most=65535)
"""Features on either side of a quantised product."""


def register_ops(registry: OpRegistry) -> None:
    """Offer what CANN computes."""
    register_layers(registry)
    register_products(registry)
    register_experts(registry)
    register_sampling(registry)


def register_layers(registry: OpRegistry) -> None:
    """Offer attention, and what lies between it and the products."""
    floats = Requires(dtypes=FLOATS)
    registry.add(rms_norm, PROVIDER, layers.rms_norm, requires=floats)
    registry.add(add_rms_norm, PROVIDER, layers.add_rms_norm, requires=floats)
    registry.add(silu_and_mul, PROVIDER, layers.silu_and_mul, requires=floats)
    registry.add(
        rotate_and_write,
        PROVIDER,
        layers.rotate_and_write,
        requires=Requires(dtypes=FLOATS, features=frozenset({NORMED_LAST})),
    )
    registry.add(
        rotate_and_write_latent,
        PROVIDER,
        layers.rotate_and_write_latent,
        requires=Requires(dtypes=FLOATS, page_formats=frozenset({LATENT_TAG})),
    )
    for dtype in NARROW:
        register_attention(registry, dtype)


def register_attention(registry: OpRegistry, dtype: str) -> None:
    """Offer attention in ``dtype``: plain, by tokens, over latents, with pages in int8.

    Of the first three pages are in the same dtype.

    Sinks are in bfloat16 wherever they are; float16 has none.
    """
    registry.add(attention, PROVIDER, build_attention, requires=paged(dtype))
    features = {"sliding_window"} | ({"sinks"} if dtype != "float16" else set())
    by_tokens = replace(
        paged(dtype),
        features=frozenset(features),
        sizes={**paged(dtype).sizes, "head_dim": Sizes(only=frozenset({64, 128}))},
    )
    registry.add(attention, PROVIDER, build_ragged, requires=by_tokens)
    by_eights = replace(
        paged(dtype),
        page_dtypes=frozenset({"int8"}),
        features=paged(dtype).features | INT8_PAGES,
        sizes={**paged(dtype).sizes, "head_dim": Sizes(multiple_of=32, at_most=256)},
    )
    registry.add(attention, PROVIDER, build_int8, requires=by_eights)
    latents = Requires(
        dtypes=frozenset({dtype}),
        page_dtypes=frozenset({dtype}),
        sizes={
            "num_heads": Sizes(only=frozenset(2**power for power in range(8))),
            "latent_size": Sizes(only=frozenset({512})),
            "rotary_size": Sizes(only=frozenset({64})),
            "page_size": Sizes(only=frozenset(PAGE_SIZES)),
        },
    )
    registry.add(latent_attention, PROVIDER, build_latent, requires=latents)


def register_products(registry: OpRegistry) -> None:
    """Offer products with quantised weights; PyTorch multiplies dense ones by CANN as well."""
    quantised = Requires(
        dtypes=frozenset(NARROW),
        layouts=frozenset({INT8_GROUP, INT4_GROUP}),
        sizes={
            "in_features": MOST,
            "out_features": MOST,
            "group_size": Sizes(multiple_of=32, at_least=32),
        },
    )
    registry.add(linear, PROVIDER, build_linear, requires=quantised)


def register_experts(registry: OpRegistry) -> None:
    """Offer routing to experts, and dense experts."""
    some = {"num_experts": Sizes(at_most=2048), "experts_per_token": Sizes(at_most=1024)}
    routes = Requires(dtypes=FLOATS, sizes=some)
    registry.add(route_topk, PROVIDER, moe.route_topk, requires=routes)
    registry.add(route_experts, PROVIDER, moe.route_experts, requires=routes)
    dense = Requires(dtypes=FLOATS, layouts=frozenset({DENSE}), sizes=some)
    registry.add(experts, PROVIDER, moe.build_experts, requires=dense)


def register_sampling(registry: OpRegistry) -> None:
    """Offer penalties, biases, masks, draws and log-probabilities."""
    wide = Requires(dtypes=frozenset({"float32"}))
    registry.add(apply_penalties, PROVIDER, sampling.apply_penalties, requires=wide)
    registry.add(add_bias, PROVIDER, sampling.add_bias, requires=wide)
    registry.add(apply_masks, PROVIDER, sampling.apply_masks, requires=wide)
    registry.add(argmax_tokens, PROVIDER, sampling.argmax_tokens, requires=wide)
    registry.add(draw_tokens, PROVIDER, sampling.draw_tokens, requires=wide)
    registry.add(token_logprobs, PROVIDER, sampling.token_logprobs, requires=wide)


def paged(dtype: str) -> Requires:
    """Return what attention in ``dtype`` needs; pages are in the same one.

    Heads times their size must stay under 65,535, so both are bounded.
    """
    return Requires(
        dtypes=frozenset({dtype}),
        page_dtypes=frozenset({dtype}),
        features=frozenset({BIDIRECTIONAL}),
        sizes={
            "page_size": Sizes(only=frozenset(PAGE_SIZES)),
            "head_dim": Sizes(multiple_of=16, at_most=256),
            "heads_per_kv_head": Sizes(at_most=64),
            "num_heads": Sizes(at_most=255),
        },
    )

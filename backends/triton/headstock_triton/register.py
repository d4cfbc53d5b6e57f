"""What a backend calls to offer the kernels of this package for its device."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from headstock.ops.activation import (
    activate,
    activate_and_mul,
    silu_and_mul,
    silu_and_mul_groups,
)
from headstock.ops.activation_kinds import FEATURES as ACTIVATIONS
from headstock.ops.activation_kinds import OF_BOTH
from headstock.ops.attention import (
    BIDIRECTIONAL,
    CHOSEN_BLOCKS,
    CHUNKED,
    AttentionSpec,
    attention,
)
from headstock.ops.base import Requires, Sizes
from headstock.ops.block_indexer import index_blocks
from headstock.ops.compressed import (
    CHOSEN_ENTRIES,
    ENTRIES,
    CompressedSpec,
    choose_entries,
    compress_tokens,
    compressed_attention,
    rotate_last,
)
from headstock.ops.drafts import (
    append_outputs,
    count_drafts,
    draft_ngrams,
    enter_drafts,
    keep_accepted,
)
from headstock.ops.embedding import embed_places, known_ids, put_rows
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
from headstock.ops.grouped_linear import multiply_groups
from headstock.ops.hyper_connections import (
    collapse_streams,
    expand_streams,
    merge_streams,
    spread_streams,
)
from headstock.ops.indexer import index_tokens
from headstock.ops.latent import (
    CHOSEN_TOKENS,
    LatentSpec,
    latent_attention,
    rotate_and_write_latent,
)
from headstock.ops.linear import (
    DENSE,
    FP8_GROUP,
    GATED,
    GROUPED_INPUTS,
    INT4_GROUP,
    INT8_GROUP,
    MXFP4,
    PRODUCT,
    ROWS,
    SCALED_ROWS,
    linear,
)
from headstock.ops.linear_attention import BY_CHANNEL, LinearAttentionSpec, linear_attention
from headstock.ops.lora import add_lora
from headstock.ops.mamba2 import mamba2
from headstock.ops.moe import BIAS, UNGATED, experts, route_topk
from headstock.ops.norm import (
    WIDE_WEIGHT,
    add_layer_norm,
    add_rms_norm,
    layer_norm,
    rms_norm,
)
from headstock.ops.outputs import soft_cap
from headstock.ops.pooling import pool_rows
from headstock.ops.rotary import (
    KEYS_AS_VALUES,
    NORMED_LAST,
    NORMED_VALUES,
    rotate_and_write,
    rotate_queries,
)
from headstock.ops.routing import (
    SQRT_SOFTPLUS,
    add_identities,
    add_shared,
    drop_identities,
    route_by_token,
    route_experts,
    weigh_experts,
)
from headstock.ops.sampling import (
    add_bias,
    apply_penalties,
    argmax_tokens,
    draw_tokens,
    token_logprobs,
)
from headstock.ops.selective_scan import selective_scan
from headstock.ops.short_convolution import UNGATED as WITHOUT_GATES
from headstock.ops.short_convolution import short_convolution
from headstock.ops.sparse import keep_above, sum_moments
from headstock.ops.steps import (
    accept_drafts,
    advance_lengths,
    apply_masks,
    keep_rows,
    last_of_rows,
    mark_faults,
    place_step,
    settle_step,
    spread_draws,
    take_draws,
)
from headstock.ops.streams import (
    add_to_others,
    correct_streams,
    match_magnitudes,
    mean_of_streams,
    predict_streams,
)
from headstock.ops.wide_norm import norm_queries_and_keys, sum_squares
from headstock_triton import grouped_linear
from headstock_triton.activation import Activations
from headstock_triton.attention import narrow
from headstock_triton.attention.chosen import BlockAttention
from headstock_triton.attention.pages import TAG
from headstock_triton.attention.provider import PAGE_SIZES, PagedAttention
from headstock_triton.compressed.entries import Entries
from headstock_triton.compressed.provider import EntryAttention
from headstock_triton.dense import build_dense
from headstock_triton.drafts import Drafts
from headstock_triton.encoder import Encoders
from headstock_triton.features import Features
from headstock_triton.fp8 import GROUP, OUT_UNIT, Fp8Gate, build_fp8
from headstock_triton.fp8_blocks import build_block_fp8
from headstock_triton.fp8_formats import FORMATS
from headstock_triton.gates import Gates
from headstock_triton.hyper_connections import MAX_STREAMS, HyperConnections
from headstock_triton.identities import Identities
from headstock_triton.ints import GROUP_UNIT, build_int
from headstock_triton.latent.provider import LatentRotations, PagedLatentAttention
from headstock_triton.latent.scan import TAG as LATENT_TAG
from headstock_triton.linear_attention import TritonLinearAttention
from headstock_triton.lora import MAX_PARTS, LowRank
from headstock_triton.mamba2 import TritonMamba2
from headstock_triton.moe import MAX_EXPERTS, build_experts
from headstock_triton.norm import Norms
from headstock_triton.rotary import Rotations
from headstock_triton.routing import Routing
from headstock_triton.sampling.argmax import Argmax
from headstock_triton.sampling.draw import Draws
from headstock_triton.sampling.logprobs import Logprobs
from headstock_triton.sampling.shaping import Shaping
from headstock_triton.scores import Scores
from headstock_triton.selective_scan import TritonSelectiveScan
from headstock_triton.short_convolution import TritonShortConvolution
from headstock_triton.sparse.provider import BlockIndexer, TokenIndexer
from headstock_triton.steps import Steps
from headstock_triton.streams import Streams
from headstock_triton.target import Target
from headstock_triton.wide_norm import WideNorms

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
    register_sparse(registry)
    register_compressed(registry, target)
    register_streams(registry, target)
    register_hyper_connections(registry, target)
    register_delta(registry, target)
    register_encoder(registry, target)
    register_linear(registry, target)
    register_lora(registry, target)
    register_experts(registry, target)
    register_sampling(registry, target)
    register_steps(registry, target)
    register_drafts(registry, target)


def register_layers(registry: OpRegistry, target: Target) -> None:
    """Offer attention, and what lies between it and the products."""
    offer = partial(registry.add, provider=PROVIDER)
    normed, norms = Requires(dtypes=FLOATS, features=frozenset({WIDE_WEIGHT})), Norms(target)
    offer(rms_norm, run=norms.rms_norm, requires=normed)
    offer(add_rms_norm, run=norms.add_rms_norm, requires=normed)
    wide, floats = WideNorms(target), Requires(dtypes=FLOATS)
    offer(sum_squares, run=wide.sum_squares, requires=floats)
    offer(norm_queries_and_keys, run=wide.norm_queries_and_keys, requires=floats)
    offer(soft_cap, run=Activations(target).soft_cap, requires=floats)
    offer(
        silu_and_mul,
        run=Activations(target).silu_and_mul,
        requires=Requires(dtypes=FLOATS, features=ACTIVATIONS),
    )
    offer(
        activate_and_mul,
        run=Activations(target).activate_and_mul,
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
    offer(rotate_queries, run=Rotations(target).rotate_queries, requires=normed)
    offer(
        rotate_and_write,
        run=Rotations(target).rotate_and_write,
        requires=replace(
            normed,
            page_formats=frozenset({TAG}),
            features=normed.features | {NORMED_LAST, NORMED_VALUES, KEYS_AS_VALUES},
        ),
    )
    offer(
        attention,
        run=build_attention,
        requires=Requires(
            dtypes=FLOATS,
            page_dtypes=FLOATS | narrow.PAGE_DTYPES,
            features=frozenset({"sliding_window", "sinks", "soft_cap", BIDIRECTIONAL, CHUNKED})
            | narrow.FEATURES,
            sizes={
                "head_dim": Sizes(at_most=256 if target.has_small_warps else 512),
                "heads_per_kv_head": Sizes(at_most=64),
                "page_size": Sizes(only=frozenset(PAGE_SIZES)),
            },
        ),
    )


def register_delta(registry: OpRegistry, target: Target) -> None:
    """Offer recurrent states, gates on what is read from them, and factors of features."""
    gates, floats = Gates(target), Requires(dtypes=FLOATS)
    registry.add(gated_norm, PROVIDER, gates.gated_norm, requires=floats)
    registry.add(gate_features, PROVIDER, gates.gate_features, requires=floats)
    sizes = {"key_size": Sizes(at_most=128)}
    requires = Requires(dtypes=FLOATS, sizes=sizes, features=frozenset({BY_CHANNEL}))
    registry.add(linear_attention, PROVIDER, build_linear_attention, requires=requires)
    registry.add(gate_heads, PROVIDER, gates.gate_heads, requires=floats)
    registry.add(gate_by_silu, PROVIDER, gates.gate_by_silu, requires=floats)
    registry.add(gate_by_softplus, PROVIDER, gates.gate_by_softplus, requires=floats)
    registry.add(gated_group_norm, PROVIDER, gates.gated_group_norm, requires=floats)
    convolutions = Requires(dtypes=FLOATS, features=frozenset({WITHOUT_GATES}))
    registry.add(short_convolution, PROVIDER, TritonShortConvolution, requires=convolutions)
    states = Requires(dtypes=FLOATS, sizes={"state_size": Sizes(at_most=256)})
    registry.add(mamba2, PROVIDER, TritonMamba2, requires=states)
    registry.add(selective_scan, PROVIDER, TritonSelectiveScan, requires=states)
    features = Features(target)
    registry.add(add_features, PROVIDER, features.add_features, requires=floats)
    registry.add(scale_features, PROVIDER, features.scale_features, requires=floats)
    registry.add(weigh_features, PROVIDER, features.weigh_features, requires=floats)
    registry.add(scale_tokens, PROVIDER, features.scale_tokens, requires=floats)
    registry.add(scale_by_position, PROVIDER, features.scale_by_position, requires=floats)


def register_encoder(registry: OpRegistry, target: Target) -> None:
    """Offer what encoders have beyond decoders, and pooling."""
    encoders, floats = Encoders(target), Requires(dtypes=FLOATS)
    registry.add(layer_norm, PROVIDER, encoders.layer_norm, requires=floats)
    registry.add(add_layer_norm, PROVIDER, encoders.add_layer_norm, requires=floats)
    registry.add(embed_places, PROVIDER, encoders.embed_places, requires=floats)
    registry.add(pool_rows, PROVIDER, encoders.pool_rows, requires=floats)
    plain = Requires(dtypes=FLOATS, features=ACTIVATIONS - OF_BOTH)
    registry.add(activate, PROVIDER, Activations(target).activate, requires=plain)


def register_latent(registry: OpRegistry, target: Target) -> None:
    """Offer latent attention, and routing by scores."""
    offer, scores = partial(registry.add, provider=PROVIDER), Scores(target)
    floats = Requires(dtypes=FLOATS)
    scored = replace(floats, features=frozenset({SQRT_SOFTPLUS}))
    offer(route_experts, run=scores.route_experts, requires=scored)
    offer(route_by_token, run=scores.route_by_token, requires=scored)
    offer(add_shared, run=scores.add_shared, requires=floats)
    if target.has_small_warps:  # a latent does not fit into their registers
        return
    offer(
        rotate_and_write_latent,
        run=LatentRotations(target).rotate_and_write_latent,
        requires=Requires(dtypes=FLOATS, page_formats=frozenset({LATENT_TAG})),
    )
    offer(
        latent_attention,
        run=build_latent_attention,
        requires=Requires(
            dtypes=FLOATS,
            page_dtypes=FLOATS,
            features=frozenset({CHOSEN_TOKENS}),
            sizes={
                "latent_size": Sizes(at_most=512),
                "rotary_size": Sizes(at_most=128),
                "page_size": Sizes(only=frozenset(PAGE_SIZES)),
            },
        ),
    )


def register_sparse(registry: OpRegistry) -> None:
    """Offer the choice of what attention reads, and attention to chosen blocks."""
    sizes = {"head_dim": Sizes(at_most=256), "page_size": Sizes(only=frozenset(PAGE_SIZES))}
    registry.add(
        attention,
        PROVIDER,
        build_block_attention,
        requires=Requires(
            dtypes=FLOATS,
            page_dtypes=FLOATS,
            features=frozenset({CHOSEN_BLOCKS}),
            sizes=sizes | {"heads_per_kv_head": Sizes(at_most=64), "block_size": Sizes(at_least=1)},
        ),
    )
    few, some = Sizes(at_most=64), Sizes(at_most=4096)
    sizes |= {"num_heads": few, "num_chosen": some}
    requires = Requires(dtypes=FLOATS, page_dtypes=FLOATS, sizes=sizes)
    registry.add(index_tokens, PROVIDER, TokenIndexer, requires=requires)
    sizes = sizes | {"block_size": Sizes(at_most=256)}
    requires = Requires(dtypes=FLOATS, page_dtypes=FLOATS, sizes=sizes)
    registry.add(index_blocks, PROVIDER, BlockIndexer, requires=requires)


def register_compressed(registry: OpRegistry, target: Target) -> None:
    """Offer attention to a window and to entries, and what makes and chooses these."""
    offer, entries = partial(registry.add, provider=PROVIDER), Entries(target)
    floats = Requires(dtypes=FLOATS)
    offer(rotate_last, run=entries.rotate_last, requires=floats)
    offer(compress_tokens, run=entries.compress_tokens, requires=floats)
    few, some = Sizes(at_most=64), Sizes(at_most=4096)
    sizes = {"num_heads": few, "head_dim": Sizes(at_most=256), "num_chosen": some}
    offer(choose_entries, run=entries.choose_entries, requires=replace(floats, sizes=sizes))
    # Sums of wider vectors do not fit into the registers of small warps.
    widest = Sizes(at_most=256 if target.has_small_warps else 512)
    attended = replace(
        floats,
        page_dtypes=FLOATS,
        sizes={"head_dim": widest},
        features=frozenset({ENTRIES, CHOSEN_ENTRIES}),
    )
    offer(compressed_attention, run=build_entry_attention, requires=attended)


def register_streams(registry: OpRegistry, target: Target) -> None:
    """Offer streams of hidden states, and what small tables and identities leave out."""
    streams, identities = Streams(target), Identities(target)
    offer = partial(registry.add, provider=PROVIDER, requires=Requires(dtypes=FLOATS))
    offer(predict_streams, run=streams.predict_streams)
    offer(correct_streams, run=streams.correct_streams)
    offer(add_to_others, run=streams.add_to_others)
    offer(match_magnitudes, run=streams.match_magnitudes)
    offer(mean_of_streams, run=streams.mean_of_streams)
    offer(sum_moments, run=streams.sum_moments)
    offer(keep_above, run=streams.keep_above)
    offer(known_ids, run=identities.known_ids)
    offer(put_rows, run=identities.put_rows)
    offer(drop_identities, run=identities.drop_identities)
    offer(add_identities, run=identities.add_identities)


def register_hyper_connections(registry: OpRegistry, target: Target) -> None:
    """Offer residual streams that are mixed by weights made of them."""
    few = {"num_streams": Sizes(at_most=MAX_STREAMS)}
    connections = HyperConnections(target)
    offer = partial(registry.add, provider=PROVIDER, requires=Requires(dtypes=FLOATS, sizes=few))
    offer(spread_streams, run=connections.spread_streams)
    offer(collapse_streams, run=connections.collapse_streams)
    offer(expand_streams, run=connections.expand_streams)
    offer(merge_streams, run=connections.merge_streams)


def register_lora(registry: OpRegistry, target: Target) -> None:
    """Offer what adapters add to products."""
    sizes = {"parts": Sizes(at_most=MAX_PARTS), "rank": Sizes(at_most=256)}
    requires = Requires(dtypes=FLOATS, sizes=sizes)
    registry.add(add_lora, PROVIDER, LowRank(target).add_lora, requires=requires)


def register_linear(registry: OpRegistry, target: Target) -> None:
    """Offer matrix products, layout by layout."""
    offer = partial(registry.add, linear, PROVIDER)
    features = frozenset({ROWS, SCALED_ROWS, GATED, PRODUCT})
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
    floats = Requires(dtypes=FLOATS)
    registry.add(multiply_groups, PROVIDER, grouped_linear.multiply_groups, requires=floats)
    if target.kind != "hip":
        return
    for kind in FORMATS:
        offer(
            run=build_block_fp8,
            requires=Requires(
                dtypes=FLOATS,
                layouts=frozenset({FP8_GROUP}),
                sizes={"group_size": Sizes(only=frozenset({GROUP}))},
                capabilities=frozenset({kind.capability}),
            ),
        )


def register_experts(registry: OpRegistry, target: Target) -> None:
    """Offer routing to experts, and their products, layout by layout."""
    some = {"num_experts": Sizes(at_most=MAX_EXPERTS)}
    route = Requires(dtypes=FLOATS, sizes=some)
    registry.add(route_topk, PROVIDER, Routing(target).route_topk, requires=route)
    floats = Requires(dtypes=FLOATS)
    registry.add(weigh_experts, PROVIDER, Routing(target).weigh_experts, requires=floats)
    offer = partial(registry.add, experts, PROVIDER, build_experts)
    features = (ACTIVATIONS | {BIAS, UNGATED}) - {"xielu"}
    dense = frozenset({DENSE})
    offer(requires=Requires(dtypes=FLOATS, layouts=dense, features=features, sizes=some))
    grouped = some | {"group_size": Sizes(multiple_of=32)}
    small = frozenset({INT8_GROUP, INT4_GROUP})
    if target.converts_four_bit_floats:
        small |= {MXFP4}
    offer(requires=Requires(dtypes=FLOATS, layouts=small, features=features, sizes=grouped))
    formats = [kind.capability for kind in FORMATS] if target.kind == "hip" else ["sm_90"]
    for capability in formats:
        offer(
            requires=Requires(
                dtypes=FLOATS,
                layouts=frozenset({FP8_GROUP}),
                features=features,
                sizes=grouped,
                capabilities=frozenset({capability}),
            )
        )


def register_steps(registry: OpRegistry, target: Target) -> None:
    """Offer the bookkeeping around a step."""
    offer, steps = partial(registry.add, provider=PROVIDER), Steps(target)
    offer(place_step, run=steps.place_step)
    offer(last_of_rows, run=steps.last_of_rows)
    offer(keep_rows, run=steps.keep_rows)
    offer(mark_faults, run=steps.mark_faults)
    offer(advance_lengths, run=steps.advance_lengths)
    offer(settle_step, run=steps.settle_step)


def register_drafts(registry: OpRegistry, target: Target) -> None:
    """Offer drafting from histories, and what verifies drafts."""
    offer, drafts = partial(registry.add, provider=PROVIDER), Drafts(target)
    offer(accept_drafts, run=drafts.accept_drafts)
    offer(spread_draws, run=drafts.spread_draws)
    offer(take_draws, run=drafts.take_draws)
    offer(keep_accepted, run=drafts.keep_accepted)
    offer(count_drafts, run=drafts.count_drafts)
    offer(append_outputs, run=drafts.append_outputs)
    offer(draft_ngrams, run=drafts.draft_ngrams)
    offer(enter_drafts, run=drafts.enter_drafts)


def register_sampling(registry: OpRegistry, target: Target) -> None:
    """Offer sampling; all but the greedy choice take logits widened to float32."""
    registry.add(argmax_tokens, PROVIDER, Argmax(target).argmax_tokens)
    offer = partial(
        registry.add, provider=PROVIDER, requires=Requires(dtypes=frozenset({"float32"}))
    )
    shaping = Shaping(target)
    offer(apply_penalties, run=shaping.apply_penalties)
    offer(add_bias, run=shaping.add_bias)
    offer(apply_masks, run=shaping.apply_masks)
    offer(draw_tokens, run=Draws(target).draw_tokens)
    offer(token_logprobs, run=Logprobs(target).token_logprobs)


def build_attention(spec: AttentionSpec, device: OpDevice) -> PagedAttention:
    """Build the attention provider for ``spec``."""
    return PagedAttention(spec, device)


def build_block_attention(spec: AttentionSpec, device: OpDevice) -> BlockAttention:
    """Build the provider of attention to chosen blocks for ``spec``."""
    return BlockAttention(spec, device)


def build_entry_attention(spec: CompressedSpec, device: OpDevice) -> EntryAttention:
    """Build the provider for ``spec``."""
    return EntryAttention(spec, device)


def build_latent_attention(spec: LatentSpec, device: OpDevice) -> PagedLatentAttention:
    """Build the provider of latent attention for ``spec``."""
    return PagedLatentAttention(spec, device)


def build_linear_attention(spec: LinearAttentionSpec, device: OpDevice) -> TritonLinearAttention:
    """Build the provider of linear attention for ``spec``."""
    return TritonLinearAttention(spec, device)

"""Attention of long rows with several queries on Hopper: warps that multiply, and one that copies.

A block is 128 rows: queries times the heads that share a key/value head, packed as in `prefill.py`.
Two groups of four warps have 64 of them each; one more warp copies tiles of keys and values into a
ring in shared memory, the row's last tile first. A group multiplies queries by the next tile's keys
while it adds up the last tile's values, so that the tensor cores work while weights are computed;
what one group leaves idle the other takes. Written in Gluon, Triton's language for explicit layouts
and barriers: its pages are those of the other kernels.

Shapes: M rows of a group, N tokens of a tile, D head size.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants and tensors by classes of its own, which Gluon's stubs do not know.
# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

barrier = getattr(gl, "barrier", None) or gl.thread_barrier
"""Waits for the warps of a group; Triton 3.7 renamed it."""

BLOCK_ROWS = 128
"""Queries times heads of a block, as the lists must be made: 64 for each group."""
TILE_TOKENS = 128
STAGES = 2
COPIED_FEATURES = 64
"""Features of a copy: one row of the 128-byte pattern that the tensor cores read."""


def tiles_of(kv, page_size: int, head_dim: int) -> TensorDescriptor:
    """Return the descriptor that a layer's pages are copied by: as lines of one head's token."""
    box = [min(page_size, TILE_TOKENS), COPIED_FEATURES]
    layout = gl.NVMMASharedLayout(128, 16, 2)
    return TensorDescriptor.from_tensor(kv.view(-1, head_dim), box, layout)


@gluon.jit
def copy_tile(
    tiles,
    pages,
    first,
    last,
    head,
    full,
    into,
    KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr,
    D: gl.constexpr,
    IS_VALUE: gl.constexpr,
):
    """Queue the copy of tokens [first, first + N) of one head; of pages past the row, page 0's."""
    tokens: gl.constexpr = into.shape[0]
    box: gl.constexpr = PAGE if tokens > PAGE else tokens
    mbarrier.expect(full, tokens * D * 2)
    for part in gl.static_range(tokens // box):
        token = first + part * box
        page = gl.load(pages + token // PAGE, mask=token < last, other=0)
        line = (page * (2 * KV_HEADS) + IS_VALUE * KV_HEADS + head) * PAGE + token % PAGE
        lines = into.slice(part * box, box, 0)
        for begin in gl.static_range(0, D, 64):
            to = lines.slice(begin, 64, 1)
            tma.async_copy_global_to_shared(tiles, [line, begin], full, to)


@gluon.jit
def copy_tiles(
    tiles,
    pages,
    head,
    last,
    num_tiles,
    k_SND,
    v_SND,
    k_full,
    k_empty,
    v_full,
    v_empty,
    KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr,
):
    """Copy the row's tiles into the ring, as it empties."""
    stages: gl.constexpr = k_SND.shape[0]
    tokens: gl.constexpr = k_SND.shape[1]
    size: gl.constexpr = k_SND.shape[2]
    for count in range(num_tiles):
        stage = count % stages
        parity = (count // stages) & 1
        first = (num_tiles - 1 - count) * tokens
        mbarrier.wait(k_empty.index(stage), parity ^ 1)
        copy_tile(
            tiles, pages, first, last, head, k_full.index(stage), k_SND.index(stage),
            KV_HEADS, PAGE, size, 0,
        )  # fmt: skip
        mbarrier.wait(v_empty.index(stage), parity ^ 1)
        copy_tile(
            tiles, pages, first, last, head, v_full.index(stage), v_SND.index(stage),
            KV_HEADS, PAGE, size, 1,
        )  # fmt: skip


@gluon.jit
def clean_values(v_ND, first, last, cleaned):
    """Zero the values past the row's end: pages may hold NaN there, which weights of 0 keep."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    token_N = first + gl.arange(0, v_ND.shape[0], layout=gl.SliceLayout(1, layout))
    value_ND = v_ND.load(layout)
    v_ND.store(gl.where(gl.expand_dims(token_N, 1) < last, value_ND, 0.0))
    fence_async_shared()
    barrier()
    mbarrier.arrive(cleaned, count=1)


@gluon.jit
def seen_scores(scores_MN, first, limit_M):
    """Return the scores, minus infinity past each row's limit."""
    layout: gl.constexpr = scores_MN.type.layout
    token_N = first + gl.arange(0, scores_MN.shape[1], layout=gl.SliceLayout(0, layout))
    is_seen_MN = gl.expand_dims(token_N, 0) <= gl.expand_dims(limit_M, 1)
    return gl.where(is_seen_MN, scores_MN, float("-inf"))


@gluon.jit
def read_queries(
    q, q_MD, start, first_query, num_queries, head, HEADS: gl.constexpr, GROUP: gl.constexpr
):
    """Bring this group's queries into shared memory; zeros for rows that stand for none."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    size: gl.constexpr = q_MD.shape[1]
    row_M = gl.arange(0, q_MD.shape[0], layout=gl.SliceLayout(1, layout))
    column_D = gl.arange(0, size, layout=gl.SliceLayout(0, layout))
    query_M = first_query + row_M // GROUP
    line_M = (start + query_M).to(gl.int64) * HEADS + head * GROUP + row_M % GROUP
    at_MD = gl.expand_dims(line_M, 1) * size + gl.expand_dims(column_D, 0)
    is_query_M1 = gl.expand_dims(query_M < num_queries, 1)
    q_MD.store(gl.load(q + at_MD, mask=is_query_M1, other=0.0))
    fence_async_shared()
    barrier()


@gluon.jit
def attend_group(
    q,
    q_MD,
    out,
    start,
    first_query,
    num_queries,
    length,
    last,
    num_tiles,
    head,
    scale,
    k_SND,
    v_SND,
    k_full,
    k_empty,
    v_full,
    v_empty,
    cleaned,
    WHICH: gl.constexpr,
    HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr,
):
    """Attend from this group's rows to all tiles of the row.

    The softmax runs as tiles come: see `pages.py`, whose names this keeps. One function, since what
    is in flight at a time, and who waits for it, can only be followed in one place.
    """
    group: gl.constexpr = HEADS // KV_HEADS
    rows: gl.constexpr = q_MD.shape[0]
    size: gl.constexpr = q_MD.shape[1]
    stages: gl.constexpr = k_SND.shape[0]
    tokens: gl.constexpr = k_SND.shape[1]
    of_scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, tokens, 16])
    of_values: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, size, 16])
    of_weights: gl.constexpr = gl.DotOperandLayout(0, of_values, 2)
    dtype: gl.constexpr = q.dtype.element_ty
    read_queries(q, q_MD, start, first_query, num_queries, head, HEADS, group)

    row_M = gl.arange(0, rows, layout=gl.SliceLayout(1, of_scores))
    query_M = gl.minimum(first_query + row_M // group, num_queries - 1)
    limit_M = length - num_queries + query_M
    zero_MN = gl.zeros([rows, tokens], gl.float32, of_scores)
    first = (num_tiles - 1) * tokens
    mbarrier.wait(k_full.index(0), 0)
    scores_MN = warpgroup_mma(
        q_MD, k_SND.index(0).permute((1, 0)), zero_MN, use_acc=False, is_async=True
    )
    scores_MN = warpgroup_mma_wait(0, deps=(scores_MN,))
    mbarrier.arrive(k_empty.index(0), count=1)
    scores_MN = seen_scores(scores_MN, first, limit_M)
    # Finite where nothing is seen yet, so that differences of it are numbers.
    max_M = gl.maximum(gl.max(scores_MN, axis=1) * scale, -1.0e38)
    weights_MN = gl.exp2(scores_MN * scale - gl.expand_dims(max_M, 1))
    sum_M = gl.sum(weights_MN, axis=1)
    weights_MN = gl.convert_layout(weights_MN.to(dtype), of_weights)
    mbarrier.wait(v_full.index(0), 0)
    if last % tokens != 0:
        half: gl.constexpr = size // 2
        clean_values(v_SND.index(0).slice(WHICH * half, half, 1), first, last, cleaned)
        mbarrier.wait(cleaned, 0)

    acc_MD = gl.zeros([rows, size], gl.float32, of_values)
    whole = (length - num_queries + first_query + 1) // tokens
    stage = 0
    for count in range(1, num_tiles):
        before = stage
        stage = count % stages
        tile = num_tiles - 1 - count
        mbarrier.wait(k_full.index(stage), (count // stages) & 1)
        scores_MN = warpgroup_mma(
            q_MD, k_SND.index(stage).permute((1, 0)), zero_MN, use_acc=False, is_async=True
        )
        mbarrier.wait(v_full.index(before), ((count - 1) // stages) & 1)
        acc_MD = warpgroup_mma(weights_MN, v_SND.index(before), acc_MD, is_async=True)
        scores_MN = warpgroup_mma_wait(1, deps=(scores_MN,))
        mbarrier.arrive(k_empty.index(stage), count=1)
        if tile >= whole:
            scores_MN = seen_scores(scores_MN, tile * tokens, limit_M)
        new_max_M = gl.maximum(max_M, gl.max(scores_MN, axis=1) * scale)
        next_MN = gl.exp2(scores_MN * scale - gl.expand_dims(new_max_M, 1))
        shrink_M = gl.exp2(max_M - new_max_M)
        sum_M = sum_M * shrink_M + gl.sum(next_MN, axis=1)
        max_M = new_max_M
        acc_MD = warpgroup_mma_wait(0, deps=(acc_MD,))
        mbarrier.arrive(v_empty.index(before), count=1)
        acc_MD = acc_MD * gl.expand_dims(
            gl.convert_layout(shrink_M, gl.SliceLayout(1, of_values)), 1
        )
        weights_MN = gl.convert_layout(next_MN.to(dtype), of_weights)

    mbarrier.wait(v_full.index(stage), ((num_tiles - 1) // stages) & 1)
    acc_MD = warpgroup_mma(weights_MN, v_SND.index(stage), acc_MD, is_async=True)
    acc_MD = warpgroup_mma_wait(0, deps=(acc_MD,))
    sum_M = gl.convert_layout(sum_M, gl.SliceLayout(1, of_values))
    out_MD = (acc_MD / gl.expand_dims(sum_M, 1)).to(dtype)
    row_M = gl.arange(0, rows, layout=gl.SliceLayout(1, of_values))
    column_D = gl.arange(0, size, layout=gl.SliceLayout(0, of_values))
    query_M = first_query + row_M // group
    line_M = (start + query_M).to(gl.int64) * HEADS + head * group + row_M % group
    at_MD = gl.expand_dims(line_M, 1) * size + gl.expand_dims(column_D, 0)
    gl.store(out + at_MD, out_MD, mask=gl.expand_dims(query_M < num_queries, 1))


@gluon.jit
def attend_long_queries(
    q,
    tiles,
    page_table,
    query_starts,
    kv_lengths,
    blocks,
    totals,
    out,
    scale,
    page_stride,
    HEADS: gl.constexpr,
    KV_HEADS: gl.constexpr,
    PAGE: gl.constexpr,
    D: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Attend from one block of queries of one row, for one key/value head.

    As :func:`headstock_triton.attention.prefill.attend_queries`, whose lists it reads. Launched
    without programmatic dependence: whatever came before has ended.
    """
    block = gl.load(totals + 2) - 1 - gl.program_id(0)
    head = gl.program_id(1)
    if block < 0:
        return
    group_queries: gl.constexpr = 64 // (HEADS // KV_HEADS)
    row = gl.load(blocks + block * 2)
    first_query = gl.load(blocks + block * 2 + 1)
    start = gl.load(query_starts + row)
    num_queries = gl.load(query_starts + row + 1) - start
    length = gl.load(kv_lengths + row)
    last = length - num_queries + gl.minimum(first_query + 2 * group_queries, num_queries)
    num_tiles = (last + BLOCK_N - 1) // BLOCK_N
    pages = page_table + row.to(gl.int64) * page_stride

    dtype: gl.constexpr = q.dtype.element_ty
    pattern: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    k_SND = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], pattern)
    v_SND = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, D], pattern)
    first_q_MD = gl.allocate_shared_memory(dtype, [64, D], pattern)
    second_q_MD = gl.allocate_shared_memory(dtype, [64, D], pattern)
    flag: gl.constexpr = mbarrier.MBarrierLayout()
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], flag)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], flag)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], flag)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], flag)
    cleaned = gl.allocate_shared_memory(gl.int64, [1, 1], flag)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=2)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(v_empty.index(stage), count=2)
    mbarrier.init(cleaned.index(0), count=2)
    fence_async_shared()
    barrier()
    gl.warp_specialize(
        [
            (attend_group, (
                q, first_q_MD, out, start, first_query, num_queries, length, last, num_tiles, head,
                scale, k_SND, v_SND, k_full, k_empty, v_full, v_empty, cleaned.index(0),
                0, HEADS, KV_HEADS,
            )),
            (attend_group, (
                q, second_q_MD, out, start, first_query + group_queries, num_queries, length, last,
                num_tiles, head, scale, k_SND, v_SND, k_full, k_empty, v_full, v_empty,
                cleaned.index(0), 1, HEADS, KV_HEADS,
            )),
            (copy_tiles, (
                tiles, pages, head, last, num_tiles, k_SND, v_SND, k_full, k_empty, v_full,
                v_empty, KV_HEADS, PAGE,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip

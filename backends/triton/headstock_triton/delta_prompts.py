"""Kernels of the gated delta rule for prompts: all chunks at once, then a pass that carries states.

What the tokens of a chunk do to each other does not depend on the state that the chunk begins
with. ``prepare_chunks`` computes it for every chunk of the step at the same time, ``carry_states``
goes through a row's chunks one after another and has products with the state left to do.

With T = (1 + L)^-1 diag(beta), L the decayed products of a chunk's keys times beta, what a chunk
writes under its keys K is U - W S, where U = T V, W = T diag(decay since the chunk's start) K, and
S is the state at its start.

Units of keys and queries, and U, take the places of keys, queries and values in ``mixed``. States
are carried transposed: they are then the left side of all products, which comes from registers.

Shapes: M tokens of a chunk (also as columns), P parts of PART tokens, K features of a key, N
columns of a state.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.delta import decays_of, shares_of, unit
from headstock_triton.overlap import begin

CHUNK = 64
"""Tokens of a chunk."""
PART = tl.constexpr(16)
"""Tokens whose updates are solved for one by one."""
COARSE = tl.constexpr(2048.0)
"""Sums of decays are kept in two parts: multiples of 1 / COARSE, which add up exactly within a
chunk, and the rest. Differences of large sums lose no digits then."""


@triton.jit
def plan_chunks(
    query_starts,
    counts,
    first_chunks,
    long_rows,
    BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """List where each row's chunks begin, and the rows that have any: those of several tokens.

    Both lists have room for ROWS numbers, and after these say how many there are in all.
    """
    begin(PDL)
    row_R = tl.arange(0, ROWS)
    is_real_R = row_R < tl.load(counts)
    start_R = tl.load(query_starts + row_R, mask=is_real_R, other=0)
    tokens_R = tl.load(query_starts + row_R + 1, mask=is_real_R, other=0) - start_R
    is_long_R = tokens_R > 1
    chunks_R = tl.where(is_long_R, (tokens_R + BLOCK_M - 1) // BLOCK_M, 0)
    tl.store(first_chunks + row_R, tl.cumsum(chunks_R, axis=0) - chunks_R)
    tl.store(first_chunks + ROWS, tl.sum(chunks_R, axis=0))
    place_R = tl.cumsum(is_long_R.to(tl.int32), axis=0) - 1
    tl.store(long_rows + place_R, row_R, mask=is_long_R)
    tl.store(long_rows + ROWS, tl.sum(is_long_R.to(tl.int32), axis=0))


@triton.jit
def inverse_of(lower_MM, m, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """Return the inverse of 1 + L, of a strictly lower L. float32.

    Parts on the diagonal are inverted row by row. With D their inverse and X = D times what is
    below them, the inverse is (1 - X + X^2 - X^3) D: more powers are zero where there are four.
    """
    p, i = tl.arange(0, PARTS), tl.arange(0, PART)
    size: tl.constexpr = PARTS * PART
    is_own = p[:, None, None, None] == p[None, None, :, None]
    parts = tl.reshape(lower_MM, (PARTS, PART, PARTS, PART))
    own_Pii = -tl.sum(tl.where(is_own, parts, 0.0), axis=2)
    for row in range(1, PART):
        is_row = (i == row)[None, :, None]
        row_Pi = tl.sum(tl.where(is_row, own_Pii, 0.0), axis=1)
        row_Pi += tl.sum(row_Pi[:, :, None] * own_Pii, axis=1)
        own_Pii = tl.where(is_row, row_Pi[:, None, :], own_Pii)
    own_Pii += tl.where(i[:, None] == i[None, :], 1.0, 0.0)[None, :, :]
    own_MM = tl.reshape(tl.where(is_own, own_Pii[:, :, None, :], 0.0), (size, size))
    below_MM = tl.where(m[:, None] // PART != m[None, :] // PART, lower_MM, 0.0)
    x_MM = tl.dot(own_MM, below_MM, input_precision=PRECISION)
    half_MM = own_MM - tl.dot(x_MM, own_MM, input_precision=PRECISION)
    squared_MM = tl.dot(x_MM, x_MM, input_precision=PRECISION)
    return half_MM + tl.dot(squared_MM, half_MM, input_precision=PRECISION)


@triton.jit
def prepare_chunks(
    mixed,
    b,
    a,
    decay,
    bias,
    query_starts,
    first_chunks,
    read_back,
    weights,
    factors,
    b_stride,
    a_stride,
    scale,
    KEY_HEADS: tl.constexpr,
    VALUE_HEADS: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute what chunk ``program_id(0)`` does by itself, for the heads of one key head.

    ``mixed`` has queries, keys and values, which units of the first two and U replace.
    ``read_back`` is W of each token and value head [T, V, K], ``weights`` decayed products of a
    token's query with its chunk's keys [T, V, M], ``factors`` what is left at a token of the
    state, and of the token at the chunk's end: float32 [T, V, 2].
    """
    begin(PDL)
    chunk = tl.program_id(0)
    if chunk >= tl.load(first_chunks + ROWS):
        return
    key_head = tl.program_id(1)
    row_R = tl.arange(0, ROWS)
    row = tl.sum((tl.load(first_chunks + row_R) <= chunk).to(tl.int32), axis=0) - 1
    first = tl.load(query_starts + row) + (chunk - tl.load(first_chunks + row)) * BLOCK_M
    features: tl.constexpr = 2 * KEY_HEADS * DK + VALUE_HEADS * DV
    each: tl.constexpr = VALUE_HEADS // KEY_HEADS
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    token_M = (first + m).to(tl.int64)
    is_there_M = token_M < tl.load(query_starts + row + 1)
    inside_MK = is_there_M[:, None] & (k < DK)[None, :]
    line_M1 = mixed + token_M[:, None] * features
    at_MK = line_M1 + key_head * DK + k[None, :]
    dtype: tl.constexpr = mixed.dtype.element_ty
    q_MK = unit(tl.load(at_MK, mask=inside_MK, other=0.0), scale).to(dtype)
    k_MK = unit(tl.load(at_MK + KEY_HEADS * DK, mask=inside_MK, other=0.0), 1.0).to(dtype)
    tl.store(at_MK, q_MK, mask=inside_MK)
    tl.store(at_MK + KEY_HEADS * DK, k_MK, mask=inside_MK)
    kk_MM = tl.dot(k_MK, tl.trans(k_MK), input_precision=PRECISION)
    qk_MM = tl.dot(q_MK, tl.trans(k_MK), input_precision=PRECISION)
    for head in range(key_head * each, key_head * each + each):
        b_M = tl.load(b + token_M * b_stride + head, mask=is_there_M, other=0.0)
        a_M = tl.load(a + token_M * a_stride + head, mask=is_there_M, other=0.0)
        # Tokens past the end leave the state as it is.
        beta_M = tl.where(is_there_M, shares_of(b_M), 0.0)
        g_M = decays_of(a_M, tl.load(decay + head), tl.load(bias + head))
        g_M = tl.where(is_there_M, g_M, 0.0)
        coarse_M = tl.ceil(g_M * COARSE) / COARSE
        fine_M = g_M - coarse_M
        left = tl.sum(coarse_M, axis=0) - tl.cumsum(coarse_M, axis=0)
        left_M = tl.exp(left + (tl.sum(fine_M, axis=0) - tl.cumsum(fine_M, axis=0)))
        coarse_M, fine_M = tl.cumsum(coarse_M, axis=0), tl.cumsum(fine_M, axis=0)
        kept_M = tl.exp(coarse_M + fine_M)
        between_MM = coarse_M[:, None] - coarse_M[None, :] + (fine_M[:, None] - fine_M[None, :])
        between_MM = tl.exp(tl.minimum(between_MM, 0.0))
        line_M = token_M * VALUE_HEADS + head
        tl.store(factors + line_M * 2, kept_M, mask=is_there_M)
        tl.store(factors + line_M * 2 + 1, left_M, mask=is_there_M)
        seen_MM = tl.where(m[:, None] >= m[None, :], qk_MM * between_MM, 0.0)
        at_MM = weights + line_M[:, None] * BLOCK_M + m[None, :]
        tl.store(at_MM, seen_MM.to(dtype), mask=is_there_M[:, None])
        lower_MM = tl.where(m[:, None] > m[None, :], kk_MM * between_MM * beta_M[:, None], 0.0)
        solved_MM = inverse_of(lower_MM, m, BLOCK_M // PART, PRECISION) * beta_M[None, :]
        back_MM = (solved_MM * kept_M[None, :]).to(dtype)
        back_MK = tl.dot(back_MM, k_MK, input_precision=PRECISION)
        at_MK = read_back + line_M[:, None] * DK + k[None, :]
        tl.store(at_MK, back_MK.to(dtype), mask=inside_MK)
        for column in range(0, DV, BLOCK_V):
            v = column + tl.arange(0, BLOCK_V)
            inside_MV = is_there_M[:, None] & (v < DV)[None, :]
            at_MV = line_M1 + 2 * KEY_HEADS * DK + head * DV + v[None, :]
            v_MV = tl.load(at_MV, mask=inside_MV, other=0.0)
            u_MV = tl.dot(solved_MM.to(dtype), v_MV, input_precision=PRECISION)
            tl.store(at_MV, u_MV.to(dtype), mask=inside_MV)


@triton.jit
def carry_states(
    mixed,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    long_rows,
    read_back,
    weights,
    factors,
    y,
    table_stride,
    kv_stride,
    inputs_size,
    KEY_HEADS: tl.constexpr,
    VALUE_HEADS: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take rows of several tokens through some columns of a head's matrix.

    Of the rows that are listed, program z takes every Z-th: few rows of a large step may be long.
    """
    begin(PDL)
    head = tl.program_id(1)
    features: tl.constexpr = 2 * KEY_HEADS * DK + VALUE_HEADS * DV
    key_head = head // (VALUE_HEADS // KEY_HEADS)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = inputs_size + head * DK * DV
    at_NK = k[None, :] * DV + n[:, None]
    inside_NK = (k < DK)[None, :] & (n < DV)[:, None]
    dtype: tl.constexpr = mixed.dtype.element_ty
    # Places within a chunk are the same in each: what changes is where a chunk begins.
    within_MK = m[:, None] * features + k[None, :]
    within_NM = m[None, :] * features + n[:, None]
    is_key_1K, is_value_N1 = (k < DK)[None, :], (n < DV)[:, None]
    for listed in range(tl.program_id(2), tl.load(long_rows + ROWS), tl.num_programs(2)):
        row = tl.load(long_rows + listed)
        start = tl.load(query_starts + row)
        end = tl.load(query_starts + row + 1)
        entry = page_table + row * table_stride
        found = kv + tl.load(entry).to(tl.int64) * kv_stride + place
        left = kv + tl.load(entry + 1).to(tl.int64) * kv_stride + place
        is_old = tl.load(kv_lengths + row) > end - start
        state_NK = tl.load(found + at_NK, mask=inside_NK & is_old, other=0.0)
        start64 = start.to(tl.int64)
        for done in tl.range(0, end - start, BLOCK_M, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
            is_there_M = m < end - start - done
            inside_MK = is_there_M[:, None] & is_key_1K
            inside_NM = is_there_M[None, :] & is_value_N1
            token = start64 + done
            line = token * VALUE_HEADS + head
            back_at = read_back + line * DK
            back_at_MK = back_at + (m * (VALUE_HEADS * DK))[:, None] + k[None, :]
            back_MK = tl.load(back_at_MK, mask=inside_MK, other=0.0)
            q_at = mixed + token * features + key_head * DK
            q_MK = tl.load(q_at + within_MK, mask=inside_MK, other=0.0)
            k_MK = tl.load(q_at + KEY_HEADS * DK + within_MK, mask=inside_MK, other=0.0)
            u_at = mixed + token * features + (2 * KEY_HEADS * DK + head * DV)
            u_NM = tl.load(u_at + within_NM, mask=inside_NM, other=0.0)
            seen_at = weights + line * BLOCK_M
            seen_at_MM = seen_at + (m * (VALUE_HEADS * BLOCK_M))[:, None] + m[None, :]
            seen_MM = tl.load(seen_at_MM, mask=is_there_M[:, None], other=0.0)
            factors_M = factors + line * 2 + m * (VALUE_HEADS * 2)
            kept_M = tl.load(factors_M, mask=is_there_M, other=0.0)
            left_M = tl.load(factors_M + 1, mask=is_there_M, other=0.0)
            last = tl.minimum(end - start - done, BLOCK_M) - 1
            kept = tl.load(factors + line * 2 + last * (VALUE_HEADS * 2))
            held_NK = state_NK.to(dtype)
            held_NM = tl.dot(held_NK, tl.trans(back_MK), input_precision=PRECISION)
            read_NM = tl.dot(held_NK, tl.trans(q_MK), input_precision=PRECISION) * kept_M[None, :]
            written_NM = u_NM.to(tl.float32) - held_NM
            read_NM += tl.dot(written_NM.to(dtype), tl.trans(seen_MM), input_precision=PRECISION)
            written_NM = (written_NM * left_M[None, :]).to(dtype)
            state_NK = tl.dot(written_NM, k_MK, state_NK * kept, input_precision=PRECISION)
            to_NM = y + line * DV + (m * (VALUE_HEADS * DV))[None, :] + n[:, None]
            tl.store(to_NM, read_NM.to(y.dtype.element_ty), mask=inside_NM)
        tl.store(left + at_NK, state_NK, mask=inside_NK)

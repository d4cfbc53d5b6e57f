"""Kernels of linear attention by the gated delta rule: steps, and chunks.

A head's matrix is cut into blocks of columns, which depend on no others; a program keeps one in
registers while it goes through its row. Rows of one token take a step, bound by reading and
writing the matrix; others go by chunks of 16, whose tokens' updates are solved for together.

Where decays are by channel, tokens of a chunk are compared one column at a time: a product of
decayed queries and keys grown by as much would leave the range of floats.

Shapes: K features of a key, N columns of a block of values, M tokens of a chunk.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.overlap import begin

CHUNK = 16
"""Tokens of a chunk: the least that tensor cores take."""
LEAST_DECAY = tl.constexpr(-64.0)
"""Logarithm of what counts as nothing left: sums over a chunk stay small, so that differences of
them keep their digits."""


@triton.jit
def unit(x_MK, scale):
    """Return rows of length ``scale``. float32."""
    x_MK = x_MK.to(tl.float32)
    return x_MK * (scale * tl.rsqrt(tl.sum(x_MK * x_MK, axis=1) + 1e-6))[:, None]


@triton.jit
def decays_of(a, decay, bias):
    """Return logarithms of decays. float32."""
    x = a.to(tl.float32) + bias
    soft = tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(tl.minimum(x, 20.0))))
    return tl.maximum(-tl.exp(decay) * soft, LEAST_DECAY)


@triton.jit
def shares_of(b):
    """Return how much of what is under its key a token replaces. float32."""
    return 1.0 / (1.0 + tl.exp(-b.to(tl.float32)))


@triton.jit
def compare(q_MK, k_MK, since_MK, m, BLOCK_M: tl.constexpr):
    """Return products of keys, and of queries, with keys of earlier tokens decayed since. [M, M]"""
    kk_MM = tl.zeros((BLOCK_M, BLOCK_M), tl.float32)
    qk_MM = tl.zeros((BLOCK_M, BLOCK_M), tl.float32)
    for i in range(BLOCK_M):
        is_row_M1 = (m == i)[:, None]
        k_K = tl.sum(tl.where(is_row_M1, k_MK, 0.0), axis=0)
        since_K = tl.sum(tl.where(is_row_M1, since_MK, 0.0), axis=0)
        seen_MK = tl.exp(tl.minimum(since_MK - since_K[None, :], 0.0)) * k_K[None, :]
        is_column_1M = (m == i)[None, :]
        kk_MM = tl.where(is_column_1M, tl.sum(k_MK * seen_MK, axis=1)[:, None], kk_MM)
        qk_MM = tl.where(is_column_1M, tl.sum(q_MK * seen_MK, axis=1)[:, None], qk_MM)
    return kk_MM, qk_MM


@triton.jit
def step_kernel(
    mixed,
    b,
    a,
    decay,
    bias,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    counts,
    y,
    b_stride,
    a_stride,
    table_stride,
    kv_stride,
    inputs_size,
    scale,
    KEY_HEADS: tl.constexpr,
    VALUE_HEADS: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take the token of row ``program_id(2)`` through some columns of a head's matrix."""
    begin(PDL)
    row = tl.program_id(2)
    head = tl.program_id(1)
    if row >= tl.load(counts):
        return
    token = tl.load(query_starts + row).to(tl.int64)
    if tl.load(query_starts + row + 1) - token != 1:
        return
    features: tl.constexpr = 2 * KEY_HEADS * DK + VALUE_HEADS * DV
    key_head = head // (VALUE_HEADS // KEY_HEADS)
    k = tl.arange(0, BLOCK_K)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_KN = (k < DK)[:, None] & (n < DV)[None, :]
    line = mixed + token * features
    q_K = tl.load(line + key_head * DK + k, mask=k < DK, other=0.0).to(tl.float32)
    k_K = tl.load(line + (KEY_HEADS + key_head) * DK + k, mask=k < DK, other=0.0).to(tl.float32)
    q_K = q_K * (scale * tl.rsqrt(tl.sum(q_K * q_K, axis=0) + 1e-6))
    k_K = k_K * tl.rsqrt(tl.sum(k_K * k_K, axis=0) + 1e-6)
    values = line + 2 * KEY_HEADS * DK + head * DV
    v_N = tl.load(values + n, mask=n < DV, other=0.0).to(tl.float32)
    b_1 = tl.load(b + token * b_stride + head)
    if BY_CHANNEL:
        a_K = tl.load(a + token * a_stride + head * DK + k, mask=k < DK, other=0.0)
        bias_K = tl.load(bias + head * DK + k, mask=k < DK, other=0.0)
        kept_KN = tl.exp(decays_of(a_K, tl.load(decay + head), bias_K))[:, None]
    else:
        a_1 = tl.load(a + token * a_stride + head)
        kept_KN = tl.exp(decays_of(a_1, tl.load(decay + head), tl.load(bias + head)))
    entry = page_table + row * table_stride
    place = inputs_size + head * DK * DV
    found = kv + tl.load(entry).to(tl.int64) * kv_stride + place
    left = kv + tl.load(entry + 1).to(tl.int64) * kv_stride + place
    at_KN = k[:, None] * DV + n[None, :]
    is_old = tl.load(kv_lengths + row) > 1
    state_KN = tl.load(found + at_KN, mask=inside_KN & is_old, other=0.0) * kept_KN
    written_N = (v_N - tl.sum(state_KN * k_K[:, None], axis=0)) * shares_of(b_1)
    state_KN += k_K[:, None] * written_N[None, :]
    tl.store(left + at_KN, state_KN, mask=inside_KN)
    read_N = tl.sum(state_KN * q_K[:, None], axis=0)
    to = y + (token * VALUE_HEADS + head) * DV + n
    tl.store(to, read_N.to(y.dtype.element_ty), mask=n < DV)


@triton.jit
def chunk_kernel(
    mixed,
    b,
    a,
    decay,
    bias,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    counts,
    y,
    b_stride,
    a_stride,
    table_stride,
    kv_stride,
    inputs_size,
    scale,
    KEY_HEADS: tl.constexpr,
    VALUE_HEADS: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Take row ``program_id(2)``, of several tokens, through some columns of a head's matrix."""
    begin(PDL)
    row = tl.program_id(2)
    head = tl.program_id(1)
    if row >= tl.load(counts):
        return
    start = tl.load(query_starts + row)
    end = tl.load(query_starts + row + 1)
    if end - start <= 1:
        return
    features: tl.constexpr = 2 * KEY_HEADS * DK + VALUE_HEADS * DV
    key_head = head // (VALUE_HEADS // KEY_HEADS)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    decay_1 = tl.load(decay + head)
    if BY_CHANNEL:
        bias_K = tl.load(bias + head * DK + k, mask=k < DK, other=0.0)
    else:
        bias_1 = tl.load(bias + head)
    entry = page_table + row * table_stride
    place = inputs_size + head * DK * DV
    found = kv + tl.load(entry).to(tl.int64) * kv_stride + place
    left = kv + tl.load(entry + 1).to(tl.int64) * kv_stride + place
    at_KN = k[:, None] * DV + n[None, :]
    inside_KN = (k < DK)[:, None] & (n < DV)[None, :]
    is_old = tl.load(kv_lengths + row) > end - start
    state_KN = tl.load(found + at_KN, mask=inside_KN & is_old, other=0.0)
    is_later_MM = m[:, None] > m[None, :]
    for first in range(start, end, BLOCK_M):
        token_M = (first + m).to(tl.int64)
        is_there_M = token_M < end
        line_M1 = mixed + token_M[:, None] * features
        inside_MK = is_there_M[:, None] & (k < DK)[None, :]
        inside_MN = is_there_M[:, None] & (n < DV)[None, :]
        at_MK = line_M1 + key_head * DK + k[None, :]
        q_MK = unit(tl.load(at_MK, mask=inside_MK, other=0.0), scale)
        k_MK = unit(tl.load(at_MK + KEY_HEADS * DK, mask=inside_MK, other=0.0), 1.0)
        at_MN = line_M1 + 2 * KEY_HEADS * DK + head * DV + n[None, :]
        v_MN = tl.load(at_MN, mask=inside_MN, other=0.0).to(tl.float32)
        b_M = tl.load(b + token_M * b_stride + head, mask=is_there_M, other=0.0)
        # Tokens past the end leave the state as it is.
        beta_M = tl.where(is_there_M, shares_of(b_M), 0.0)
        if BY_CHANNEL:
            at_MK = a + token_M[:, None] * a_stride + head * DK + k[None, :]
            a_MK = tl.load(at_MK, mask=inside_MK, other=0.0)
            g_MK = tl.where(inside_MK, decays_of(a_MK, decay_1, bias_K[None, :]), 0.0)
            since_MK = tl.cumsum(g_MK, axis=0)
            last_K = tl.sum(tl.where((m == BLOCK_M - 1)[:, None], since_MK, 0.0), axis=0)
            kk_MM, qk_MM = compare(q_MK, k_MK, since_MK, m, BLOCK_M)
        else:
            a_M = tl.load(a + token_M * a_stride + head, mask=is_there_M, other=0.0)
            g_M = tl.where(is_there_M, decays_of(a_M, decay_1, bias_1), 0.0)
            since_M = tl.cumsum(g_M, axis=0)
            last = tl.sum(tl.where(m == BLOCK_M - 1, since_M, 0.0), axis=0)
            between_MM = tl.exp(tl.minimum(since_M[:, None] - since_M[None, :], 0.0))
            kk_MM = tl.dot(k_MK, tl.trans(k_MK), input_precision=PRECISION) * between_MM
        # The inverse of 1 + L, row by row: rows above are done when a row is.
        solve_MM = tl.where(is_later_MM, -kk_MM * beta_M[:, None], 0.0)
        for i in range(1, BLOCK_M):
            is_row_M1 = (m == i)[:, None]
            row_M = tl.sum(tl.where(is_row_M1, solve_MM, 0.0), axis=0)
            row_M += tl.sum(row_M[:, None] * solve_MM, axis=0)
            solve_MM = tl.where(is_row_M1, row_M[None, :], solve_MM)
        solve_MM += tl.where(m[:, None] == m[None, :], 1.0, 0.0)
        if BY_CHANNEL:
            held_MN = tl.dot(k_MK * tl.exp(since_MK), state_KN, input_precision=PRECISION)
            read_MN = tl.dot(q_MK * tl.exp(since_MK), state_KN, input_precision=PRECISION)
        else:
            since_M1 = tl.exp(since_M)[:, None]
            held_MN = tl.dot(k_MK, state_KN, input_precision=PRECISION) * since_M1
            qk_MM = tl.dot(q_MK, tl.trans(k_MK), input_precision=PRECISION) * between_MM
            read_MN = tl.dot(q_MK, state_KN, input_precision=PRECISION) * since_M1
        wanted_MN = (v_MN - held_MN) * beta_M[:, None]
        written_MN = tl.dot(solve_MM, wanted_MN, input_precision=PRECISION)
        qk_MM = tl.where(m[:, None] >= m[None, :], qk_MM, 0.0)
        read_MN += tl.dot(qk_MM, written_MN, input_precision=PRECISION)
        to_MN = y + (token_M[:, None] * VALUE_HEADS + head) * DV + n[None, :]
        tl.store(to_MN, read_MN.to(y.dtype.element_ty), mask=inside_MN)
        if BY_CHANNEL:
            left_MK = k_MK * tl.exp(last_K[None, :] - since_MK)
            kept_KN = tl.exp(last_K)[:, None]
        else:
            left_MK = k_MK * tl.exp(last - since_M)[:, None]
            kept_KN = tl.exp(last)
        update_KN = tl.dot(tl.trans(left_MK), written_MN, input_precision=PRECISION)
        state_KN = state_KN * kept_KN + update_KN
    tl.store(left + at_KN, state_KN, mask=inside_KN)

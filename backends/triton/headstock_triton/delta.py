"""Kernels of linear attention by the gated delta rule: the convolution, steps, and chunks.

A head's matrix is cut into blocks of columns, which depend on no others; a program keeps one in
registers while it goes through its row. Rows of one token take a step, bound by reading and
writing the matrix; others go by chunks of 16, whose tokens' updates are solved for together.

Shapes: K features of a key, N columns of a block of values, M tokens of a chunk.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.overlap import begin

CHUNK = 16
"""Tokens of a chunk: the least that tensor cores take."""


@triton.jit
def conv_kernel(
    x,
    weight,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    row_of_token,
    y,
    x_stride,
    table_stride,
    kv_stride,
    C,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Convolve some features of token ``program_id(0)``: x [T, C] to y [T, C], by silu."""
    begin(PDL)
    token = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < C
    row = tl.load(row_of_token + token)
    start = tl.load(query_starts + row)
    is_new = tl.load(kv_lengths + row) <= tl.load(query_starts + row + 1) - start
    found = kv + tl.load(page_table + row * table_stride).to(tl.int64) * kv_stride
    sum_C = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(W):  # pyright: ignore[reportGeneralTypeIssues]
        source = token - (W - 1) + i
        is_here = source >= start
        at = x + source.to(tl.int64) * x_stride + c
        here_C = tl.load(at, mask=inside & is_here, other=0.0).to(tl.float32)
        kept = source - start + (W - 1)
        is_before = (source < start) & (is_new == 0)
        before_C = tl.load(found + kept * C + c, mask=inside & is_before, other=0.0)
        w_C = tl.load(weight + c * W + i, mask=inside, other=0.0).to(tl.float32)
        sum_C += (here_C + before_C) * w_C
    out_C = sum_C / (1.0 + tl.exp(-sum_C))
    tl.store(y + token.to(tl.int64) * C + c, out_C.to(y.dtype.element_ty), mask=inside)


@triton.jit
def keep_inputs_kernel(
    x,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    counts,
    x_stride,
    table_stride,
    kv_stride,
    C,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Leave the last W - 1 inputs of row ``program_id(0)`` on its page, some features of them."""
    begin(PDL)
    row = tl.program_id(0)
    if row >= tl.load(counts):
        return
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    i = tl.arange(0, BLOCK_W)
    inside = (i < W - 1)[:, None] & (c < C)[None, :]
    start = tl.load(query_starts + row)
    end = tl.load(query_starts + row + 1)
    is_new = tl.load(kv_lengths + row) <= end - start
    entry = page_table + row * table_stride
    found = kv + tl.load(entry).to(tl.int64) * kv_stride
    left = kv + tl.load(entry + 1).to(tl.int64) * kv_stride
    source = end - (W - 1) + i
    is_here = (source >= start)[:, None]
    at = x + source.to(tl.int64)[:, None] * x_stride + c[None, :]
    here = tl.load(at, mask=inside & is_here, other=0.0).to(tl.float32)
    kept = (source - start + (W - 1))[:, None] * C + c[None, :]
    is_before = (source < start)[:, None] & (is_new == 0)
    before = tl.load(found + kept, mask=inside & is_before, other=0.0)
    tl.debug_barrier()  # the page may be found and left alike
    tl.store(left + i[:, None] * C + c[None, :], here + before, mask=inside)


@triton.jit
def unit(x_MK, scale):
    """Return rows of length ``scale``. float32."""
    x_MK = x_MK.to(tl.float32)
    return x_MK * (scale * tl.rsqrt(tl.sum(x_MK * x_MK, axis=1) + 1e-6))[:, None]


@triton.jit
def gates_of(b_M, a_M, decay, bias):
    """Return the logarithm of the decay at each token, and how much it replaces. float32."""
    x_M = a_M.to(tl.float32) + bias
    soft_M = tl.where(x_M > 20.0, x_M, tl.log(1.0 + tl.exp(tl.minimum(x_M, 20.0))))
    return -tl.exp(decay) * soft_M, 1.0 / (1.0 + tl.exp(-b_M.to(tl.float32)))


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
    a_1 = tl.load(a + token * a_stride + head)
    g, beta = gates_of(b_1, a_1, tl.load(decay + head), tl.load(bias + head))
    entry = page_table + row * table_stride
    place = inputs_size + head * DK * DV
    found = kv + tl.load(entry).to(tl.int64) * kv_stride + place
    left = kv + tl.load(entry + 1).to(tl.int64) * kv_stride + place
    at_KN = k[:, None] * DV + n[None, :]
    is_old = tl.load(kv_lengths + row) > 1
    state_KN = tl.load(found + at_KN, mask=inside_KN & is_old, other=0.0) * tl.exp(g)
    written_N = (v_N - tl.sum(state_KN * k_K[:, None], axis=0)) * beta
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
        a_M = tl.load(a + token_M * a_stride + head, mask=is_there_M, other=0.0)
        g_M, beta_M = gates_of(b_M, a_M, decay_1, bias_1)
        # Tokens past the end leave the state as it is.
        g_M = tl.where(is_there_M, g_M, 0.0)
        beta_M = tl.where(is_there_M, beta_M, 0.0)
        since_M = tl.cumsum(g_M, axis=0)
        last = tl.sum(g_M, axis=0)
        between_MM = tl.exp(tl.minimum(since_M[:, None] - since_M[None, :], 0.0))
        kk_MM = tl.dot(k_MK, tl.trans(k_MK), input_precision=PRECISION)
        # The inverse of 1 + L, row by row: rows above are done when a row is.
        solve_MM = tl.where(is_later_MM, -kk_MM * between_MM * beta_M[:, None], 0.0)
        for i in range(1, BLOCK_M):
            is_row_M1 = (m == i)[:, None]
            row_M = tl.sum(tl.where(is_row_M1, solve_MM, 0.0), axis=0)
            row_M += tl.sum(row_M[:, None] * solve_MM, axis=0)
            solve_MM = tl.where(is_row_M1, row_M[None, :], solve_MM)
        solve_MM += tl.where(m[:, None] == m[None, :], 1.0, 0.0)
        held_MN = tl.dot(k_MK, state_KN, input_precision=PRECISION)
        wanted_MN = (v_MN - held_MN * tl.exp(since_M)[:, None]) * beta_M[:, None]
        written_MN = tl.dot(solve_MM, wanted_MN, input_precision=PRECISION)
        qk_MM = tl.dot(q_MK, tl.trans(k_MK), input_precision=PRECISION)
        qk_MM = tl.where(m[:, None] >= m[None, :], qk_MM * between_MM, 0.0)
        read_MN = tl.dot(q_MK, state_KN, input_precision=PRECISION) * tl.exp(since_M)[:, None]
        read_MN += tl.dot(qk_MM, written_MN, input_precision=PRECISION)
        to_MN = y + (token_M[:, None] * VALUE_HEADS + head) * DV + n[None, :]
        tl.store(to_MN, read_MN.to(y.dtype.element_ty), mask=inside_MN)
        left_MK = k_MK * tl.exp(last - since_M)[:, None]
        update_KN = tl.dot(tl.trans(left_MK), written_MN, input_precision=PRECISION)
        state_KN = state_KN * tl.exp(last) + update_KN
    tl.store(left + at_KN, state_KN, mask=inside_KN)

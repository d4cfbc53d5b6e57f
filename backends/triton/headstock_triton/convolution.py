"""The causal convolution that comes before recurrent states, on pages that begin with its inputs.

Shapes: T tokens, R rows, C features, W tokens of the convolution.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.attention import StepBatch

CONV_BLOCK = 1024
"""Features that a program convolves, of a token or of a row's last inputs."""
PROMPT_BLOCK = (16, 256)
"""Tokens and features that a program convolves where rows have several tokens."""


@triton.jit
def conv_kernel(
    x,
    weight,
    bias,
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
    HAS_BIAS: tl.constexpr,
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
    if HAS_BIAS:
        sum_C += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    out_C = sum_C / (1.0 + tl.exp(-sum_C))
    tl.store(y + token.to(tl.int64) * C + c, out_C.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def conv_prompts_kernel(
    x,
    weight,
    bias,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    row_of_token,
    y,
    num_tokens,
    x_stride,
    table_stride,
    kv_stride,
    C,
    W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Convolve as ``conv_kernel`` does, TOKENS neighbours in a program.

    They use the same weights, and mostly each other's inputs.
    """
    begin(PDL)
    token_T = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_token_T = token_T < num_tokens
    inside_C = c < C
    inside_TC = is_token_T[:, None] & inside_C[None, :]
    row_T = tl.load(row_of_token + token_T, mask=is_token_T, other=0)
    start_T = tl.load(query_starts + row_T)
    is_new_T = tl.load(kv_lengths + row_T) <= tl.load(query_starts + row_T + 1) - start_T
    found_T = kv + tl.load(page_table + row_T * table_stride).to(tl.int64) * kv_stride
    sum_TC = tl.zeros((TOKENS, BLOCK), tl.float32)
    for i in tl.static_range(W):  # pyright: ignore[reportGeneralTypeIssues]
        source_T = token_T - (W - 1) + i
        is_here_T = source_T >= start_T
        at_TC = x + source_T.to(tl.int64)[:, None] * x_stride + c[None, :]
        here_TC = tl.load(at_TC, mask=inside_TC & is_here_T[:, None], other=0.0).to(tl.float32)
        kept_T = (source_T - start_T + (W - 1)) * C
        is_before_T = (source_T < start_T) & (is_new_T == 0)
        at_TC = found_T[:, None] + kept_T[:, None] + c[None, :]
        before_TC = tl.load(at_TC, mask=inside_TC & is_before_T[:, None], other=0.0)
        w_C = tl.load(weight + c * W + i, mask=inside_C, other=0.0).to(tl.float32)
        sum_TC += (here_TC + before_TC) * w_C[None, :]
    if HAS_BIAS:
        sum_TC += tl.load(bias + c, mask=inside_C, other=0.0).to(tl.float32)[None, :]
    out_TC = sum_TC / (1.0 + tl.exp(-sum_TC))
    to_TC = y + token_T.to(tl.int64)[:, None] * C + c[None, :]
    tl.store(to_TC, out_TC.to(y.dtype.element_ty), mask=inside_TC)


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


def convolve(
    x_TC: Tensor,
    weight_CW: Tensor,
    bias_C: Tensor | None,
    kv: Tensor,
    batch: StepBatch,
    target: Target,
) -> Tensor:
    """Convolve, then silu; leave each row's last inputs on its page. [T, C]

    Args:
        x_TC: Features, side by side. [T, C]
        weight_CW: The newest token's last. [C, W]
        bias_C: Added before silu; None: nothing. [C]
        kv: The layer's pages, which begin with the inputs [W - 1, C].
        batch: The step.
        target: What to launch for.
    """
    (num_tokens, size), width = x_TC.shape, weight_CW.shape[1]
    mixed_TC = torch.empty((num_tokens, size), dtype=x_TC.dtype, device=x_TC.device)
    blocks = cdiv(size, CONV_BLOCK)
    strides = (x_TC.stride(0), batch.page_table_RP.stride(0), kv.stride(0))
    args = (
        x_TC,
        weight_CW,
        weight_CW if bias_C is None else bias_C,
        kv,
        batch.page_table_RP,
        batch.query_starts_R1,
        batch.kv_lengths_R,
        batch.row_of_token_T,
        mixed_TC,
    )
    options = {"W": width, "HAS_BIAS": bias_C is not None, **target.launch(4)}
    if batch.max_query == 1:
        conv_kernel[(num_tokens, blocks)](*args, *strides, size, BLOCK=CONV_BLOCK, **options)
    else:
        tokens, features = PROMPT_BLOCK
        conv_prompts_kernel[(cdiv(num_tokens, tokens), cdiv(size, features))](
            *args, num_tokens, *strides, size, TOKENS=tokens, BLOCK=features, **options
        )
    keep_inputs_kernel[(batch.num_rows, blocks)](
        x_TC,
        kv,
        batch.page_table_RP,
        batch.query_starts_R1,
        batch.kv_lengths_R,
        batch.counts,
        *strides,
        size,
        W=width,
        BLOCK_W=next_power_of_2(width - 1),
        BLOCK=CONV_BLOCK,
        **target.launch(4),
    )
    return mixed_TC

"""Residual streams that layers read a mixture of, and are mixed into again.

Weights are made in two launches: products of the streams with what makes weights of them, a share
of the features a program, and what follows from their sums. What the streams' norm divides by is
one number a token: it is applied to the products.

Shapes: T tokens, N streams side by side, D hidden size, C = N D, M tokens of a tile, X weights.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

MAX_STREAMS = 8
"""Streams whose weights a program has room for."""
BLOCK = 1024
"""Features that a program spreads or sums together."""
FEATURES = 64
"""Features that are multiplied together."""
LEAST_SHARE = 512
"""Features a program, at least."""
TOKENS, MANY_TOKENS = 16, 64
"""Tokens of a tile, in steps of few tokens and of many."""


@triton.jit
def spread_kernel(x, out, x_stride, D, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Copy some features of token ``program_id(0)`` into each stream."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x_D = tl.load(x + token * x_stride + d, mask=d < D)
    for stream in tl.static_range(N):
        tl.store(out + (token * N + stream) * D + d, x_D, mask=d < D)


@triton.jit(do_not_specialize=["T", "SHARE"])
def multiply_streams_kernel(
    x,
    mix,
    partial,
    x_stride,
    T,
    C,
    SHARE,
    X: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Multiply share ``program_id(1)`` of the features of BLOCK_M tokens.

    ``partial`` gets the products, and behind the last of them the sum of squares: float32
    [shares, T, BLOCK_X].
    """
    begin(PDL)
    share = tl.program_id(1)
    token_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    number_X = tl.arange(0, BLOCK_X)
    within_C = tl.arange(0, BLOCK_C)
    is_there_M1 = (token_M < T)[:, None]
    line_M1 = x + token_M.to(tl.int64)[:, None] * x_stride
    made_MX = tl.zeros((BLOCK_M, BLOCK_X), tl.float32)
    square_M = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(share * SHARE, tl.minimum((share + 1) * SHARE, C), BLOCK_C):
        c = first + within_C
        x_MC = tl.load(line_M1 + c[None, :], mask=is_there_M1 & (c < C)[None, :], other=0.0)
        x_MC = x_MC.to(tl.float32)
        inside_CX = (c < C)[:, None] & (number_X < X)[None, :]
        mix_CX = tl.load(mix + number_X[None, :] * C + c[:, None], mask=inside_CX, other=0.0)
        made_MX = tl.dot(x_MC, mix_CX, made_MX, input_precision=PRECISION)
        square_M += tl.sum(x_MC * x_MC, axis=1)
    made_MX = tl.where((number_X == X)[None, :], square_M[:, None], made_MX)
    at_MX = (share * T + token_M)[:, None] * BLOCK_X + number_X[None, :]
    tl.store(partial + at_MX, made_MX, mask=is_there_M1)


@triton.jit
def made_weights(
    partial_S, is_there_S, base, scale, inverse, at_N, inside_N,
):  # fmt: skip
    """Return the weights of a token at some places, [N], before they are bounded.

    ``partial_S`` is where each share's products of the token are.
    """
    inside_SN = is_there_S[:, None] & inside_N[None, :]
    made_SN = tl.load(partial_S[:, None] + at_N[None, :], mask=inside_SN, other=0.0)
    base_N = tl.load(base + at_N, mask=inside_N, other=0.0)
    return tl.sum(made_SN, axis=0) * inverse * tl.load(scale) + base_N


@triton.jit
def balanced(mix_NM, inside_NM, eps, ROUNDS: tl.constexpr):
    """Return a matrix whose rows and columns sum to 1, of logits: rows, then columns, in turn."""
    # Rows of no stream become zeros, and stay so.
    highest_N1 = tl.maximum(tl.max(mix_NM, axis=1, keep_dims=True), -1.0e38)
    mix_NM = tl.exp(mix_NM - highest_N1)
    whole_N1 = tl.sum(mix_NM, axis=1, keep_dims=True)
    mix_NM = mix_NM / tl.where(whole_N1 > 0.0, whole_N1, 1.0)
    mix_NM = tl.where(inside_NM, mix_NM + eps, 0.0)
    mix_NM = mix_NM / (tl.sum(mix_NM, axis=0, keep_dims=True) + eps)
    for _ in range(ROUNDS - 1):
        mix_NM = mix_NM / (tl.sum(mix_NM, axis=1, keep_dims=True) + eps)
        mix_NM = mix_NM / (tl.sum(mix_NM, axis=0, keep_dims=True) + eps)
    return mix_NM


@triton.jit
def store_mixing(
    partial_S, is_there_S, base, scale, inverse, write, mixing, n, eps, N: tl.constexpr,
    BLOCK_N: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Store a token's weights of writing and mixing, in its first program."""
    if tl.program_id(1) == 0:
        write_N = made_weights(partial_S, is_there_S, base, scale + 1, inverse, N + n, n < N)
        tl.store(write + n, 2 * tl.sigmoid(write_N), mask=n < N)
        # Logits of mixing lie row after row; rows have room for a power of two of them.
        at = tl.arange(0, BLOCK_N * BLOCK_N)
        row, column = at // BLOCK_N, at % BLOCK_N
        inside = (row < N) & (column < N)
        place = 2 * N + row * N + column
        mix = made_weights(partial_S, is_there_S, base, scale + 2, inverse, place, inside)
        mix_NM = tl.reshape(tl.where(inside, mix, float("-inf")), [BLOCK_N, BLOCK_N])
        inside_NM = (n < N)[:, None] & (n < N)[None, :]
        mix_NM = balanced(mix_NM, inside_NM, eps, ROUNDS)
        tl.store(mixing + n[:, None] * N + n[None, :], mix_NM, mask=inside_NM)


@triton.jit(do_not_specialize=["SHARES", "T"])
def collapse_kernel(
    x,
    partial,
    base,
    scale,
    out,
    write,
    mixing,
    x_stride,
    SHARES,
    T,
    D,
    norm_eps,
    eps,
    N: tl.constexpr,
    X: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
    ROUNDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Sum some features of token ``program_id(0)``'s streams by the weights of reading.

    The first program of a token stores its weights of writing and mixing, too. Where ROUNDS is 0
    there are none of these: X is N.
    """
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    share_S = tl.arange(0, BLOCK_S)
    is_there_S = share_S < SHARES
    partial_S = partial + (share_S * T + token) * BLOCK_X
    square = tl.sum(tl.load(partial_S + X, mask=is_there_S, other=0.0), axis=0)
    inverse = tl.rsqrt(square / (D * N) + norm_eps)
    n = tl.arange(0, BLOCK_N)
    read_N = made_weights(partial_S, is_there_S, base, scale, inverse, n, n < N)
    read_N = tl.sigmoid(read_N) + eps
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sum_D = tl.zeros((BLOCK,), tl.float32)
    for stream in tl.static_range(N):
        at_D = x + token * x_stride + stream * D + d
        x_D = tl.load(at_D, mask=d < D, other=0.0).to(tl.float32)
        sum_D += tl.sum(tl.where(n == stream, read_N, 0.0), axis=0) * x_D
    tl.store(out + token * D + d, sum_D.to(out.dtype.element_ty), mask=d < D)
    if ROUNDS > 0:
        store_mixing(
            partial_S, is_there_S, base, scale, inverse, write + token * N,
            mixing + token * N * N, n, eps, N, BLOCK_N, ROUNDS,
        )  # fmt: skip


@triton.jit
def hyper_expand_kernel(
    x,
    y,
    write,
    mix,
    out,
    x_stride,
    y_stride,
    write_stride,
    mix_stride,
    D,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Mix some features of the streams of token ``program_id(0)``, and add the layer's."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y_D = tl.load(y + token * y_stride + d, mask=d < D, other=0.0).to(tl.float32)
    for stream in tl.static_range(N):
        sum_D = tl.load(write + token * write_stride + stream) * y_D
        for other in tl.static_range(N):  # pyright: ignore[reportGeneralTypeIssues]
            coef = tl.load(mix + token * mix_stride + other * N + stream)
            at_D = x + token * x_stride + other * D + d
            sum_D += coef * tl.load(at_D, mask=d < D, other=0.0).to(tl.float32)
        at_D = out + (token * N + stream) * D + d
        tl.store(at_D, sum_D.to(out.dtype.element_ty), mask=d < D)


class HyperConnections:
    """The ops on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def spread_streams(self, x_TD: Tensor, *, num_streams: int) -> Tensor:
        """See :func:`headstock.ops.hyper_connections.spread_streams`."""
        x_TD = _lines(x_TD)
        num_tokens, size = x_TD.shape
        out_TC = x_TD.new_empty((num_tokens, num_streams * size))
        if num_tokens:
            spread_kernel[(num_tokens, cdiv(size, BLOCK))](
                x_TD,
                out_TC,
                x_TD.stride(0),
                size,
                N=num_streams,
                BLOCK=BLOCK,
                **self._target.launch(4),
            )
        return out_TC

    def collapse_streams(
        self,
        x_TC: Tensor,
        mix_XC: Tensor,
        base_X: Tensor,
        scale_3: Tensor,
        *,
        num_streams: int,
        norm_eps: float,
        eps: float,
        num_rounds: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :func:`headstock.ops.hyper_connections.collapse_streams`."""
        num_tokens, where = x_TC.shape[0], x_TC.device
        write_TN = torch.empty((num_tokens, num_streams), dtype=torch.float32, device=where)
        mix_TM = torch.empty((num_tokens, num_streams**2), dtype=torch.float32, device=where)
        y_TD = self._collapse(
            x_TC,
            (mix_XC, base_X, scale_3),
            (write_TN, mix_TM),
            (num_streams, num_rounds),
            (norm_eps, eps),
        )
        return y_TD, write_TN, mix_TM

    def merge_streams(
        self,
        x_TC: Tensor,
        mix_NC: Tensor,
        base_N: Tensor,
        scale_1: Tensor,
        *,
        norm_eps: float,
        eps: float,
    ) -> Tensor:
        """See :func:`headstock.ops.hyper_connections.merge_streams`."""
        weights, nowhere = (mix_NC, base_N, scale_1), (base_N, base_N)
        return self._collapse(x_TC, weights, nowhere, (mix_NC.shape[0], 0), (norm_eps, eps))

    def _collapse(
        self,
        x_TC: Tensor,
        weights: tuple[Tensor, Tensor, Tensor],
        made: tuple[Tensor, Tensor],
        counts: tuple[int, int],
        eps: tuple[float, float],
    ) -> Tensor:
        """Return the weighted sum; ``counts`` are streams and rounds, ``made`` is written to."""
        x_TC, (mix_XC, base_X, scale), (num_streams, num_rounds) = _lines(x_TC), weights, counts
        (num_tokens, width), num_made = x_TC.shape, mix_XC.shape[0]
        size = width // num_streams
        y_TD = x_TC.new_empty((num_tokens, size))
        if not num_tokens:
            return y_TD
        partial = self._multiply(x_TC, mix_XC.contiguous())
        collapse_kernel[(num_tokens, cdiv(size, BLOCK))](
            x_TC,
            partial,
            base_X,
            scale,
            y_TD,
            *made,
            x_TC.stride(0),
            partial.shape[0],
            num_tokens,
            size,
            *eps,
            N=num_streams,
            X=num_made,
            BLOCK_X=partial.shape[2],
            BLOCK_N=next_power_of_2(num_streams),
            BLOCK_S=next_power_of_2(partial.shape[0]),
            BLOCK=BLOCK,
            ROUNDS=num_rounds,
            **self._target.launch(4),
        )
        return y_TD

    def _multiply(self, x_TC: Tensor, mix_XC: Tensor) -> Tensor:
        """Return products, and sums of squares behind them. float32. [shares, T, BLOCK_X]"""
        (num_tokens, width), num_made = x_TC.shape, mix_XC.shape[0]
        block_m = TOKENS if num_tokens <= TOKENS else MANY_TOKENS
        tiles = cdiv(num_tokens, block_m)
        shares = min(cdiv(self._target.num_sms, tiles), cdiv(width, LEAST_SHARE))
        share = cdiv(cdiv(width, shares), FEATURES) * FEATURES
        block_x = max(16, next_power_of_2(num_made + 1))
        shape = (cdiv(width, share), num_tokens, block_x)
        partial = torch.empty(shape, dtype=torch.float32, device=x_TC.device)
        multiply_streams_kernel[(tiles, shape[0])](
            x_TC,
            mix_XC,
            partial,
            x_TC.stride(0),
            num_tokens,
            width,
            share,
            X=num_made,
            BLOCK_M=block_m,
            BLOCK_X=block_x,
            BLOCK_C=FEATURES,
            PRECISION=self._target.state_precision(x_TC.dtype),
            **self._target.launch(4),
        )
        return partial

    def expand_streams(
        self, x_TC: Tensor, y_TD: Tensor, write_TN: Tensor, mix_TM: Tensor
    ) -> Tensor:
        """See :func:`headstock.ops.hyper_connections.expand_streams`."""
        x_TC, y_TD, write_TN, mix_TM = (_lines(x) for x in (x_TC, y_TD, write_TN, mix_TM))
        num_tokens, size = y_TD.shape
        out_TC = x_TC.new_empty(x_TC.shape)
        if num_tokens:
            hyper_expand_kernel[(num_tokens, cdiv(size, BLOCK))](
                x_TC,
                y_TD,
                write_TN,
                mix_TM,
                out_TC,
                x_TC.stride(0),
                y_TD.stride(0),
                write_TN.stride(0),
                mix_TM.stride(0),
                size,
                N=write_TN.shape[1],
                BLOCK=BLOCK,
                **self._target.launch(4),
            )
        return out_TC


def _lines(x: Tensor) -> Tensor:
    """Return ``x``, a token's features next to each other."""
    return x if x.stride(1) == 1 else x.contiguous()

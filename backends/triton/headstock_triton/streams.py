"""Hidden states of several streams, and features of which only the highest count.

Shapes: T tokens, A streams of a token side by side, D hidden size, C = A D, F features.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock.ops.streams import LEAST_SQUARE
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

BLOCK = 1024
"""Features that a program looks at together."""


@triton.jit
def predict_kernel(
    x,
    coefs,
    out,
    x_stride,
    coef_stride,
    D,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Predict some features of stream ``program_id(1)`` of token ``program_id(0)``."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    stream = tl.program_id(1)
    d = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside_D = d < D
    sum_D = tl.zeros((BLOCK,), tl.float32)
    for other in tl.static_range(A):
        coef = tl.load(coefs + token * coef_stride + stream * A + other).to(tl.float32)
        x_D = tl.load(x + token * x_stride + other * D + d, mask=inside_D, other=0.0)
        sum_D += coef * x_D.to(tl.float32)
    own_D = tl.load(x + token * x_stride + stream * D + d, mask=inside_D, other=0.0)
    out_D = own_D.to(tl.float32) + sum_D
    tl.store(out + (token * A + stream) * D + d, out_D.to(out.dtype.element_ty), mask=inside_D)


@triton.jit
def add_kernel(
    x,
    y,
    coefs,
    out,
    x_stride,
    y_stride,
    coef_stride,
    D,
    A,
    CORRECTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Add ``y`` to the streams but the first, or what the first lacks of it to each by its share.

    One program computes some features of stream ``program_id(1)`` of token ``program_id(0)``.
    """
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    stream = tl.program_id(1)
    d = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside_D = d < D
    x_D = tl.load(x + token * x_stride + stream * D + d, mask=inside_D, other=0.0).to(tl.float32)
    y_D = tl.load(y + token * y_stride + d, mask=inside_D, other=0.0).to(tl.float32)
    if CORRECTS:
        first_D = tl.load(x + token * x_stride + d, mask=inside_D, other=0.0).to(tl.float32)
        share = tl.load(coefs + token * coef_stride + stream).to(tl.float32) + 1
        x_D += (y_D - first_D) * share
    else:
        x_D = tl.where(stream > 0, x_D + y_D, x_D)
    tl.store(out + (token * A + stream) * D + d, x_D.to(out.dtype.element_ty), mask=inside_D)


@triton.jit
def match_kernel(
    x, like, out, x_stride, like_stride, D, A, LEAST, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Bring stream ``program_id(1)`` of token ``program_id(0)`` to the magnitude of ``like``."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    stream = tl.program_id(1)
    d = tl.arange(0, BLOCK)
    own_D = tl.zeros((BLOCK,), tl.float32)
    wanted_D = tl.zeros((BLOCK,), tl.float32)
    from_x = x + token * x_stride + stream * D
    for start in range(0, D, BLOCK):
        inside_D = start + d < D
        x_D = tl.load(from_x + start + d, mask=inside_D, other=0.0).to(tl.float32)
        like_D = tl.load(like + token * like_stride + start + d, mask=inside_D, other=0.0)
        own_D += x_D * x_D
        wanted_D += like_D.to(tl.float32) * like_D.to(tl.float32)
    own = tl.sqrt(tl.maximum(tl.sum(own_D, axis=0) / D, LEAST))
    wanted = tl.sqrt(tl.sum(wanted_D, axis=0) / D)
    to_out = out + (token * A + stream) * D
    for start in range(0, D, BLOCK):
        inside_D = start + d < D
        x_D = tl.load(from_x + start + d, mask=inside_D, other=0.0).to(tl.float32)
        y_D = x_D * wanted / own
        tl.store(to_out + start + d, y_D.to(out.dtype.element_ty), mask=inside_D)


@triton.jit
def mean_kernel(x, out, x_stride, D, A: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Average some features over the streams of token ``program_id(0)``."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_D = d < D
    sum_D = tl.zeros((BLOCK,), tl.float32)
    for stream in tl.static_range(A):
        x_D = tl.load(x + token * x_stride + stream * D + d, mask=inside_D, other=0.0)
        sum_D += x_D.to(tl.float32)
    tl.store(out + token * D + d, (sum_D / A).to(out.dtype.element_ty), mask=inside_D)


@triton.jit
def moments_kernel(x, sums, x_stride, F, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Add up the features of token ``program_id(0)``, and their squares."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, BLOCK)
    sum_F = tl.zeros((BLOCK,), tl.float32)
    square_F = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, F, BLOCK):
        x_F = tl.load(x + token * x_stride + start + f, mask=start + f < F, other=0.0)
        x_F = x_F.to(tl.float32)
        sum_F += x_F
        square_F += x_F * x_F
    tl.store(sums + token * 2, tl.sum(sum_F, axis=0))
    tl.store(sums + token * 2 + 1, tl.sum(square_F, axis=0))


@triton.jit
def keep_kernel(
    x,
    sums,
    out,
    x_stride,
    sums_stride,
    F,
    WIDTH,
    DEVIATIONS,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Subtract token ``program_id(0)``'s threshold of some features; under it they become 0."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside_F = f < F
    mean = tl.load(sums + token * sums_stride) / WIDTH
    square = tl.load(sums + token * sums_stride + 1) / WIDTH
    threshold = mean + tl.sqrt(tl.maximum(square - mean * mean, 0.0)) * DEVIATIONS
    x_F = tl.load(x + token * x_stride + f, mask=inside_F, other=0.0).to(tl.float32)
    over_F = tl.maximum(x_F - threshold, 0.0)
    tl.store(out + token * F + f, over_F.to(out.dtype.element_ty), mask=inside_F)


class Streams:
    """The ops on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def predict_streams(self, x_TC: Tensor, coefs_TB: Tensor, *, num_streams: int) -> Tensor:
        """See :func:`headstock.ops.streams.predict_streams`."""
        x_TC, coefs_TB = _lines(x_TC), _lines(coefs_TB)
        num_tokens, size = x_TC.shape[0], x_TC.shape[1] // num_streams
        out_TC = _like(x_TC)
        predict_kernel[(num_tokens, num_streams, cdiv(size, BLOCK))](
            x_TC,
            coefs_TB,
            out_TC,
            x_TC.stride(0),
            coefs_TB.stride(0),
            size,
            A=num_streams,
            BLOCK=BLOCK,
            **self._target.launch(4),
        )
        return out_TC

    def correct_streams(self, x_TC: Tensor, computed_TD: Tensor, coefs_TA: Tensor) -> Tensor:
        """See :func:`headstock.ops.streams.correct_streams`."""
        return self._add(x_TC, computed_TD, _lines(coefs_TA), corrects=True)

    def add_to_others(self, x_TC: Tensor, y_TD: Tensor) -> Tensor:
        """See :func:`headstock.ops.streams.add_to_others`."""
        return self._add(x_TC, y_TD, y_TD, corrects=False)

    def _add(self, x_TC: Tensor, y_TD: Tensor, coefs: Tensor, *, corrects: bool) -> Tensor:
        x_TC, y_TD = _lines(x_TC), _lines(y_TD)
        num_tokens, size = y_TD.shape
        num_streams = x_TC.shape[1] // size
        out_TC = _like(x_TC)
        add_kernel[(num_tokens, num_streams, cdiv(size, BLOCK))](
            x_TC,
            y_TD,
            coefs,
            out_TC,
            x_TC.stride(0),
            y_TD.stride(0),
            coefs.stride(0),
            size,
            num_streams,
            CORRECTS=corrects,
            BLOCK=BLOCK,
            **self._target.launch(4),
        )
        return out_TC

    def match_magnitudes(self, x_TC: Tensor, like_TD: Tensor) -> Tensor:
        """See :func:`headstock.ops.streams.match_magnitudes`."""
        x_TC, like_TD = _lines(x_TC), _lines(like_TD)
        num_tokens, size = like_TD.shape
        num_streams = x_TC.shape[1] // size
        out_TC = _like(x_TC)
        match_kernel[(num_tokens, num_streams)](
            x_TC,
            like_TD,
            out_TC,
            x_TC.stride(0),
            like_TD.stride(0),
            size,
            num_streams,
            LEAST_SQUARE,
            BLOCK=BLOCK,
            **self._target.launch(4),
        )
        return out_TC

    def mean_of_streams(self, x_TC: Tensor, *, num_streams: int) -> Tensor:
        """See :func:`headstock.ops.streams.mean_of_streams`."""
        x_TC = _lines(x_TC)
        num_tokens, size = x_TC.shape[0], x_TC.shape[1] // num_streams
        out_TD = torch.empty((num_tokens, size), dtype=x_TC.dtype, device=x_TC.device)
        mean_kernel[(num_tokens, cdiv(size, BLOCK))](
            x_TC,
            out_TD,
            x_TC.stride(0),
            size,
            A=num_streams,
            BLOCK=BLOCK,
            **self._target.launch(4),
        )
        return out_TD

    def sum_moments(self, x_TF: Tensor) -> Tensor:
        """See :func:`headstock.ops.sparse.sum_moments`."""
        x_TF = _lines(x_TF)
        num_tokens, size = x_TF.shape
        sums_T2 = torch.empty((num_tokens, 2), dtype=torch.float32, device=x_TF.device)
        moments_kernel[(num_tokens,)](
            x_TF,
            sums_T2,
            x_TF.stride(0),
            size,
            BLOCK=min(4096, next_power_of_2(size)),
            **self._target.launch(8),
        )
        return sums_T2

    def keep_above(self, x_TF: Tensor, sums_T2: Tensor, *, width: int, deviations: float) -> Tensor:
        """See :func:`headstock.ops.sparse.keep_above`."""
        x_TF, sums_T2 = _lines(x_TF), _lines(sums_T2)
        num_tokens, size = x_TF.shape
        out_TF = _like(x_TF)
        keep_kernel[(num_tokens, cdiv(size, BLOCK))](
            x_TF,
            sums_T2,
            out_TF,
            x_TF.stride(0),
            sums_T2.stride(0),
            size,
            width,
            float(deviations),
            BLOCK=BLOCK,
            **self._target.launch(4),
        )
        return out_TF


def _lines(x: Tensor) -> Tensor:
    """Return ``x``, a token's features next to each other."""
    return x if x.stride(1) == 1 else x.contiguous()


def _like(x_TC: Tensor) -> Tensor:
    return torch.empty(x_TC.shape, dtype=x_TC.dtype, device=x_TC.device)

"""RMS norm, with or without the residual addition: one program a row."""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.overlap import begin
from headstock_triton.target import Target, next_power_of_2


@triton.jit
def weighted(normal, weight, out):
    """Return normal * weight as ``out`` holds it; with a wider weight it is rounded once."""
    if weight.dtype == out.dtype.element_ty:
        result = normal.to(out.dtype.element_ty) * weight
    else:
        result = (normal * weight).to(out.dtype.element_ty)
    return result


@triton.jit
def rms_norm_kernel(
    x, weight, out, stride, eps, D: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Normalise row ``program_id(0)`` of x [T, D] into out [T, D]; out is contiguous."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    w = tl.load(weight + columns, mask=inside, other=0.0)
    begin(PDL)
    x32 = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x32 * x32, axis=0) / D + eps)
    tl.store(out + row * D + columns, weighted(x32 * inverse, w, out), mask=inside)


@triton.jit
def add_rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    stride_x,
    stride_residual,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Add x to residual in place, then normalise the sum into out; rows of D."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    w = tl.load(weight + columns, mask=inside, other=0.0)
    begin(PDL)
    sum_at = residual + row * stride_residual + columns
    x32 = tl.load(x + row * stride_x + columns, mask=inside, other=0.0).to(tl.float32)
    total = (x32 + tl.load(sum_at, mask=inside, other=0.0).to(tl.float32)).to(out.dtype.element_ty)
    tl.store(sum_at, total, mask=inside)
    total32 = total.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(total32 * total32, axis=0) / D + eps)
    tl.store(out + row * D + columns, weighted(total32 * inverse, w, out), mask=inside)


class Norms:
    """The norm ops on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
        """See :func:`headstock.ops.norm.rms_norm`."""
        size = x_TD.shape[-1]
        rows = x_TD.reshape(-1, size)
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        out = torch.empty(rows.shape, dtype=x_TD.dtype, device=x_TD.device)
        if rows.shape[0]:
            rms_norm_kernel[(rows.shape[0],)](
                rows,
                weight_D,
                out,
                rows.stride(0),
                eps,
                D=size,
                BLOCK=next_power_of_2(size),
                **self._target.launch(warps_for(size)),
            )
        return out.view(x_TD.shape)

    def add_rms_norm(
        self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See :func:`headstock.ops.norm.add_rms_norm`; the sum is written into the residual."""
        num_rows, size = x_TD.shape
        out_TD = torch.empty((num_rows, size), dtype=x_TD.dtype, device=x_TD.device)
        if num_rows:
            add_rms_norm_kernel[(num_rows,)](
                x_TD,
                residual_TD,
                weight_D,
                out_TD,
                x_TD.stride(0),
                residual_TD.stride(0),
                eps,
                D=size,
                BLOCK=next_power_of_2(size),
                **self._target.launch(warps_for(size)),
            )
        return out_TD, residual_TD


def warps_for(size: int) -> int:
    """Warps for a row of ``size``: eight elements a thread, at most eight warps."""
    return min(8, max(1, next_power_of_2(size) // 256))

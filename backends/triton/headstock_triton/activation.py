"""Activations, with a gate and without."""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock.ops.activation_kinds import SILU, Activation
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv


@triton.jit
def clip(gate, up, p0, KIND: tl.constexpr):
    """Bound gate and up features, and add 1 to up, where the kind does; both float32."""
    if KIND == 4:  # clipped-swiglu
        gate = tl.minimum(gate, p0)
        up = tl.minimum(tl.maximum(up, -p0), p0) + 1
    elif KIND == 6:  # bounded-swiglu; silu is bounded when it is made
        up = tl.minimum(tl.maximum(up, -p0), p0)
    elif KIND == 7:  # limited-swiglu
        gate = tl.minimum(gate, p0)
        up = tl.minimum(tl.maximum(up, -p0), p0)
    return gate, up


@triton.jit
def activate(x, p0, p1, p2, p3, KIND: tl.constexpr):
    """Return what the kind of this number makes of a gate, float32, bounded where it has to be."""
    if KIND == 0 or KIND == 7:  # silu, limited-swiglu
        y = x * tl.sigmoid(x)
    elif KIND == 1:  # gelu-tanh: 0.5 x (1 + tanh u) is x sigmoid(2 u)
        y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif KIND == 2:  # gelu
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif KIND == 3:  # relu2
        y = tl.where(x < 0, 0.0, x)
        y = y * y
    elif KIND == 4:  # clipped-swiglu
        y = x * tl.sigmoid(p1 * x)
    elif KIND == 6:  # bounded-swiglu
        y = tl.minimum(x * tl.sigmoid(x), p0)
    else:  # xielu
        below = (tl.exp(tl.minimum(x, p3)) - 1 - x) * p1
        y = tl.where(x > 0, p0 * x * x, below) + p2 * x
    return y


@triton.jit
def silu_and_mul_kernel(
    gates,
    ups,
    out,
    gate_stride,
    up_stride,
    F,
    p0,
    p1,
    p2,
    p3,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute columns [BLOCK * program_id(1), …) of row program_id(0)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < F
    begin(PDL)
    gate = tl.load(gates + row * gate_stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(ups + row * up_stride + columns, mask=inside, other=0.0)
    if KIND == 4 or KIND == 6 or KIND == 7:
        gate, up = clip(gate, up.to(tl.float32), p0, KIND)
    activated = activate(gate, p0, p1, p2, p3, KIND).to(out.dtype.element_ty)
    tl.store(out + row * F + columns, activated * up, mask=inside)


@triton.jit
def activate_kernel(
    x,
    out,
    stride,
    F,
    p0,
    p1,
    p2,
    p3,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute columns [BLOCK * program_id(1), …) of row program_id(0)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < F
    begin(PDL)
    x32 = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    y = activate(x32, p0, p1, p2, p3, KIND)
    tl.store(out + row * F + columns, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def soft_cap_kernel(x, out, stride, F, cap, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Compute columns [BLOCK * program_id(1), …) of row program_id(0) of cap * tanh(x / cap)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < F
    begin(PDL)
    share = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32) / cap
    # Near 0 differences would cancel: there the series of the hyperbolic tangent is exact enough.
    square = share * share
    near = share * (1 + square * (-1.0 / 3 + square * (2.0 / 15 - square * 17.0 / 315)))
    far = 2 * tl.sigmoid(2 * share) - 1
    capped = cap * tl.where(tl.abs(share) < 0.2, near, far)
    tl.store(out + row * F + columns, capped.to(out.dtype.element_ty), mask=inside)


class Activations:
    """The activation ops on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def silu_and_mul(self, gate_up_TG: Tensor, *, activation: Activation = SILU) -> Tensor:
        """See :func:`headstock.ops.activation.silu_and_mul`."""
        size = gate_up_TG.shape[1] // 2
        return self._join(gate_up_TG[:, :size], gate_up_TG[:, size:], activation)

    def activate_and_mul(
        self, gate_TF: Tensor, x_TF: Tensor, *, activation: Activation = SILU
    ) -> Tensor:
        """See :func:`headstock.ops.activation.activate_and_mul`."""
        x_TF = x_TF if x_TF.stride(1) == 1 else x_TF.contiguous()
        gate_TF = gate_TF if gate_TF.stride(1) == 1 else gate_TF.contiguous()
        return self._join(gate_TF, x_TF, activation)

    def _join(self, gate_TF: Tensor, up_TF: Tensor, activation: Activation) -> Tensor:
        num_rows, size = gate_TF.shape
        out_TF = torch.empty((num_rows, size), dtype=gate_TF.dtype, device=gate_TF.device)
        if num_rows:
            block = 1024
            silu_and_mul_kernel[(num_rows, cdiv(size, block))](
                gate_TF,
                up_TF,
                out_TF,
                gate_TF.stride(0),
                up_TF.stride(0),
                size,
                *activation.padded,
                KIND=activation.number,
                BLOCK=block,
                **self._target.launch(4),
            )
        return out_TF

    def activate(self, x_TF: Tensor, *, activation: Activation = SILU) -> Tensor:
        """See :func:`headstock.ops.activation.activate`."""
        num_rows, size = x_TF.shape
        out_TF = torch.empty((num_rows, size), dtype=x_TF.dtype, device=x_TF.device)
        if num_rows:
            block = 1024
            activate_kernel[(num_rows, cdiv(size, block))](
                x_TF,
                out_TF,
                x_TF.stride(0),
                size,
                *activation.padded,
                KIND=activation.number,
                BLOCK=block,
                **self._target.launch(4),
            )
        return out_TF

    def soft_cap(self, x_TA: Tensor, *, cap: float) -> Tensor:
        """See :func:`headstock.ops.outputs.soft_cap`."""
        num_rows, size = x_TA.shape
        out_TA = torch.empty((num_rows, size), dtype=x_TA.dtype, device=x_TA.device)
        if num_rows:
            block = 1024
            soft_cap_kernel[(num_rows, cdiv(size, block))](
                x_TA, out_TA, x_TA.stride(0), size, cap, BLOCK=block, **self._target.launch(4)
            )
        return out_TA

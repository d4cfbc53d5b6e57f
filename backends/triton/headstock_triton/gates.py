"""The gates on the output of attention and of state spaces. Shapes: as in the ops' module."""

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

GATE_BLOCK = 1024
"""Features that a program gates."""
SIGMOID, SILU, SOFTPLUS = range(3)
"""What makes factors of gates, as the kernel knows it by number."""


@triton.jit
def gated_norm_kernel(
    x,
    gate,
    weight,
    out,
    gate_stride,
    eps,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Normalise and gate head ``program_id(1)`` of token ``program_id(0)``."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, BLOCK)
    inside = d < D
    at = (token * HEADS + head) * D + d
    x32 = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x32 * x32, axis=0) / D + eps)
    normal = (x32 * inverse).to(out.dtype.element_ty) * tl.load(weight + d, mask=inside, other=0.0)
    g = tl.load(gate + token * gate_stride + head * D + d, mask=inside, other=0.0).to(tl.float32)
    y = normal.to(tl.float32) * (g / (1.0 + tl.exp(-g)))
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gate_kernel(
    x,
    gate,
    out,
    x_stride,
    gate_stride,
    C,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Gate some features of token ``program_id(0)``; ``SIZE`` neighbours have one gate."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < C
    x32 = tl.load(x + token * x_stride + c, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + token * gate_stride + c // SIZE, mask=inside, other=0.0).to(tl.float32)
    if KIND == 2:  # softplus
        y = x32 * (tl.maximum(g, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(g))))
    else:
        y = x32 / (1.0 + tl.exp(-g))
        if KIND == 1:  # silu
            y *= g
    tl.store(out + token * C + c, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def group_norm_kernel(
    x,
    gate,
    weight,
    out,
    x_stride,
    gate_stride,
    eps,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    GATES_FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Gate and normalise group ``program_id(1)`` of token ``program_id(0)``."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < SIZE
    c = tl.program_id(1) * SIZE + i
    x32 = tl.load(x + token * x_stride + c, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + token * gate_stride + c, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + c, mask=inside, other=0.0)
    g = g / (1.0 + tl.exp(-g))
    if GATES_FIRST:
        x32 *= g
    x32 *= tl.rsqrt(tl.sum(x32 * x32, axis=0) / SIZE + eps)
    if GATES_FIRST:
        y = x32.to(out.dtype.element_ty).to(tl.float32) * w.to(tl.float32)
    else:
        y = x32 * w.to(tl.float32) * g
    tl.store(out + token * (GROUPS * SIZE) + c, y.to(out.dtype.element_ty), mask=inside)


class Gates:
    """The gates on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def gated_norm(
        self, x_THD: Tensor, gate_THD: Tensor, weight_D: Tensor, *, eps: float
    ) -> Tensor:
        """See :func:`headstock.ops.gates.gated_norm`."""
        x_THD = x_THD.contiguous()
        num_tokens, heads, size = x_THD.shape
        if gate_THD.stride()[1:] != (size, 1):
            gate_THD = gate_THD.contiguous()
        out_THD = torch.empty_like(x_THD)
        gated_norm_kernel[(num_tokens, heads)](
            x_THD,
            gate_THD,
            weight_D,
            out_THD,
            gate_THD.stride(0),
            eps,
            HEADS=heads,
            D=size,
            BLOCK=next_power_of_2(size),
            **self._target.launch(1),
        )
        return out_THD

    def gate_features(self, x_TC: Tensor, gate_TC: Tensor) -> Tensor:
        """See :func:`headstock.ops.gates.gate_features`."""
        return self._gate(x_TC, gate_TC, SIGMOID)

    def gate_heads(self, x_TC: Tensor, gate_TH: Tensor) -> Tensor:
        """See :func:`headstock.ops.gates.gate_heads`."""
        return self._gate(x_TC, gate_TH, SIGMOID, size=x_TC.shape[1] // gate_TH.shape[1])

    def gate_by_softplus(self, x_TC: Tensor, gate_TG: Tensor) -> Tensor:
        """See :func:`headstock.ops.gates.gate_by_softplus`."""
        return self._gate(x_TC, gate_TG, SOFTPLUS, size=x_TC.shape[1] // gate_TG.shape[1])

    def gate_by_silu(self, x_TC: Tensor, gate_TC: Tensor) -> Tensor:
        """See :func:`headstock.ops.gates.gate_by_silu`."""
        return self._gate(x_TC, gate_TC, SILU)

    def gated_group_norm(
        self,
        x_TC: Tensor,
        gate_TC: Tensor,
        weight_C: Tensor,
        *,
        num_groups: int,
        eps: float,
        is_gated_first: bool,
    ) -> Tensor:
        """See :func:`headstock.ops.gates.gated_group_norm`."""
        x_TC = x_TC if x_TC.stride(1) == 1 else x_TC.contiguous()
        gate_TC = gate_TC if gate_TC.stride(1) == 1 else gate_TC.contiguous()
        num_tokens, width = x_TC.shape
        size = width // num_groups
        out_TC = torch.empty((num_tokens, width), dtype=x_TC.dtype, device=x_TC.device)
        group_norm_kernel[(num_tokens, num_groups)](
            x_TC,
            gate_TC,
            weight_C,
            out_TC,
            x_TC.stride(0),
            gate_TC.stride(0),
            eps,
            GROUPS=num_groups,
            SIZE=size,
            GATES_FIRST=is_gated_first,
            BLOCK=next_power_of_2(size),
            **self._target.launch(4 if size > 512 else 1),
        )
        return out_TC

    def _gate(self, x_TC: Tensor, gate_TC: Tensor, kind: int, *, size: int = 1) -> Tensor:
        x_TC = x_TC if x_TC.stride(1) == 1 else x_TC.contiguous()
        gate_TC = gate_TC if gate_TC.stride(1) == 1 else gate_TC.contiguous()
        num_tokens, width = x_TC.shape
        out_TC = torch.empty((num_tokens, width), dtype=x_TC.dtype, device=x_TC.device)
        gate_kernel[(num_tokens, cdiv(width, GATE_BLOCK))](
            x_TC,
            gate_TC,
            out_TC,
            x_TC.stride(0),
            gate_TC.stride(0),
            width,
            KIND=kind,
            SIZE=size,
            BLOCK=GATE_BLOCK,
            **self._target.launch(4),
        )
        return out_TC

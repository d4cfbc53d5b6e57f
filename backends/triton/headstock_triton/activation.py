"""Gated activations."""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv


@triton.jit
def silu_and_mul_kernel(gate_up, out, stride, F, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Compute columns [BLOCK * program_id(1), …) of row program_id(0)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < F
    begin(PDL)
    gate = tl.load(gate_up + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + F + columns, mask=inside, other=0.0)
    silu = (gate * tl.sigmoid(gate)).to(out.dtype.element_ty)
    tl.store(out + row * F + columns, silu * up, mask=inside)


class Activations:
    """The activation ops on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def silu_and_mul(self, gate_up_TG: Tensor) -> Tensor:
        """See :func:`headstock.ops.activation.silu_and_mul`."""
        num_rows, size = gate_up_TG.shape[0], gate_up_TG.shape[1] // 2
        out_TF = torch.empty((num_rows, size), dtype=gate_up_TG.dtype, device=gate_up_TG.device)
        if num_rows:
            block = 1024
            silu_and_mul_kernel[(num_rows, cdiv(size, block))](
                gate_up_TG,
                out_TF,
                gate_up_TG.stride(0),
                size,
                BLOCK=block,
                **self._target.launch(4),
            )
        return out_TF

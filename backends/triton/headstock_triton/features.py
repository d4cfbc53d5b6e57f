"""Sums and factors of features. Shapes: T tokens, A features, H heads, D their size."""

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

FEATURES_BLOCK = 1024
"""Features that a program computes."""


@triton.jit
def features_kernel(
    x,
    other,
    positions,
    out,
    x_stride,
    other_stride,
    factor,
    C,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute some features of token ``program_id(0)``: x with a sum, factor, weights or table."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < C
    kind_of = out.dtype.element_ty
    y = tl.load(x + token * x_stride + c, mask=inside, other=0.0).to(tl.float32)
    if KIND == "add":
        y += tl.load(other + token * other_stride + c, mask=inside, other=0.0).to(tl.float32)
    elif KIND == "weigh":
        y *= tl.load(other + c, mask=inside, other=0.0).to(tl.float32)
    elif KIND == "token":
        y *= tl.load(other + token).to(kind_of).to(tl.float32)
    elif KIND == "position":
        y *= tl.load(other + tl.load(positions + token)).to(kind_of).to(tl.float32)
    else:
        y *= factor
    tl.store(out + token * C + c, y.to(kind_of), mask=inside)


class Features:
    """The ops on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def add_features(self, x_TD: Tensor, y_TD: Tensor) -> Tensor:
        """See :func:`headstock.ops.features.add_features`."""
        y_TD = y_TD if y_TD.stride(1) == 1 else y_TD.contiguous()
        return self._run("add", x_TD, y_TD, y_TD.stride(0))

    def scale_features(self, x_TA: Tensor, *, factor: float) -> Tensor:
        """See :func:`headstock.ops.features.scale_features`."""
        return self._run("scale", x_TA, x_TA, factor=factor)

    def weigh_features(self, x_TA: Tensor, weight_A: Tensor) -> Tensor:
        """See :func:`headstock.ops.features.weigh_features`."""
        return self._run("weigh", x_TA, weight_A)

    def scale_by_position(self, x_THD: Tensor, positions_T: Tensor, scale_L: Tensor) -> Tensor:
        """See :func:`headstock.ops.features.scale_by_position`."""
        if x_THD.stride()[1:] != (x_THD.shape[2], 1):
            x_THD = x_THD.contiguous()
        y_TA = self._run("position", x_THD.flatten(1), scale_L, positions_T=positions_T)
        return y_TA.view(x_THD.shape)

    def scale_tokens(self, x_TA: Tensor, factors_T1: Tensor) -> Tensor:
        """See :func:`headstock.ops.features.scale_tokens`."""
        return self._run("token", x_TA, factors_T1.contiguous())

    def _run(
        self,
        kind: str,
        x_TA: Tensor,
        other: Tensor,
        other_stride: int = 0,
        *,
        positions_T: Tensor | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        x_TA = x_TA if x_TA.stride(1) == 1 else x_TA.contiguous()
        num_tokens, size = x_TA.shape
        out_TA = torch.empty((num_tokens, size), dtype=x_TA.dtype, device=x_TA.device)
        features_kernel[(num_tokens, cdiv(size, FEATURES_BLOCK))](
            x_TA,
            other,
            other if positions_T is None else positions_T,
            out_TA,
            x_TA.stride(0),
            other_stride,
            factor,
            size,
            KIND=kind,
            BLOCK=FEATURES_BLOCK,
            **self._target.launch(4),
        )
        return out_TA

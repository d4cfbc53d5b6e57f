"""The highest logit of each row."""

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

ARGMAX_BLOCK = 8192


@triton.jit
def argmax_parts_kernel(
    logits, best, best_id, stride, V, PARTS, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Find the highest logit among BLOCK ids of row ``program_id(0)``; of equals the lowest id."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    ids = part * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(logits + row * stride + ids, mask=ids < V, other=float("-inf")).to(tl.float32)
    value, place = tl.max(values, axis=0, return_indices=True)
    tl.store(best + row * PARTS + part, value)
    tl.store(best_id + row * PARTS + part, part * BLOCK + place)


@triton.jit
def argmax_merge_kernel(best, best_id, out, PARTS, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Choose among the parts of row ``program_id(0)``."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    parts = tl.arange(0, BLOCK)
    inside = parts < PARTS
    values = tl.load(best + row * PARTS + parts, mask=inside, other=float("-inf"))
    _, place = tl.max(values, axis=0, return_indices=True)
    tl.store(out + row, tl.load(best_id + row * PARTS + place).to(tl.int64))


class Argmax:
    """Greedy choice on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def argmax_tokens(self, logits_SV: Tensor) -> Tensor:
        """See :func:`headstock.ops.sampling.argmax_tokens`."""
        num_rows, size = logits_SV.shape
        out_S = torch.empty(num_rows, dtype=torch.int64, device=logits_SV.device)
        if not num_rows:
            return out_S
        parts = cdiv(size, ARGMAX_BLOCK)
        best = torch.empty((num_rows, parts), dtype=torch.float32, device=logits_SV.device)
        best_id = torch.empty((num_rows, parts), dtype=torch.int32, device=logits_SV.device)
        argmax_parts_kernel[(num_rows, parts)](
            logits_SV,
            best,
            best_id,
            logits_SV.stride(0),
            size,
            parts,
            BLOCK=ARGMAX_BLOCK,
            **self._target.launch(8),
        )
        argmax_merge_kernel[(num_rows,)](
            best,
            best_id,
            out_S,
            parts,
            BLOCK=next_power_of_2(parts),
            **self._target.launch(1),
        )
        return out_S

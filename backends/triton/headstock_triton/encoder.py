"""What encoders have beyond decoders: norms with a shift, embeddings by place, pooling."""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.norm import warps_for
from headstock_triton.overlap import begin
from headstock_triton.target import Target, next_power_of_2

TILE_ELEMENTS = 8192
"""Of the tile of hidden states that a program adds up at a time."""


@triton.jit
def layer_norm_kernel(
    x,
    residual,
    weight,
    bias,
    out,
    stride_x,
    stride_residual,
    eps,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Normalise row ``program_id(0)`` of x, or of its sum with residual, which gets the sum."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    w = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.zeros((BLOCK,), tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    begin(PDL)
    x32 = tl.load(x + row * stride_x + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        sum_at = residual + row * stride_residual + columns
        total = x32 + tl.load(sum_at, mask=inside, other=0.0).to(tl.float32)
        total = total.to(out.dtype.element_ty)
        tl.store(sum_at, total, mask=inside)
        x32 = total.to(tl.float32)
    mean = tl.sum(x32, axis=0) / D
    centred = tl.where(inside, x32 - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=0) / D + eps)
    y = centred * inverse * w + shift
    tl.store(out + row * D + columns, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def embed_places_kernel(
    ids,
    positions,
    words,
    places,
    types,
    out,
    num_words,
    first_place,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Add up what id, place and type of token ``program_id(0)`` stand for."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    both = tl.load(ids + token).to(tl.int64)
    kind = both // num_words
    word = both - kind * num_words
    place = tl.load(positions + token).to(tl.int64) + first_place
    y = tl.load(words + word * D + columns, mask=inside, other=0.0).to(tl.float32)
    y += tl.load(types + kind * D + columns, mask=inside, other=0.0).to(tl.float32)
    y += tl.load(places + place * D + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * D + columns, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def pool_rows_kernel(
    hidden,
    query_starts,
    picked,
    out,
    stride,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    KIND: tl.constexpr,
    IS_CUT: tl.constexpr,
    IS_NORMALIZED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Pool row picked[program_id(0)]; ``KIND`` is 0: last, 1: mean, 2: first token."""
    begin(PDL)
    pooled = tl.program_id(0).to(tl.int64)
    row = tl.load(picked + pooled)
    first = tl.load(query_starts + row).to(tl.int64)
    last = tl.load(query_starts + row + 1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < D
    if KIND == 1:
        y = tl.zeros((BLOCK,), tl.float32)
        for start in range(first, last, TOKENS):
            tokens = start + tl.arange(0, TOKENS)
            at = hidden + tokens[:, None] * stride + columns[None, :]
            mask = (tokens < last)[:, None] & inside[None, :]
            y += tl.sum(tl.load(at, mask=mask, other=0.0).to(tl.float32), axis=0)
        y = y / (last - first).to(tl.float32)
    else:
        token = last - 1
        if KIND == 2:
            token = first
        if IS_CUT:
            token = row.to(tl.int64)
        y = tl.load(hidden + token * stride + columns, mask=inside, other=0.0).to(tl.float32)
    if IS_NORMALIZED:
        y = y / tl.maximum(tl.sqrt(tl.sum(y * y, axis=0)), 1e-12)
    tl.store(out + pooled * D + columns, y, mask=inside)


KINDS = ("last", "mean", "cls")
"""Kinds of pooling, by the kernel's number."""


class Encoders:
    """The ops on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def layer_norm(
        self, x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float
    ) -> Tensor:
        """See :func:`headstock.ops.norm.layer_norm`."""
        return self._norm(x_TD, None, weight_D, bias_D, eps)

    def add_layer_norm(
        self,
        x_TD: Tensor,
        residual_TD: Tensor,
        weight_D: Tensor,
        bias_D: Tensor | None,
        *,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """See :func:`headstock.ops.norm.add_layer_norm`; the sum goes into the residual."""
        return self._norm(x_TD, residual_TD, weight_D, bias_D, eps), residual_TD

    def _norm(
        self,
        x_TD: Tensor,
        residual_TD: Tensor | None,
        weight_D: Tensor,
        bias_D: Tensor | None,
        eps: float,
    ) -> Tensor:
        num_rows, size = x_TD.shape
        out_TD = torch.empty((num_rows, size), dtype=x_TD.dtype, device=x_TD.device)
        if num_rows:
            layer_norm_kernel[(num_rows,)](
                x_TD,
                x_TD if residual_TD is None else residual_TD,
                weight_D,
                weight_D if bias_D is None else bias_D,
                out_TD,
                x_TD.stride(0),
                0 if residual_TD is None else residual_TD.stride(0),
                eps,
                D=size,
                BLOCK=next_power_of_2(size),
                ADDS=residual_TD is not None,
                HAS_BIAS=bias_D is not None,
                **self._target.launch(warps_for(size)),
            )
        return out_TD

    def embed_places(
        self,
        ids_T: Tensor,
        positions_T: Tensor,
        words_VD: Tensor,
        places_LD: Tensor,
        types_KD: Tensor,
        *,
        first_place: int,
    ) -> Tensor:
        """See :func:`headstock.ops.embedding.embed_places`."""
        num_tokens, (num_words, size) = ids_T.shape[0], words_VD.shape
        out_TD = torch.empty((num_tokens, size), dtype=words_VD.dtype, device=words_VD.device)
        if num_tokens:
            embed_places_kernel[(num_tokens,)](
                ids_T,
                positions_T,
                words_VD,
                places_LD,
                types_KD,
                out_TD,
                num_words,
                first_place,
                D=size,
                BLOCK=next_power_of_2(size),
                **self._target.launch(warps_for(size)),
            )
        return out_TD

    def pool_rows(
        self,
        hidden_TD: Tensor,
        query_starts_R1: Tensor,
        rows_P: Tensor,
        *,
        kind: str,
        is_normalized: bool,
    ) -> Tensor:
        """See :func:`headstock.ops.pooling.pool_rows`."""
        num_pooled, size = rows_P.shape[0], hidden_TD.shape[1]
        out_PD = torch.empty((num_pooled, size), dtype=torch.float32, device=hidden_TD.device)
        block = next_power_of_2(size)
        if num_pooled:
            pool_rows_kernel[(num_pooled,)](
                hidden_TD,
                query_starts_R1,
                rows_P,
                out_PD,
                hidden_TD.stride(0),
                D=size,
                BLOCK=block,
                TOKENS=max(1, TILE_ELEMENTS // block),
                KIND=KINDS.index(kind),
                IS_CUT=hidden_TD.shape[0] == query_starts_R1.shape[0] - 1,
                IS_NORMALIZED=is_normalized,
                **self._target.launch(8),
            )
        return out_PD

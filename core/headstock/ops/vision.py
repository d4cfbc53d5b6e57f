"""What an image encoder computes beyond matrix products and norms.

Shapes: N patches, P values of a patch, C channels, D features, H heads, E size of a head, S runs of
patches that see each other, B neighbours in a table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.base import op
from headstock.ops.rotary import rotate


@op()
def pixel_values(
    pixels_NP: Tensor, scale_C: Tensor, shift_C: Tensor, *, dtype: torch.dtype
) -> Tensor:
    """Return pixels as an encoder takes them: a value times its channel's scale, plus its shift.

    Args:
        pixels_NP: uint8; the values of each channel lie together. [N, P]
        scale_C: float32. [C]
        shift_C: float32. [C]
        dtype: Of the result; computed in float32.

    Returns:
        [N, P]
    """
    values_NCV = pixels_NP.unflatten(1, (scale_C.shape[0], -1)).to(torch.float32)
    return (values_NCV * scale_C[:, None] + shift_C[:, None]).flatten(1).to(dtype)


@op()
def add_resampled(x_ND: Tensor, table_LD: Tensor, rows_NB: Tensor, weights_NB: Tensor) -> Tensor:
    """Add to each patch a weighted mean of rows of a table: learned positions of another grid.

    Args:
        x_ND: [N, D]
        table_LD: [L, D]
        rows_NB: int64. [N, B]
        weights_NB: float32. [N, B]

    Returns:
        In the dtype of ``x_ND``. [N, D]
    """
    found_NBD = table_LD.index_select(0, rows_NB.flatten()).unflatten(0, rows_NB.shape)
    return x_ND + (found_NBD * weights_NB.unsqueeze(-1)).sum(dim=1).to(x_ND.dtype)


@op()
def mix_patches(x_ND: Tensor, rows_MB: Tensor, weights_MB: Tensor) -> Tensor:
    """Return weighted sums of patches, such as those of an image in another size.

    Args:
        x_ND: [N, D]
        rows_MB: int64. [M, B]
        weights_MB: float32. [M, B]

    Returns:
        In the dtype of ``x_ND``; summed in float32. [M, D]
    """
    found_MBD = x_ND.index_select(0, rows_MB.flatten()).unflatten(0, rows_MB.shape)
    return (found_MBD * weights_MB.unsqueeze(-1)).sum(dim=1).to(x_ND.dtype)


@op()
def mean_of_patches(x_ND: Tensor, *, count: int) -> Tensor:
    """Return the mean of each ``count`` neighbouring patches, which become one.

    Args:
        x_ND: [N, D]
        count: Divides N.

    Returns:
        In the dtype of ``x_ND``; the mean is taken in float32. [N / count, D]
    """
    return x_ND.unflatten(0, (-1, count)).to(torch.float32).mean(dim=1).to(x_ND.dtype)


@op()
def encoder_attention(
    qkv_NC: Tensor, angles_NE: Tensor | None, *, lengths: Sequence[int], num_heads: int
) -> Tensor:
    """Attend among the patches of each run, all of which see each other.

    Resolved with the sizes ``num_heads`` and ``head_dim``. Keeps nothing.

    Args:
        qkv_NC: Queries, keys, values, side by side. [N, 3 H E]
        angles_NE: Cosines, then sines, of E / 2 angles that queries and keys are rotated by, in
            halves; None: they are not. float32. [N, E]
        lengths: Patches of each run, one after another. On the host. [S]
        num_heads: H.

    Returns:
        [N, H E]
    """
    q_NHE, k_NHE, v_NHE = qkv_NC.unflatten(1, (3, num_heads, -1)).unbind(1)
    if angles_NE is not None:
        tokens_N = torch.arange(qkv_NC.shape[0], device=qkv_NC.device)
        q_NHE = rotate(q_NHE, tokens_N, angles_NE, is_interleaved=False)
        k_NHE = rotate(k_NHE, tokens_N, angles_NE, is_interleaved=False)
    runs = zip(
        *(x.transpose(0, 1).split(list(lengths), dim=1) for x in (q_NHE, k_NHE, v_NHE)),
        strict=True,
    )
    attend = functional.scaled_dot_product_attention
    out_HNE = torch.cat([attend(q[None], k[None], v[None])[0] for q, k, v in runs], dim=1)
    return out_HNE.transpose(0, 1).flatten(1)


@op()
def put_before_runs(x_ND: Tensor, row_D: Tensor, *, lengths: Sequence[int]) -> Tensor:
    """Put one row before the patches of each run, such as what stands for an image as a whole.

    Args:
        x_ND: [N, D]
        row_D: In the same dtype. [D]
        lengths: Patches of each run. On the host. [S]

    Returns:
        [N + S, D]
    """
    parts = [part for run in x_ND.split(list(lengths)) for part in (row_D[None], run)]
    return torch.cat(parts)


@op()
def leave_out_first(x_ND: Tensor, *, lengths: Sequence[int]) -> Tensor:
    """Leave out the first row of each run.

    Args:
        x_ND: [N, D]
        lengths: Rows of each run, the first ones among them. On the host. [S]

    Returns:
        [N - S, D]
    """
    return torch.cat([run[1:] for run in x_ND.split(list(lengths))])


@op()
def take_patches(x_ND: Tensor, rows_M: Tensor) -> Tensor:
    """Return patches in another order, such as those of a window together.

    Args:
        x_ND: [N, D]
        rows_M: int64. [M]

    Returns:
        [M, D]
    """
    return x_ND.index_select(0, rows_M)

"""What lies between attention and products: norms, rotation, the gated activation.

Shapes: T tokens, H query heads, K key and value heads, D features of a head or of a row, C rotated
features, F features of the feed-forward layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from headstock.ops.attention import AttentionProvider, StepBatch
    from headstock.ops.latent import LatentProvider


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """Normalise each row. [..., D]"""
    return torch.ops.npu.npu_rms_norm(x_TD, weight_D, eps)[0]


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and normalise the sum. [T, D] each"""
    normal_TD, _, total_TD = torch.ops.npu.npu_add_rms_norm(x_TD, residual_TD, weight_D, eps)
    return normal_TD, total_TD


def silu_and_mul(gate_up_TG: Tensor) -> Tensor:
    """Return silu(gate) * up. [T, F]"""
    return torch.ops.npu.npu_swiglu(gate_up_TG)


def rotate_and_write(
    qkv_TC: Tensor,
    cos_sin_LC: Tensor | None,
    q_norm_D: Tensor | None,
    k_norm_D: Tensor | None,
    kv: Tensor,
    batch: StepBatch,
    *,
    provider: AttentionProvider,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    eps: float,
    is_interleaved: bool,
    is_normed_last: bool = False,
) -> Tensor:
    """Split, normalise and rotate; the provider stores keys and values. [T, H, D]"""
    heads = qkv_TC.unflatten(-1, (num_heads + 2 * num_kv_heads, head_dim))
    q_THD, k_TKD, v_TKD = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    angles = None
    if cos_sin_LC is not None:
        angles = angles_of(cos_sin_LC, batch.positions_T, q_THD.dtype, is_interleaved)
    parts: list[Tensor] = []
    for x, weight_D in ((q_THD, q_norm_D), (k_TKD, k_norm_D)):
        x = x.contiguous()
        if weight_D is not None and not is_normed_last:
            x = rms_norm(x, weight_D, eps=eps)
        if angles is not None:
            x = rotate(x, *angles, is_interleaved=is_interleaved)
        if weight_D is not None and is_normed_last:
            x = rms_norm(x, weight_D, eps=eps)
        parts.append(x)
    q_THD, k_TKD = parts
    provider.write(k_TKD, v_TKD, kv, batch)
    return q_THD


def rotate_and_write_latent(
    q_THQ: Tensor,
    kv_TX: Tensor,
    cos_sin_LE: Tensor | None,
    norm_C: Tensor,
    kv: Tensor,
    batch: StepBatch,
    *,
    provider: LatentProvider,
    eps: float,
    is_interleaved: bool,
) -> Tensor:
    """Normalise latents, rotate keys and the last features of queries, store. [T, H, N + E]"""
    latent_TC, key_TE = kv_TX.split((len(norm_C), kv_TX.shape[1] - len(norm_C)), dim=1)
    latent_TC = rms_norm(latent_TC.contiguous(), norm_C, eps=eps)
    if cos_sin_LE is not None:
        cos, sin = angles_of(cos_sin_LE, batch.positions_T, q_THQ.dtype, is_interleaved)
        plain_size = q_THQ.shape[2] - key_TE.shape[1]
        plain_THN, turned_THE = q_THQ.split((plain_size, key_TE.shape[1]), dim=2)
        both = torch.cat((turned_THE, key_TE.unsqueeze(1)), dim=1)
        both = rotate(both, cos, sin, is_interleaved=is_interleaved)
        q_THQ = torch.cat((plain_THN, both[:, :-1]), dim=2)
        key_TE = both[:, -1]
    provider.write(latent_TC, key_TE, kv, batch)
    return q_THQ


def angles_of(
    cos_sin_LC: Tensor, positions_T: Tensor, dtype: torch.dtype, is_interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for every rotated feature of a token. [1, T, 1, C] each"""
    halves = cos_sin_LC.index_select(0, positions_T).to(dtype).chunk(2, dim=-1)
    cos_TC, sin_TC = (
        half.repeat_interleave(2, dim=-1) if is_interleaved else torch.cat((half, half), dim=-1)
        for half in halves
    )
    return cos_TC[None, :, None], sin_TC[None, :, None]


def rotate(x_THD: Tensor, cos: Tensor, sin: Tensor, *, is_interleaved: bool) -> Tensor:
    """Rotate pairs of the first C features of each head. [T, H, D]"""
    size, mode = cos.shape[-1], "interleave" if is_interleaved else "half"
    turned = torch.ops.npu.npu_rotary_mul(x_THD[None, ..., :size].contiguous(), cos, sin, mode)[0]
    if size == x_THD.shape[-1]:
        return turned
    return torch.cat((turned, x_THD[..., size:]), dim=-1)

"""The fused preparation of queries, keys and values, for the page layout of this package."""

# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headstock_triton.attention.write import rotate_and_write_kernel
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.ops.attention import AttentionProvider, StepBatch


class Rotations:
    """The rotary op on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def rotate_and_write(
        self,
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
    ) -> Tensor:
        """See :func:`headstock.ops.rotary.rotate_and_write`."""
        num_tokens = qkv_TC.shape[0]
        shape = (num_tokens, num_heads, head_dim)
        q_THD = torch.empty(shape, dtype=qkv_TC.dtype, device=qkv_TC.device)
        rotated = 0 if cos_sin_LC is None else cos_sin_LC.shape[-1]
        rest = head_dim - rotated if rotated else head_dim % 2
        # One token at a time wants many small programs, many tokens want few.
        heads = 2 if num_tokens < 64 else 8
        heads = min(heads, next_power_of_2(num_kv_heads))
        parts = cdiv(num_heads, heads) + 2 * cdiv(num_kv_heads, heads)
        rotate_and_write_kernel[(num_tokens, parts)](
            qkv_TC,
            cos_sin_LC if cos_sin_LC is not None else qkv_TC,
            q_norm_D if q_norm_D is not None else qkv_TC,
            k_norm_D if k_norm_D is not None else qkv_TC,
            batch.positions_T,
            batch.write_slots_T,
            kv,
            q_THD,
            qkv_TC.stride(0),
            eps,
            HEADS=num_heads,
            KV_HEADS=num_kv_heads,
            PAGE=kv.shape[3],
            D=head_dim,
            ROTATED=rotated,
            IS_INTERLEAVED=is_interleaved,
            HAS_Q_NORM=q_norm_D is not None,
            HAS_K_NORM=k_norm_D is not None,
            BLOCK_H=heads,
            BLOCK_F=next_power_of_2((rotated or head_dim) // 2),
            BLOCK_REST=next_power_of_2(rest) if rest else 0,
            **self._target.launch(1 if heads <= 2 else 4),
        )
        return q_THD

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
        is_normed_last: bool = False,
        has_normed_values: bool = False,
        takes_keys: bool = False,
    ) -> Tensor:
        """See :func:`headstock.ops.rotary.rotate_and_write`."""
        return self._launch(
            qkv_TC,
            cos_sin_LC,
            (q_norm_D, k_norm_D),
            (batch.positions_T, batch.write_slots_T),
            kv,
            (num_heads, num_kv_heads, head_dim),
            eps,
            is_interleaved=is_interleaved,
            norms_last=is_normed_last,
            norms_values=has_normed_values,
            takes_keys=takes_keys,
        )

    def rotate_queries(
        self,
        q_TC: Tensor,
        cos_sin_LC: Tensor | None,
        q_norm_D: Tensor | None,
        positions_T: Tensor,
        *,
        num_heads: int,
        head_dim: int,
        eps: float,
        is_interleaved: bool,
    ) -> Tensor:
        """See :func:`headstock.ops.rotary.rotate_queries`."""
        q_TC = q_TC if q_TC.stride(1) == 1 else q_TC.contiguous()
        return self._launch(
            q_TC,
            cos_sin_LC,
            (q_norm_D, None),
            (positions_T, positions_T),
            None,
            (num_heads, 0, head_dim),
            eps,
            is_interleaved=is_interleaved,
        )

    def _launch(
        self,
        x_TC: Tensor,
        cos_sin_LC: Tensor | None,
        norms: tuple[Tensor | None, Tensor | None],
        places: tuple[Tensor, Tensor],
        kv: Tensor | None,
        sizes: tuple[int, int, int],
        eps: float,
        *,
        is_interleaved: bool,
        norms_last: bool = False,
        norms_values: bool = False,
        takes_keys: bool = False,
    ) -> Tensor:
        """Launch the kernel of both; without ``kv`` there are queries alone. [T, H, D]"""
        num_tokens, (num_heads, num_kv_heads, head_dim) = x_TC.shape[0], sizes
        shape = (num_tokens, num_heads, head_dim)
        q_THD = torch.empty(shape, dtype=x_TC.dtype, device=x_TC.device)
        rotated = 0 if cos_sin_LC is None else cos_sin_LC.shape[-1]
        rest = head_dim - rotated if rotated else head_dim % 2
        # One token at a time wants many small programs, many tokens want few.
        heads = 2 if num_tokens < 64 else 8
        heads = min(heads, next_power_of_2(num_kv_heads or num_heads))
        parts = cdiv(num_heads, heads) + 2 * cdiv(num_kv_heads, heads)
        rotate_and_write_kernel[(num_tokens, parts)](
            x_TC,
            cos_sin_LC if cos_sin_LC is not None else x_TC,
            *_pointers(norms, x_TC),
            *places,
            q_THD if kv is None else kv,
            q_THD,
            x_TC.stride(0),
            eps,
            HEADS=num_heads,
            KV_HEADS=num_kv_heads,
            PAGE=1 if kv is None else kv.shape[3],
            D=head_dim,
            ROTATED=rotated,
            IS_INTERLEAVED=is_interleaved,
            HAS_Q_NORM=norms[0] is not None,
            HAS_K_NORM=norms[1] is not None,
            HAS_V_NORM=norms_values,
            IS_NORMED_LAST=norms_last,
            TAKES_KEYS=takes_keys,
            BLOCK_H=heads,
            BLOCK_F=next_power_of_2((rotated or head_dim) // 2),
            BLOCK_REST=next_power_of_2(rest) if rest else 0,
            **self._target.launch(1 if heads <= 2 else 4),
        )
        return q_THD


def _pointers(norms: tuple[Tensor | None, Tensor | None], other: Tensor) -> tuple[Tensor, Tensor]:
    """Return something for each norm, of one dtype: the kernel reads no weights that are not."""
    q_norm, k_norm = norms
    q = q_norm if q_norm is not None else k_norm if k_norm is not None else other
    return q, q if k_norm is None else k_norm

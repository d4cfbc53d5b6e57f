"""Keys and values in pages: their form, and writing and reading them.

Shapes: T tokens, K key/value heads, D head size, S token slots.
"""

# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headstock.ops.attention import AttentionSpec, PageFormat, StepBatch
from headstock.ops.int8_pages import SCALE_BYTES
from headstock.ops.narrow_pages import NARROW
from headstock_triton.attention.narrow import KINDS, write_narrow_kernel
from headstock_triton.attention.pages import NARROW_TAG, TAG
from headstock_triton.attention.write import read_kernel, write_kernel
from headstock_triton.target import Target, next_power_of_2

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.ops.device import OpDevice

PAGE_SIZES = (64, 128, 32, 16)


class StoredPages:
    """Pages of one spec.

    Args:
        spec: Of the layers.
        device: Where they lie.
        page_sizes: Accepted page sizes, the favourite first.
    """

    def __init__(
        self, spec: AttentionSpec, device: OpDevice, page_sizes: tuple[int, ...] = PAGE_SIZES
    ) -> None:
        self.spec = spec
        self._target = Target.of(device)
        self._page_sizes = page_sizes
        self._block_d = max(16, next_power_of_2(spec.head_dim))
        self._kind = NARROW.get(spec.kv_dtype)

    @property
    def page_format(self) -> PageFormat:
        """Head-major pages; 64 tokens fit one tile and keep the prefix tree's grain fine."""
        kind = self._kind
        if kind is None:
            return PageFormat(tag=TAG, page_sizes=self._page_sizes, dtype=self.spec.kv_dtype)
        tag = NARROW_TAG.format(kind.name)
        return PageFormat(tag=tag, page_sizes=self._page_sizes, dtype=kind.storage)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, 2, K, page_size, D], or [pages, 2, K, bytes of numbers and scales]."""
        spec = self.spec
        if self._kind is not None:
            size = spec.page_size * (spec.head_dim + SCALE_BYTES)
            return (num_pages, 2, spec.num_kv_heads, size)
        return (num_pages, 2, spec.num_kv_heads, spec.page_size, spec.head_dim)

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store keys and values of the step's tokens into the pages of ``kv``."""
        spec = self.spec
        if k_TKD.stride()[1:] != (spec.head_dim, 1):
            k_TKD = k_TKD.contiguous()
        if v_TKD.stride()[1:] != (spec.head_dim, 1):
            v_TKD = v_TKD.contiguous()
        if self._kind is not None:
            self._write_narrow(k_TKD, v_TKD, kv, batch)
            return
        write_kernel[(k_TKD.shape[0],)](
            k_TKD,
            v_TKD,
            kv,
            batch.write_slots_T,
            k_TKD.stride(0),
            v_TKD.stride(0),
            KV_HEADS=spec.num_kv_heads,
            PAGE=spec.page_size,
            D=spec.head_dim,
            BLOCK_K=next_power_of_2(spec.num_kv_heads),
            BLOCK_D=self._block_d,
            **self._target.launch(4),
        )

    def _write_narrow(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        spec = self.spec
        write_narrow_kernel[(k_TKD.shape[0],)](
            k_TKD,
            v_TKD,
            kv,
            kv.view(torch.float32),
            batch.write_slots_T,
            k_TKD.stride(0),
            v_TKD.stride(0),
            KV_HEADS=spec.num_kv_heads,
            PAGE=spec.page_size,
            D=spec.head_dim,
            BLOCK_K=next_power_of_2(spec.num_kv_heads),
            BLOCK_D=self._block_d,
            NARROW=KINDS[spec.kv_dtype],
            **self._target.launch(4),
        )

    def read(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values at token slots. [S, K, D] each."""
        spec = self.spec
        if self._kind is not None:
            return self._read_narrow(kv, slots_S)
        shape = (slots_S.shape[0], spec.num_kv_heads, spec.head_dim)
        k_SKD = torch.empty(shape, dtype=kv.dtype, device=kv.device)
        v_SKD = torch.empty_like(k_SKD)
        read_kernel[(shape[0],)](
            kv,
            slots_S,
            k_SKD,
            v_SKD,
            KV_HEADS=spec.num_kv_heads,
            PAGE=spec.page_size,
            D=spec.head_dim,
            BLOCK_K=next_power_of_2(spec.num_kv_heads),
            BLOCK_D=self._block_d,
            **self._target.launch(4),
        )
        return k_SKD, v_SKD

    def _read_narrow(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        spec = self.spec
        size = spec.page_size * spec.head_dim
        pages_S, within_S = slots_S // spec.page_size, slots_S % spec.page_size
        rows_S = torch.arange(slots_S.shape[0], device=kv.device)
        of_pages = kv[pages_S]
        codes = of_pages[..., :size].unflatten(-1, (spec.page_size, spec.head_dim))
        numbers_S2KD = codes[rows_S, :, :, within_S].contiguous().view(spec.kv_dtype).float()
        scales = of_pages[..., size:].contiguous().view(torch.float32)
        k_SKD, v_SKD = (numbers_S2KD * scales[rows_S, :, :, within_S].unsqueeze(-1)).unbind(1)
        return k_SKD, v_SKD

"""Attention over pages, natively: the layout, and the instructions of a step.

Shapes: T tokens, H query heads, K key/value heads, D head size, P pages, S token slots.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.attention import (
    BIDIRECTIONAL,
    CHUNKED,
    NARROW_PAGES,
    AttentionSpec,
    KVLayout,
    StepBatch,
)
from headstock.ops.int8_pages import SCALE_BYTES
from headstock.ops.narrow_pages import NARROW
from headstock_xeon.stream import as_bits

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice

TAG = "pages-kdt-vtd"
"""A page has for each key/value head its keys [D][tokens], then its values [tokens][D].

In 8 bits the scales of the tokens, float32, follow the keys and follow the values.
"""
PAGE_SIZES = (16, 32, 64, 128)
FEATURES = frozenset({"sliding_window", "sinks", "soft_cap", BIDIRECTIONAL, CHUNKED}).union(
    *NARROW_PAGES.values()
)
MAX_GROUP = 64
"""Query heads that may share a key/value head: they are one tile."""
FP8 = torch.float8_e4m3fn
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, FP8: 4}
"""``Element`` of ``kernels.h``."""


class NativeAttention:
    """Attention for one spec.

    What each thread does is decided on the device, once a step, by an instruction of its own
    before the first layer's: captured steps decide anew on every replay.
    """

    def __init__(self, spec: AttentionSpec, device: XeonDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        preferred = (spec.page_size, *(s for s in PAGE_SIZES if s != spec.page_size))
        self._kind = kind = NARROW.get(spec.kv_dtype)
        dtype = spec.kv_dtype if kind is None else kind.storage
        self.layout = KVLayout(tag=TAG, page_sizes=preferred, dtype=dtype)
        self._stream = device.stream
        kernel = device.stream.kernel
        self._attend, self._attend_plan = kernel("attend"), kernel("attend_plan")
        self._write = kernel("write")
        calls = device.library.calls
        window = spec.window or 0
        window = -window if CHUNKED in spec.features else window
        self._plan = calls.hs_attention_new(
            device.stream.engine,
            spec.max_tokens,
            spec.max_rows,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            spec.max_length,
            window,
            int(BIDIRECTIONAL not in spec.features),
        )
        weakref.finalize(self, calls.hs_attention_free, self._plan).atexit = False
        self._options = (as_bits(spec.scale), as_bits(spec.soft_cap or 0.0), window)
        self._geometry = (
            ELEMENTS[spec.kv_dtype],
            spec.page_size,
            spec.num_kv_heads,
            spec.head_dim,
        )
        self._planned: StepBatch | None = None

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """Return [pages, K, 2, page size * D], or as many more as scales take."""
        spec = self.spec
        size = spec.head_dim + (0 if self._kind is None else SCALE_BYTES)
        return (num_pages, spec.num_kv_heads, 2, spec.page_size * size)

    def pages(self, kv: Tensor) -> tuple[int, ...]:
        """Return what instructions say of a layer's pages."""
        return (kv.data_ptr(), *self._geometry)

    def plan(self, batch: StepBatch) -> None:
        """Forget the last step: the next :meth:`run` decides who does what."""
        spec = self.spec
        assert batch.num_tokens <= spec.max_tokens, f"{batch.num_tokens} tokens"
        assert batch.num_rows <= spec.max_rows, f"{batch.num_rows} rows"
        self._planned = None

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store keys and values of the step's tokens into the pages of ``kv``."""
        k_TKD, v_TKD = _heads_together(k_TKD), _heads_together(v_TKD)
        self._stream.hold(kv, batch)
        self._stream.emit(
            self._write,
            *self.pages(kv),
            k_TKD.data_ptr(),
            k_TKD.stride(0),
            v_TKD.data_ptr(),
            v_TKD.stride(0),
            batch.write_slots_T.data_ptr(),
            k_TKD.shape[0],
        )

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        """Attend. [T, H, D]"""
        if self._planned is not batch:
            self._emit_plan(batch)
        q_THD = _heads_together(q_THD)
        self._stream.hold(kv, sinks_H)
        y_THD = self._stream.empty(tuple(q_THD.shape))
        self._stream.emit(
            self._attend,
            *self.pages(kv),
            self._plan,
            q_THD.data_ptr(),
            q_THD.stride(0),
            y_THD.data_ptr(),
            0 if sinks_H is None else sinks_H.data_ptr(),
            batch.page_table_RP.data_ptr(),
            batch.page_table_RP.stride(0),
            q_THD.shape[0],
            self.spec.num_heads,
            *self._options,
        )
        return y_THD

    def read(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values at token slots. [S, K, D] each"""
        spec = self.spec
        pages, offsets = slots_S // spec.page_size, slots_S % spec.page_size
        rows, size = torch.arange(len(slots_S)), spec.page_size * spec.head_dim
        keys_SKDT = kv[pages, :, 0, :size].unflatten(-1, (spec.head_dim, spec.page_size))
        values_SKTD = kv[pages, :, 1, :size].unflatten(-1, (spec.page_size, spec.head_dim))
        k_SKD, v_SKD = keys_SKDT[rows, :, :, offsets], values_SKTD[rows, :, offsets]
        if self._kind is None:
            return k_SKD, v_SKD
        scales_SK2T = kv[pages, :, :, size:].contiguous().view(torch.float32)
        k_scale_SK, v_scale_SK = scales_SK2T[rows, :, :, offsets].unbind(-1)
        k_SKD, v_SKD = (x_SKD.contiguous().view(spec.kv_dtype).float() for x_SKD in (k_SKD, v_SKD))
        return k_SKD * k_scale_SK.unsqueeze(-1), v_SKD * v_scale_SK.unsqueeze(-1)

    def _emit_plan(self, batch: StepBatch) -> None:
        self._planned = batch
        self._stream.hold(self, batch)
        self._stream.emit(
            self._attend_plan,
            self._plan,
            batch.query_starts_R1.data_ptr(),
            batch.kv_lengths_R.data_ptr(),
            batch.page_table_RP.data_ptr(),
            batch.page_table_RP.stride(0),
            batch.tree_N4.data_ptr() if batch.tree_N4.numel() else 0,
            batch.counts.data_ptr(),
            batch.num_rows,
            batch.num_tokens,
        )


def _heads_together(x_THD: Tensor) -> Tensor:
    """Return ``x_THD`` with a token's heads contiguous: itself, nearly always."""
    is_packed = x_THD.stride(-1) == 1 and x_THD.stride(-2) == x_THD.shape[-1]
    return x_THD if is_packed else x_THD.contiguous()

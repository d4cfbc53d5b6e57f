"""Latent attention over pages, natively.

Shapes: as in :mod:`headstock.ops.latent`.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from torch import Tensor

from headstock.ops.attention import KVLayout, StepBatch
from headstock.ops.latent import LatentSpec
from headstock_xeon.kernels.attention import ELEMENTS, PAGE_SIZES
from headstock_xeon.stream import as_bits, rows_of

if TYPE_CHECKING:
    from headstock.ops.latent import LatentProvider
    from headstock_xeon.device import XeonDevice

LATENT_TAG = "pages-latent-tx-native"
"""A page is [tokens][X], the latent first: the reference's, rotated as the kernels do."""
MOST_HEADS = 32
"""Heads that are worked off together: the rows of a tile."""


class NativeLatentAttention:
    """Latent attention for one spec: queries absorb the keys' matrices, whatever the row.

    What each thread does is decided on the device, once a step, by an instruction of its own
    before the first layer's.
    """

    def __init__(self, spec: LatentSpec, device: XeonDevice) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        preferred = (spec.page_size, *(s for s in PAGE_SIZES if s != spec.page_size))
        self.layout = KVLayout(tag=LATENT_TAG, page_sizes=preferred, dtype=spec.kv_dtype)
        self._stream = device.stream
        kernel = device.stream.kernel
        self._write, self._absorb = kernel("latent_write"), kernel("latent_absorb")
        self._attend, self._expand = kernel("latent_attend"), kernel("latent_expand")
        self._attend_plan = kernel("attend_plan")
        calls = device.library.calls
        blocks = spec.num_heads // _heads_together(spec.num_heads)
        self._plan = calls.hs_attention_new(
            device.stream.engine,
            spec.max_tokens,
            spec.max_rows,
            spec.num_heads,
            blocks,
            spec.latent_size,
            spec.max_length,
            0,
            1,
        )
        weakref.finalize(self, calls.hs_attention_free, self._plan).atexit = False
        sizes = (spec.latent_size, spec.rotary_size)
        self._geometry = (ELEMENTS[spec.kv_dtype], spec.page_size, *sizes)
        self._planned: StepBatch | None = None

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """Return [pages, page size, X]."""
        return (num_pages, self.spec.page_size, self.spec.cached_size)

    def pages(self, kv: Tensor) -> tuple[int, ...]:
        """Return what instructions say of a layer's pages."""
        return (kv.data_ptr(), *self._geometry)

    def plan(self, batch: StepBatch) -> None:
        """Forget the last step: the next :meth:`run` decides who does what."""
        assert batch.num_tokens <= self.spec.max_tokens, f"{batch.num_tokens} tokens"
        assert batch.num_rows <= self.spec.max_rows, f"{batch.num_rows} rows"
        self._planned = None

    def write(self, latent_TC: Tensor, key_TE: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store latents, normalised, and keys, rotated, of the step's tokens."""
        latent_TC, key_TE = rows_of(latent_TC), rows_of(key_TE)
        self._stream.hold(kv, batch)
        self._stream.emit(
            self._write,
            *self.pages(kv),
            latent_TC.data_ptr(),
            latent_TC.stride(0),
            key_TE.data_ptr(),
            key_TE.stride(0),
            batch.write_slots_T.data_ptr(),
            latent_TC.shape[0],
        )

    def run(self, q_THQ: Tensor, up_HUC: Tensor, kv: Tensor, batch: StepBatch) -> Tensor:
        """Attend. [T, H, V]"""
        if self._planned is not batch:
            self._emit_plan(batch)
        spec, stream = self.spec, self._stream
        q_THQ = q_THQ.contiguous()
        num_tokens = q_THQ.shape[0]
        heads = (num_tokens, spec.num_heads)
        absorbed_THX = stream.empty((*heads, spec.cached_size))
        sums_THC = stream.empty((*heads, spec.latent_size))
        y_THV = stream.empty((*heads, spec.value_size))
        stream.hold(up_HUC, kv)
        q, up, sums = q_THQ.data_ptr(), up_HUC.data_ptr(), sums_THC.data_ptr()
        absorbed, made = absorbed_THX.data_ptr(), (spec.key_size, spec.value_size)
        sizes = (spec.latent_size, spec.rotary_size, *made)
        stream.emit(self._absorb, q, up, absorbed, *heads, *sizes, as_bits(spec.scale))
        stream.emit(
            self._attend,
            *self.pages(kv),
            self._plan,
            absorbed,
            sums,
            batch.page_table_RP.data_ptr(),
            batch.page_table_RP.stride(0),
            *heads,
        )
        stream.emit(self._expand, sums, up, y_THV.data_ptr(), *heads, spec.latent_size, *made)
        return y_THV

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return latents and rotated keys at token slots. [S, X]"""
        return kv.view(-1, kv.shape[-1])[slots_S]

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


class LatentKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        self._prepare = device.stream.kernel("latent_prepare")

    def rotate_and_write_latent(
        self,
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
        """Normalise latents, rotate keys and queries, these where they lie, and store."""
        assert isinstance(provider, NativeLatentAttention), f"{provider} has another layout"
        kv_TX, q_THQ = rows_of(kv_TX), q_THQ.contiguous()
        num_tokens, num_heads, query_size = q_THQ.shape
        self._stream.hold(cos_sin_LE, norm_C, kv, batch)
        self._stream.emit(
            self._prepare,
            *provider.pages(kv),
            q_THQ.data_ptr(),
            query_size,
            kv_TX.data_ptr(),
            kv_TX.stride(0),
            norm_C.data_ptr(),
            as_bits(eps),
            0 if cos_sin_LE is None else cos_sin_LE.data_ptr(),
            int(is_interleaved),
            batch.positions_T.data_ptr(),
            batch.write_slots_T.data_ptr(),
            num_tokens,
            num_heads,
        )
        return q_THQ


def _heads_together(num_heads: int) -> int:
    """Return the most heads that divide them all and fit a tile."""
    return max(n for n in range(1, MOST_HEADS + 1) if num_heads % n == 0)

"""Latent attention over pages, natively.

Shapes: as in :mod:`headstock.ops.latent`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.latent import LatentSpec, latent_attention, rotate_and_write_latent
from headstock_xeon.kernels.offers import EIGHTS, FLOAT32, Kernels, computes
from headstock_xeon.kernels.pages import ACCEPTED, PagedAttention
from headstock_xeon.stream import as_bits, strided

if TYPE_CHECKING:
    from headstock.ops.latent import LatentProvider
    from headstock_xeon.device import XeonDevice

LATENT_TAG = "pages-latent-tx-native"
"""A page is [tokens][X], the latent first: the reference's, rotated as the kernels do."""
MOST_HEADS = 32
"""Heads that are worked off together: the rows of a tile."""
SIZES = {"latent_size": EIGHTS, "rotary_size": EIGHTS}
ATTENDED = replace(
    FLOAT32,
    layouts=frozenset({"float32", "bfloat16", "float16"}),
    sizes={**SIZES, "page_size": ACCEPTED},
)
WRITTEN = replace(FLOAT32, layouts=frozenset({LATENT_TAG}), sizes=SIZES)


@computes(latent_attention, ATTENDED)
class NativeLatentAttention(PagedAttention):
    """Latent attention for one spec: queries absorb the keys' matrices, whatever the row."""

    def __init__(self, spec: LatentSpec, device: XeonDevice) -> None:
        together = max(n for n in range(1, MOST_HEADS + 1) if spec.num_heads % n == 0)
        heads = (spec.num_heads, spec.num_heads // together, spec.latent_size)
        sizes = (spec.latent_size, spec.rotary_size)
        super().__init__(spec, device, (LATENT_TAG, spec.kv_dtype), heads, sizes)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """Return [pages, page size, X]."""
        return (num_pages, self.spec.page_size, self.spec.cached_size)

    def write(self, latent_TC: Tensor, key_TE: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store latents, normalised, and keys, rotated, of the step's tokens."""
        given = (*strided(latent_TC), *strided(key_TE), batch.write_slots_T)
        self._stream.emit("latent_write", *self.pages(kv), *given, latent_TC.shape[0])

    def run(self, q_THQ: Tensor, up_HUC: Tensor, kv: Tensor, batch: StepBatch) -> Tensor:
        """Attend. [T, H, V]"""
        self._decide(batch)
        spec, stream = self.spec, self._stream
        heads = (q_THQ.shape[0], spec.num_heads)
        absorbed_THX = stream.empty((*heads, spec.cached_size))
        sums_THC = stream.empty((*heads, spec.latent_size))
        y_THV = stream.empty((*heads, spec.value_size))
        made = (spec.key_size, spec.value_size)
        sizes = (*heads, spec.latent_size, spec.rotary_size, *made, as_bits(spec.scale))
        stream.emit("latent_absorb", q_THQ.contiguous(), up_HUC, absorbed_THX, *sizes)
        table = (batch.page_table_RP, batch.page_table_RP.stride(0))
        given = (self._plan, absorbed_THX, sums_THC, *table)
        stream.emit("latent_attend", *self.pages(kv), *given, *heads)
        stream.emit("latent_expand", sums_THC, up_HUC, y_THV, *heads, spec.latent_size, *made)
        return y_THV

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return latents and rotated keys at token slots. [S, X]"""
        return kv.view(-1, kv.shape[-1])[slots_S]


class LatentKernels(Kernels):
    """What prepares a step's tokens for latent attention."""

    @computes(rotate_and_write_latent, WRITTEN)
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
        q_THQ = q_THQ.contiguous()
        num_tokens, num_heads, query_size = q_THQ.shape
        given = (q_THQ, query_size, *strided(kv_TX), norm_C, as_bits(eps))
        places = (cos_sin_LE, int(is_interleaved), batch.positions_T, batch.write_slots_T)
        counts = (num_tokens, num_heads)
        self._stream.emit("latent_prepare", *provider.pages(kv), *given, *places, *counts)
        return q_THQ

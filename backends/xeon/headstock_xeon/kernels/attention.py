"""Attention over pages, of keys and values and of latents: the plan of a step, and its layers.

Shapes: T tokens, H query heads, K key/value heads, D head size, P pages, S token slots; of
latents as in :mod:`headstock.ops.latent`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headstock.ops import latent
from headstock.ops.attention import (
    BIDIRECTIONAL,
    BOTH_SIDES,
    CHOSEN_BLOCKS,
    CHUNKED,
    NARROW_PAGES,
    AttentionSpec,
    PageFormat,
    StepBatch,
    attention,
)
from headstock.ops.base import Sizes
from headstock.ops.int8_pages import SCALE_BYTES
from headstock.ops.latent import (
    CHOSEN_TOKENS,
)
from headstock.ops.narrow_pages import NARROW
from headstock.ops.offers import computes
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.base import EIGHTS, FLOAT32, WHOLE_PAGES, Kernels, rows_of_step
from headstock_xeon.stream import Word, address, as_bits, strided

PAGE_SIZES = (16, 32, 64, 128)
ACCEPTED = Sizes(only=frozenset(PAGE_SIZES))
FP8 = torch.float8_e4m3fn
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, FP8: 4}
"""``Element`` of ``kernels.h``."""
TAG = "pages-kdt-vtd"
"""A page has for each key/value head its keys [D][tokens], then its values [tokens][D].

In 8 bits the scales of the tokens, float32, follow the keys and follow the values.
"""
FEATURES = frozenset(
    {"sliding_window", "sinks", "soft_cap", BIDIRECTIONAL, BOTH_SIDES, CHUNKED}
).union(*NARROW_PAGES.values())
GROUPS = Sizes(at_most=64)
"""Query heads that may share a key/value head: they are one tile."""
REQUIRES = replace(
    FLOAT32,
    page_dtypes=frozenset({"float32", "bfloat16", "float16", *NARROW_PAGES}),
    features=FEATURES,
    sizes={"head_dim": EIGHTS, "page_size": ACCEPTED, "heads_per_kv_head": GROUPS},
)
BY_BLOCKS = replace(WHOLE_PAGES, features=frozenset({CHOSEN_BLOCKS}), sizes=REQUIRES.sizes)
LATENT_TAG = "pages-latent-tx-native"
"""A page is [tokens][X], the latent first: the reference's, rotated as the kernels do."""
MOST_HEADS = 32
"""Heads that are worked off together: the rows of a tile."""
LATENT_SIZES = {"latent_size": EIGHTS, "rotary_size": EIGHTS}
ATTENDED = replace(
    WHOLE_PAGES,
    features=frozenset({CHOSEN_TOKENS}),
    sizes={**LATENT_SIZES, "page_size": ACCEPTED},
)
WRITTEN = replace(FLOAT32, page_formats=frozenset({LATENT_TAG}), sizes=LATENT_SIZES)


class PagedAttention:
    """Attention for one spec.

    What each thread does is decided on the device, once a step, by an instruction of its own
    before the first layer's: captured steps decide anew on every replay.

    Args:
        spec: What is asked, with its most tokens, rows and length.
        device: The processor.
        pages: Tag of their format, and the dtype that they have.
        heads: Query heads, blocks of them that share what they read, and numbers of each.
        sizes: Of a token in a page.
        window: Tokens that a token sees, 0 for all, of chunks negated; whether it sees later ones.

    Attributes:
        geometry: What instructions say of pages, but for where they are.
    """

    def __init__(
        self,
        spec: Any,
        device: XeonDevice,
        pages: tuple[str, torch.dtype],
        heads: tuple[int, int, int],
        sizes: Sequence[int],
        window: tuple[int, bool] = (0, False),
    ) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        preferred = (spec.page_size, *(s for s in PAGE_SIZES if s != spec.page_size))
        self.page_format = PageFormat(tag=pages[0], page_sizes=preferred, dtype=pages[1])
        self._stream, calls = device.stream, device.library.calls
        most, (tokens, is_bidirectional) = (spec.max_tokens, spec.max_rows), window
        self._plan = calls.hs_attention_new(
            device.stream.engine, *most, *heads, spec.max_length, tokens, int(not is_bidirectional)
        )
        weakref.finalize(self, calls.hs_attention_free, self._plan).atexit = False
        self.geometry = (ELEMENTS[spec.kv_dtype], spec.page_size, *sizes)
        self._planned: StepBatch | None = None

    def pages(self, kv: Tensor) -> tuple[Word, ...]:
        """Return what instructions say of a layer's pages."""
        return (kv, *self.geometry)

    def plan(self, batch: StepBatch) -> None:
        """Forget the last step: the next :meth:`run` decides who does what."""
        assert batch.num_tokens <= self.spec.max_tokens, f"{batch.num_tokens} tokens"
        assert batch.num_rows <= self.spec.max_rows, f"{batch.num_rows} rows"
        self._planned = None

    def _decide(self, batch: StepBatch) -> None:
        """Emit the plan: the first layer of a step does."""
        self._planned = batch
        self._stream.hold(self)
        rows = (batch.query_starts_R1, batch.kv_lengths_R)
        table = (batch.page_table_RP, batch.page_table_RP.stride(0))
        tree = batch.tree_N4 if batch.tree_N4.numel() else None
        counts = (batch.counts, batch.num_rows, batch.num_tokens)
        self._stream.emit("attend_plan", self._plan, *rows, *table, tree, *counts)


@computes(attention, REQUIRES, BY_BLOCKS)
class NativeAttention(PagedAttention):
    """Attention for one spec."""

    def __init__(self, spec: AttentionSpec, device: XeonDevice) -> None:
        self._kind = kind = NARROW.get(spec.kv_dtype)
        dtype = spec.kv_dtype if kind is None else kind.storage
        window = (spec.window or 0) * (-1 if CHUNKED in spec.features else 1)
        sizes = (spec.num_kv_heads, spec.head_dim)
        seen = (window, BIDIRECTIONAL in spec.features)
        super().__init__(spec, device, (TAG, dtype), (spec.num_heads, *sizes), sizes, seen)
        self._options = (as_bits(spec.scale), as_bits(spec.soft_cap or 0.0))

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """Return [pages, K, 2, page size * D], or as many more as scales take."""
        spec = self.spec
        size = spec.head_dim + (0 if self._kind is None else SCALE_BYTES)
        return (num_pages, spec.num_kv_heads, 2, spec.page_size * size)

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store keys and values of the step's tokens into the pages of ``kv``."""
        k_TKD, v_TKD = _heads_together(k_TKD), _heads_together(v_TKD)
        given = (k_TKD, k_TKD.stride(0), v_TKD, v_TKD.stride(0), batch.write_slots_T)
        self._stream.emit("write", *self.pages(kv), *given, k_TKD.shape[0])

    def run(
        self,
        q_THD: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        sinks_H: Tensor | None = None,
        chosen_TKk: Tensor | None = None,
    ) -> Tensor:
        """Attend. [T, H, D]"""
        q_THD = _heads_together(q_THD)
        shape, table_RP = tuple(q_THD.shape), batch.page_table_RP
        y_THD = self._stream.empty(shape)
        if chosen_TKk is not None:
            given = (q_THD, q_THD.stride(0), y_THD, chosen_TKk.contiguous(), chosen_TKk.shape[2])
            sizes = (self.spec.block_size, *shape[:2], self._options[0])
            self._stream.emit(
                "attend_blocks", *self.pages(kv), *rows_of_step(batch), *given, *sizes
            )
            return y_THD
        if self._planned is not batch:
            self._decide(batch)
        used = (kv, q_THD, y_THD, sinks_H, table_RP)
        inputs = (self._plan, q_THD.data_ptr(), q_THD.stride(0), y_THD.data_ptr())
        table = (address(sinks_H), table_RP.data_ptr(), table_RP.stride(0), *shape[:2])
        pages = (kv.data_ptr(), *self.geometry)
        self._stream.emit_words("attend", used, *pages, *inputs, *table, *self._options)
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


@computes(latent.latent_attention, ATTENDED)
class NativeLatentAttention(PagedAttention):
    """Latent attention for one spec: queries absorb the keys' matrices, whatever the row."""

    def __init__(self, spec: latent.LatentSpec, device: XeonDevice) -> None:
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

    def run(
        self,
        q_THQ: Tensor,
        up_HUC: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        chosen_Tk: Tensor | None = None,
    ) -> Tensor:
        """Attend. [T, H, V]"""
        if chosen_Tk is None and self._planned is not batch:
            self._decide(batch)
        spec, stream = self.spec, self._stream
        heads = (q_THQ.shape[0], spec.num_heads)
        absorbed_THX = stream.empty((*heads, spec.cached_size))
        sums_THC = stream.empty((*heads, spec.latent_size))
        y_THV = stream.empty((*heads, spec.value_size))
        made = (spec.key_size, spec.value_size)
        sizes = (*heads, spec.latent_size, spec.rotary_size, *made, as_bits(spec.scale))
        stream.emit("latent_absorb", q_THQ.contiguous(), up_HUC, absorbed_THX, *sizes)
        if chosen_Tk is None:
            table = (batch.page_table_RP, batch.page_table_RP.stride(0))
            given = (self._plan, absorbed_THX, sums_THC, *table)
            stream.emit("latent_attend", *self.pages(kv), *given, *heads)
        else:
            given = (absorbed_THX, sums_THC, chosen_Tk.contiguous(), chosen_Tk.shape[1])
            rows = rows_of_step(batch)
            stream.emit("attend_latents", *self.pages(kv), *rows, *given, *heads)
        stream.emit("latent_expand", sums_THC, up_HUC, y_THV, *heads, spec.latent_size, *made)
        return y_THV

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return latents and rotated keys at token slots. [S, X]"""
        return kv.view(-1, kv.shape[-1])[slots_S]


class LatentKernels(Kernels):
    """What prepares a step's tokens for latent attention."""

    @computes(latent.rotate_and_write_latent, WRITTEN)
    def rotate_and_write_latent(
        self,
        q_THQ: Tensor,
        kv_TX: Tensor,
        cos_sin_LE: Tensor | None,
        norm_C: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        provider: latent.LatentProvider,
        eps: float,
        is_interleaved: bool,
    ) -> Tensor:
        """Normalise latents, rotate keys and queries, these where they lie, and store."""
        assert isinstance(provider, NativeLatentAttention), f"{provider} has another page format"
        q_THQ = q_THQ.contiguous()
        num_tokens, num_heads, query_size = q_THQ.shape
        given = (q_THQ, query_size, *strided(kv_TX), norm_C, as_bits(eps))
        places = (cos_sin_LE, int(is_interleaved), batch.positions_T, batch.write_slots_T)
        counts = (num_tokens, num_heads)
        self._stream.emit("latent_prepare", *provider.pages(kv), *given, *places, *counts)
        return q_THQ


def _heads_together(x_THD: Tensor) -> Tensor:
    """Return ``x_THD`` with a token's heads contiguous: itself, nearly always."""
    is_packed = x_THD.stride(-1) == 1 and x_THD.stride(-2) == x_THD.shape[-1]
    return x_THD if is_packed else x_THD.contiguous()

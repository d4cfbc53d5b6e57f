"""What attention over pages has in common, of whatever kind: the plan of a step."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstock.ops.attention import KVLayout, StepBatch
from headstock_xeon.kernels.offers import Sizes

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice

PAGE_SIZES = (16, 32, 64, 128)
ACCEPTED = Sizes(only=frozenset(PAGE_SIZES))
FP8 = torch.float8_e4m3fn
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, FP8: 4}
"""``Element`` of ``kernels.h``."""


class PagedAttention:
    """Attention for one spec.

    What each thread does is decided on the device, once a step, by an instruction of its own
    before the first layer's: captured steps decide anew on every replay.

    Args:
        spec: What is asked, with its most tokens, rows and length.
        device: The processor.
        layout: Tag of the pages, and the dtype that they have.
        heads: Query heads, blocks of them that share what they read, and numbers of each.
        sizes: Of a token in a page.
        window: Tokens that a token sees, 0 for all, of chunks negated; whether it sees later ones.
    """

    def __init__(
        self,
        spec: Any,
        device: XeonDevice,
        layout: tuple[str, torch.dtype],
        heads: tuple[int, int, int],
        sizes: Sequence[int],
        window: tuple[int, bool] = (0, False),
    ) -> None:
        self.spec = spec
        self.graph_key: tuple[int, ...] = ()
        preferred = (spec.page_size, *(s for s in PAGE_SIZES if s != spec.page_size))
        self.layout = KVLayout(tag=layout[0], page_sizes=preferred, dtype=layout[1])
        self._stream, calls = device.stream, device.library.calls
        most, (tokens, is_bidirectional) = (spec.max_tokens, spec.max_rows), window
        self._plan = calls.hs_attention_new(
            device.stream.engine, *most, *heads, spec.max_length, tokens, int(not is_bidirectional)
        )
        weakref.finalize(self, calls.hs_attention_free, self._plan).atexit = False
        self._geometry = (ELEMENTS[spec.kv_dtype], spec.page_size, *sizes)
        self._planned: StepBatch | None = None

    def pages(self, kv: Tensor) -> tuple[Tensor | int, ...]:
        """Return what instructions say of a layer's pages."""
        return (kv, *self._geometry)

    def plan(self, batch: StepBatch) -> None:
        """Forget the last step: the next :meth:`run` decides who does what."""
        assert batch.num_tokens <= self.spec.max_tokens, f"{batch.num_tokens} tokens"
        assert batch.num_rows <= self.spec.max_rows, f"{batch.num_rows} rows"
        self._planned = None

    def _decide(self, batch: StepBatch) -> None:
        """Emit the plan, unless an earlier layer of the step has."""
        if self._planned is batch:
            return
        self._planned = batch
        self._stream.hold(self)
        rows = (batch.query_starts_R1, batch.kv_lengths_R)
        table = (batch.page_table_RP, batch.page_table_RP.stride(0))
        tree = batch.tree_N4 if batch.tree_N4.numel() else None
        counts = (batch.counts, batch.num_rows, batch.num_tokens)
        self._stream.emit("attend_plan", self._plan, *rows, *table, tree, *counts)

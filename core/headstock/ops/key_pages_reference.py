"""Pages of the references of indexers: one short key of each token, whichever way they choose.

Shapes: as in :mod:`headstock.ops.indexer`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.attention import PageFormat, StepBatch

TAG = "pages-index-td"
"""One layer's buffer is [page, token, feature]."""


class KeyPages:
    """Stores and reads keys.

    Args:
        page_size: Tokens a page holds.
        head_dim: D.
        dtype: Of the pages.
    """

    def __init__(self, page_size: int, head_dim: int, dtype: torch.dtype) -> None:
        preferred = tuple(dict.fromkeys((16, page_size)))
        self.page_format = PageFormat(tag=TAG, page_sizes=preferred, dtype=dtype)
        self.graph_key: tuple[int, ...] = ()
        self._page_size = page_size
        self._head_dim = head_dim

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, page_size, D]."""
        return (num_pages, self._page_size, self._head_dim)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: every layer reads the batch itself."""

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return rotated keys at token slots. [S, D]"""
        return kv.view(-1, kv.shape[-1])[slots_S]

    def write(self, k_TD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store the rotated keys of the step's tokens."""
        slots_T = batch.write_slots_T[: len(k_TD)]
        kv.view(-1, kv.shape[-1]).index_copy_(0, slots_T, k_TD.to(self.page_format.dtype))

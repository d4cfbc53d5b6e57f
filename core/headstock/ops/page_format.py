"""How a provider keeps what it caches: the format of its pages. Importing this loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFormat:
    """How a provider keeps one layer's keys and values.

    Attributes:
        tag: Names the format for fused ops and transfers, such as ``pages-kv-thd``.
        page_sizes: Accepted tokens a page; the first is the one it likes best.
        dtype: Of its elements.
        parts: Features that a token has in each of the tensors that the buffer is divided into,
            one after another, each with all pages: for kernels that take them apart, each without
            gaps. The buffer's shape is then [pages, page size, their sum]. (): it is one tensor.
    """

    tag: str
    page_sizes: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[int, ...] = ()

    def tensors_of(self, kv: Tensor) -> Sequence[Tensor]:
        """Return the tensors that a buffer consists of, as views: itself, or its parts.

        Args:
            kv: Contiguous where there are parts.

        Returns:
            [pages, page size, features] each, where there are parts.
        """
        if not self.parts:
            return (kv,)
        flat, begin = kv.view(-1), 0
        tensors: list[Tensor] = []
        for part in self.parts:
            shape = (*kv.shape[:2], part)
            tensors.append(flat[begin : begin + math.prod(shape)].view(shape))
            begin += math.prod(shape)
        return tensors

    def accepts(self, page_size: int) -> bool:
        """Whether pages may hold ``page_size`` tokens."""
        return page_size in self.page_sizes

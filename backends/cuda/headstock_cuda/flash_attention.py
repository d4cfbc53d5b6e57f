"""FlashAttention 4 for the rows with several queries of eager steps; all else stays with Triton.

Its kernel for Hopper reads pages that lie as ours do, through strides, and takes lengths from the
device. Two of its traits decide what is asked of it here:

* Pages of its key tile's size (128 tokens for these heads) are copied whole, by TMA, and a value
  past a row's end that is not a number spoils the row (its docstring says so). Slots past a row's
  end may hold anything, so pages are 64 tokens or fewer: those it copies token by token, up to the
  row's length.
* Its grid has a block for every row beside those that the queries fill. Steps in which few rows
  have many queries are worth it; many rows with a query each are not, and our kernels keep those.

Read of flash-attn-4 4.0.0b36: ``flash_attn/cute/interface.py``, ``paged_kv.py``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from headstock.errors import UnsupportedError
from headstock.ops.attention import attention
from headstock.ops.base import Requires, Sizes
from headstock_cuda.optional import FLASH_ATTENTION
from headstock_triton.attention.provider import PagedAttention

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from headstock.ops.attention import AttentionSpec, StepBatch
    from headstock.ops.base import OpRegistry
    from headstock.ops.device import OpDevice

PRIORITY = 90
"""Below ours, which is as fast where this takes part: for who asks for it, with --op attention=…"""

PAGE_SIZES = (64, 32, 16)
TILE_ROWS = 128
"""Queries times heads of one key/value head that a block attends for."""
MOST_ROWS = 256
"""With more rows it launches two further kernels, which would have to be compiled too."""


def register(registry: OpRegistry) -> None:
    """Offer it: once a dtype, since queries, keys and values have to be of one."""
    for dtype in ("bfloat16", "float16"):
        registry.add(
            attention,
            FLASH_ATTENTION.provider,
            build_flash_attention,
            requires=requirements(dtype),
            priority=PRIORITY,
        )


def requirements(dtype: str) -> Requires:
    """Return what it takes in ``dtype``.

    Groups of heads divide its tiles, so that queries come by TMA.
    """
    return Requires(
        dtypes=frozenset({dtype}),
        page_dtypes=frozenset({dtype}),
        sizes={
            "head_dim": Sizes(only=frozenset({64, 128})),
            "heads_per_kv_head": Sizes(only=frozenset({1, 2, 4, 8, 16})),
            "page_size": Sizes(only=frozenset(PAGE_SIZES)),
        },
        capabilities=frozenset({"sm_90a"}),
    )


def build_flash_attention(spec: AttentionSpec, device: OpDevice) -> PagedAttention:
    """Build Triton's provider with FlashAttention for its rows with several queries.

    Raises:
        UnsupportedError: The package is there and does not import.
    """
    try:
        attend = import_module(FLASH_ATTENTION.module).flash_attn_varlen_func
    except (ImportError, OSError, AttributeError) as error:
        raise UnsupportedError(
            f"flash-attn-4 is installed and does not import ({error}).",
            remedy=f"Reinstall 'headstock[{FLASH_ATTENTION.extra}]', or give --op"
            " attention=triton.",
        ) from error
    queries = FlashRows(spec, device, attend)
    return PagedAttention(spec, device, queries=queries, page_sizes=PAGE_SIZES)


class FlashRows:
    """Attends for rows with several queries, where they are many enough.

    Args:
        spec: Of the layers.
        device: Where they run.
        attend: ``flash_attn_varlen_func``.
        least_queries: Of a row, on average, for a step to be worth it; None: those of a tile.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        device: OpDevice,
        attend: Callable[..., tuple[Tensor, Any]],
        least_queries: int | None = None,
    ) -> None:
        self._spec = spec
        self._attend = attend
        self._device = device.torch_device
        group = spec.num_heads // spec.num_kv_heads
        self._least_queries = least_queries or TILE_ROWS // group
        shape = (min(spec.max_rows, MOST_ROWS),)
        self._used_R = torch.zeros(shape, dtype=torch.int32, device=self._device)

    def compile(self) -> None:
        """Attend for two rows of two tokens: the one kernel there is serves every size."""
        spec = self._spec

        def integers(*values: int) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=self._device)

        shape = (2, 2, spec.num_kv_heads, spec.page_size, spec.head_dim)
        kv = torch.zeros(shape, dtype=spec.kv_dtype, device=self._device)
        q_THD = torch.zeros(
            (4, spec.num_heads, spec.head_dim), dtype=spec.dtype, device=self._device
        )
        two_R, table_RP = integers(2, 2), integers(0, 1, 1, 0).view(2, 2)
        self._launch(q_THD, kv, integers(0, 2, 4), two_R, two_R, table_RP)

    def plan(self, batch: StepBatch) -> bool:
        """Take steps whose host rows are known, so eager ones, and fill a tile a row on average."""
        rows = batch.num_rows
        is_worth_it = batch.num_tokens >= rows * self._least_queries
        return bool(batch.host_rows) and rows <= MOST_ROWS and is_worth_it

    def attend(self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, is_first: bool) -> Tensor:
        """Attend for rows with several queries; those with one get no output."""
        rows = batch.num_rows
        starts_R1, used_R = batch.query_starts_R1[: rows + 1], self._used_R[:rows]
        if is_first:
            torch.sub(starts_R1[1:], starts_R1[:-1], out=used_R)
            used_R.mul_(used_R > 1)
        lengths_R, table_RP = batch.kv_lengths_R[:rows], batch.page_table_RP[:rows]
        return self._launch(q_THD, kv, starts_R1, used_R, lengths_R, table_RP)

    def _launch(
        self,
        q_THD: Tensor,
        kv: Tensor,
        starts_R1: Tensor,
        used_R: Tensor,
        lengths_R: Tensor,
        table_RP: Tensor,
    ) -> Tensor:
        """Call the library. No bounds of lengths are given: it compiles anew by them."""
        out_THD, _ = self._attend(
            q_THD,
            kv[:, 0].transpose(1, 2),
            kv[:, 1].transpose(1, 2),
            cu_seqlens_q=starts_R1,
            seqused_q=used_R,
            seqused_k=lengths_R,
            page_table=table_RP,
            softmax_scale=self._spec.scale,
            causal=True,
        )
        return out_THD

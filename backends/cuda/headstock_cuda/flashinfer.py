"""FlashInfer's XQA for decode steps in which no prefix is shared; all else stays with Triton.

Its planned wrappers want exact lengths on the host, which no step here has; XQA reads lengths and
page tables on the device and bakes nothing into a captured launch but the number of rows. See
``docs/decisions/0006-flashinfer-by-xqa.md``.

Read of flashinfer-python 0.6.18.post1: ``decode.py`` (``xqa_batch_decode_with_kv_cache``),
``xqa.py`` and ``data/csrc/xqa/mha.cu``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch

from headstock.errors import UnsupportedError
from headstock.ops.attention import attention
from headstock.ops.base import Requires, Sizes
from headstock_cuda.optional import FLASHINFER
from headstock_triton.attention.provider import PagedAttention

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from headstock.ops.attention import AttentionSpec, StepBatch
    from headstock.ops.base import OpRegistry
    from headstock.ops.device import OpDevice

PRIORITY = 50
"""Under Triton's: until it is measured, it computes only where it is forced."""

PAGE_SIZES = (64,)
WORKSPACE_BYTES = 32 << 20
"""8 MiB of semaphores, then partial results of at most one block a multiprocessor."""


def register(registry: OpRegistry) -> None:
    """Offer it: once a dtype, since queries, keys and values have to be of one."""
    for dtype in ("bfloat16", "float16"):
        registry.add(
            attention,
            FLASHINFER.provider,
            build_flashinfer,
            requires=requirements(dtype),
            priority=PRIORITY,
        )


def requirements(dtype: str) -> Requires:
    """Return what it takes in ``dtype``.

    It compiles a kernel for each page size and group of heads, a minute each: those in use.
    """
    return Requires(
        dtypes=frozenset({dtype}),
        page_dtypes=frozenset({dtype}),
        sizes={
            "head_dim": Sizes(only=frozenset({64, 128})),
            "heads_per_kv_head": Sizes(only=frozenset({2, 4, 8})),
            "page_size": Sizes(only=frozenset(PAGE_SIZES)),
        },
        capabilities=frozenset({"sm_90a"}),
    )


def build_flashinfer(spec: AttentionSpec, device: OpDevice) -> PagedAttention:
    """Build Triton's provider with XQA for its decode steps.

    Raises:
        UnsupportedError: The package is there and does not import.
    """
    try:
        attend = import_module(FLASHINFER.module).xqa_batch_decode_with_kv_cache
    except (ImportError, OSError, AttributeError) as error:
        raise UnsupportedError(
            f"flashinfer-python is installed and does not import ({error}).",
            remedy=f"pip install --force-reinstall 'headstock[{FLASHINFER.extra}]', or drop --op"
            " attention=flashinfer.",
        ) from error
    decodes = XqaRows(spec, device, attend)
    return PagedAttention(spec, device, decodes=decodes, page_sizes=PAGE_SIZES)


class XqaRows:
    """Attends for steps of one query a row.

    Args:
        spec: Of the layers.
        device: Where they run.
        attend: ``xqa_batch_decode_with_kv_cache``.
    """

    def __init__(
        self, spec: AttentionSpec, device: OpDevice, attend: Callable[..., Tensor]
    ) -> None:
        self._spec = spec
        self._attend = attend
        self._device = device.torch_device
        # Zeroed once: a launch leaves the semaphores as it found them.
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=self._device)

    def compile(self) -> None:
        """Attend for one row of one token: builds the kernel, or finds it built on disk."""
        spec = self._spec
        shape = (1, 2, spec.num_kv_heads, spec.page_size, spec.head_dim)
        kv = torch.zeros(shape, dtype=spec.kv_dtype, device=self._device)
        q_RHD = torch.zeros(
            (1, spec.num_heads, spec.head_dim), dtype=spec.dtype, device=self._device
        )
        table_RP = torch.zeros((1, 1), dtype=torch.int32, device=self._device)
        lengths_R = torch.ones(1, dtype=torch.int32, device=self._device)
        self._launch(q_RHD, kv, table_RP, lengths_R)

    def plan(self, batch: StepBatch) -> bool:
        """Take every step that it is asked for."""
        return True

    def attend(self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, is_first: bool) -> Tensor:
        """Attend for all rows, padding rows too."""
        rows = batch.num_rows
        assert q_THD.shape[0] == rows, f"{q_THD.shape[0]} queries of {rows} rows"
        return self._launch(q_THD, kv, batch.page_table_RP[:rows], batch.kv_lengths_R[:rows])

    def _launch(self, q_RHD: Tensor, kv: Tensor, table_RP: Tensor, lengths_R: Tensor) -> Tensor:
        """Call the library, which steps from row to row of the table by its width."""
        return self._attend(
            q_RHD,
            kv,
            self._workspace,
            table_RP.contiguous(),
            lengths_R.view(torch.uint32),
            self._spec.max_length,
            bmm1_scale=self._spec.scale,
            kv_layout="HND",
        )

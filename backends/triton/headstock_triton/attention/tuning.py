"""Block shapes of the attention kernels, and when each of them is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from headstock_triton.target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Block shapes of the three attention kernels: measured choices, not contracts.

    Attributes:
        prefill: (query rows of a block, tokens of a tile, warps, stages).
        long_prefill: Likewise, where some row may have as many as ``long_queries`` queries: its
            blocks read each key for more queries at once.
        long_registers: Registers a thread of it may have, so that two blocks share a
            multiprocessor; None: as many as it likes.
        long_queries: See ``long_prefill``.
        hopper_tokens: Least tokens of a step whose rows with several queries the kernel for Hopper
            attends for: its blocks take a multiprocessor each.
        hopper_length: Likewise of its longest row.
        tail: (tokens of a tile, warps, stages).
        short_tail: Likewise in steps with a tree, which leaves short tails.
        node: (query rows of an item, tokens of a tile, warps, stages).
        prefill_tma: Whether the prefill's tiles come by tensor descriptor.
        decode_tma: Likewise for tails and nodes.
        programs_per_sm: Tail programs to aim at, a multiprocessor, over all heads.
        tail_min_chunk: Least tokens of a tail program.
        node_min_chunk: Least tokens of a node program.
        min_gain: Row-tokens that a node must save to be read apart.
    """

    prefill: tuple[int, int, int, int] = (64, 64, 4, 3)
    long_prefill: tuple[int, int, int, int] = (128, 64, 8, 2)
    long_registers: int | None = 128
    long_queries: int = 4096
    hopper_tokens: int = 2048
    hopper_length: int = 2048
    tail: tuple[int, int, int] = (64, 2, 3)
    short_tail: tuple[int, int, int] = (32, 2, 3)
    node: tuple[int, int, int, int] = (64, 64, 4, 3)
    prefill_tma: bool = True
    decode_tma: bool = False
    programs_per_sm: int = 6
    tail_min_chunk: int = 64
    node_min_chunk: int = 256
    min_gain: int = 128


FLOAT32 = Tuning(
    prefill=(16, 32, 4, 2),
    long_prefill=(16, 32, 4, 2),
    long_registers=None,
    tail=(32, 2, 2),
    short_tail=(32, 2, 2),
    node=(16, 32, 4, 2),
)
"""Small blocks: tensor cores do not multiply float32 exactly, and unrolled products of large blocks
take minutes to compile."""

WIDE = Tuning(
    prefill=(64, 32, 8, 2),
    long_prefill=(128, 32, 8, 2),
    long_registers=None,
    tail=(32, 4, 3),
    short_tail=(32, 4, 3),
    node=(64, 32, 8, 2),
)
"""Heads of 256: smaller tiles, so that what is in flight has room in shared memory."""


WIDEST = Tuning(
    prefill=(32, 32, 8, 2),
    long_prefill=(64, 32, 8, 2),
    long_registers=None,
    tail=(32, 8, 2),
    short_tail=(32, 8, 2),
    node=(32, 32, 8, 2),
)
"""Heads of 512."""

SMALL_WIDEST = Tuning(
    prefill=(16, 16, 8, 1),
    long_prefill=(32, 16, 8, 1),
    long_registers=None,
    tail=(16, 8, 1),
    short_tail=(16, 8, 1),
    node=(16, 16, 8, 1),
)
"""Likewise, for blocks that share 64 to 100 KiB."""

FLOAT32_WIDEST = replace(
    FLOAT32,
    prefill=(16, 16, 4, 1),
    long_prefill=(16, 16, 4, 1),
    tail=(16, 4, 1),
    short_tail=(16, 4, 1),
    node=(16, 16, 4, 1),
)
"""Likewise of float32."""

SMALL_BLOCKS = Tuning(prefill=(64, 64, 4, 2), node=(64, 64, 4, 2))
"""For multiprocessors with 100 KiB of shared memory, as on cards for desktops."""

SMALL_WARPS = Tuning(
    prefill=(32, 16, 4, 1),
    long_prefill=(64, 16, 8, 1),
    long_registers=None,
    tail=(16, 2, 1),
    short_tail=(16, 2, 1),
    node=(32, 16, 4, 1),
)
"""For AMD's warps of 32, which have 256 registers a thread, and keep operands there."""

SMALL_WIDE = replace(
    SMALL_WARPS, prefill=(16, 16, 8, 1), long_prefill=(32, 16, 8, 1), node=(16, 16, 8, 1)
)


def choose_tuning(dtype: torch.dtype, head_dim: int, target: Target) -> Tuning:
    """Return the block shapes for heads of a kind on ``target``."""
    is_widest = head_dim > 256
    if dtype == torch.float32:
        return FLOAT32_WIDEST if is_widest else FLOAT32
    if is_widest:
        return WIDEST if target.has_large_blocks else SMALL_WIDEST
    is_wide = head_dim > 128
    if target.has_small_warps:
        return SMALL_WIDE if is_wide else SMALL_WARPS
    if is_wide:
        return WIDE
    return SMALL_BLOCKS if target.kind == "cuda" and not target.has_large_blocks else Tuning()

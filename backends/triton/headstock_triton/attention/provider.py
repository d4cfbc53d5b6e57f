"""The attention provider: buffers, the plan of a step, and the launches of a layer."""

# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from headstock.ops.attention import (
    BIDIRECTIONAL,
    CHUNKED,
    AttentionSpec,
    StepBatch,
)
from headstock_triton.attention.decode import (
    LOG2_E,
    NODE_COLUMNS,
    ROW_COLUMNS,
    TAIL_COLUMNS,
    attend_nodes,
    attend_tails,
)
from headstock_triton.attention.narrow import KINDS
from headstock_triton.attention.page_tiles import PageTiles
from headstock_triton.attention.plan import (
    NODE_TABLE_COLUMNS,
    ROW_PLAN_COLUMNS,
    plan_items,
    plan_rows,
)
from headstock_triton.attention.prefill import BLOCK_COLUMNS, attend_queries
from headstock_triton.attention.stored import PAGE_SIZES, StoredPages
from headstock_triton.attention.tuning import Tuning, choose_tuning
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from headstock.ops.device import OpDevice
    from headstock_triton.attention.rows import RowAttention


@dataclass(frozen=True, slots=True)
class Plan:
    """What the host decided for a step: the grids, which captured launches bake in.

    Attributes:
        is_long: Whether blocks hold more queries than usual.
        is_hopper: Whether the kernel for Hopper attends for them.
        queries: Who else attends for the rows with several queries; None: our blocks do.
        step: Who else attends for the whole step; None: we do.
    """

    tail_programs: int
    node_programs: int
    blocks: int
    nodes: int
    is_long: bool = False
    is_hopper: bool = False
    queries: RowAttention | None = None
    step: RowAttention | None = None


def hopper_kernel(spec: AttentionSpec, target: Target, group: int) -> ModuleType | None:
    """Return the module of the kernel for Hopper where it can attend for heads of ``spec``."""
    takes = (
        target.has_wgmma
        and not spec.features
        and spec.dtype == spec.kv_dtype
        and spec.dtype in (torch.bfloat16, torch.float16)
        and spec.head_dim in (64, 128)
        and group in (1, 2, 4, 8, 16, 32)
    )
    if not takes:
        return None
    from headstock_triton.attention import hopper

    return hopper


class PagedAttention(StoredPages):
    """Attention over pages, and over the tree that the step's rows form.

    With a window the tree is left out: what rows see of a shared prefix is bounded, and passes.

    Args:
        spec: Of the layers.
        device: Where they run.
        tuning: Block shapes; None: those measured.
        queries: Another library's attention for rows with several queries.
        decodes: Likewise for steps of one query a row and no tree.
        page_sizes: Accepted page sizes, the favourite first.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        device: OpDevice,
        tuning: Tuning | None = None,
        *,
        queries: RowAttention | None = None,
        decodes: RowAttention | None = None,
        page_sizes: tuple[int, ...] = PAGE_SIZES,
    ) -> None:
        super().__init__(spec, device, page_sizes)
        self.tuning = tuning or choose_tuning(spec.dtype, spec.head_dim, self._target)
        self._queries, self._decodes = queries, decodes
        self._uncompiled = [other for other in (queries, decodes) if other is not None]
        self._group = spec.num_heads // spec.num_kv_heads
        self._window = (spec.window or 0) * (-1 if CHUNKED in spec.features else 1)
        self._cap = spec.soft_cap or 0.0
        self._scale = (self._cap or spec.scale) * LOG2_E
        self._to_cap = spec.scale / self._cap if self._cap else 0.0
        self._tiles = PageTiles()
        self._hopper = hopper_kernel(spec, self._target, self._group)
        if self._hopper is not None:
            rows = self._block_rows(is_long=True)
            assert rows == self._hopper.BLOCK_ROWS, f"long blocks of {rows} rows are not Hopper's"
        self._plan = Plan(0, 0, 0, 0)
        self._leader: int | None = None
        heads = spec.num_kv_heads
        spread = self._target.num_sms * self.tuning.programs_per_sm
        self._tail_spread = max(1, spread // heads)
        self._node_spread = max(1, self._target.num_sms * 4 // heads)
        self._tail_capacity = spec.max_rows + self._tail_spread
        self._node_rows = max(1, self.tuning.node[0] // self._group)
        self._node_capacity = spec.max_rows + self._node_spread
        self._node_partials = 4 * spec.max_rows
        self._make_buffers(device.torch_device)

    def _block_rows(self, *, is_long: bool) -> int:
        """Return the rows of a block of queries times heads."""
        tuning = self.tuning
        rows = tuning.long_prefill[0] if is_long else tuning.prefill[0]
        return max(rows, next_power_of_2(self._group))

    def _block_queries(self, *, is_long: bool) -> int:
        return max(1, self._block_rows(is_long=is_long) // self._group)

    def _make_buffers(self, where: torch.device) -> None:
        spec = self.spec

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=where)

        num_partials = self._tail_capacity + self._node_partials
        shape = (num_partials, spec.num_heads)
        self._partial_lse = torch.zeros(shape, dtype=torch.float32, device=where)
        shape = (num_partials, spec.num_heads, spec.head_dim)
        self._partial_o = torch.zeros(shape, dtype=torch.float32, device=where)
        self._arrivals = integers(spec.max_rows, spec.num_kv_heads)
        self._tail_items = integers(self._tail_capacity, TAIL_COLUMNS)
        self._node_items = integers(self._node_capacity, NODE_COLUMNS)
        self._node_table = integers(max(1, spec.max_rows), NODE_TABLE_COLUMNS)
        self._row_plan = integers(spec.max_rows, ROW_PLAN_COLUMNS)
        self._row_table = integers(spec.max_rows, ROW_COLUMNS)
        least = min(self._block_queries(is_long=is_long) for is_long in (False, True))
        blocks = cdiv(spec.max_tokens, least) + spec.max_rows
        self._blocks = integers(blocks, BLOCK_COLUMNS)
        self._totals = integers(3)

    @property
    def graph_key(self) -> tuple[int, ...]:
        """The grids of the last plan."""
        return (self._plan.tail_programs, self._plan.node_programs, self._plan.blocks)

    def plan(self, batch: StepBatch) -> None:
        """Choose the grids; the work lists follow on the device, in :meth:`run`.

        The grids come from host bounds: rows and their longest length for tails (fixed once
        there are rows enough to fill the device), the tree's capacity for nodes, tokens for
        blocks. Programs past a list's end return at once.
        """
        while self._uncompiled:
            self._uncompiled.pop().compile()
        rows = batch.num_rows
        assert rows <= self.spec.max_rows, f"{rows} rows, buffers for {self.spec.max_rows}"
        self._leader = None
        has_tree = rows > 1 and not self._window
        nodes = min(batch.tree_N4.shape[0], self._node_table.shape[0]) if has_tree else 0
        is_plain = batch.max_query == 1 and not nodes
        if is_plain and self._decodes is not None and self._decodes.plan(batch):
            self._plan = Plan(0, 0, 0, 0, step=self._decodes)
            return
        tails = rows + self._tail_spread
        if rows < 16:
            longest = batch.max_kv
            if self._window:
                longest = min(longest, abs(self._window) + self._tail_unit - 1)
            tails = min(tails, rows * cdiv(longest, self.tuning.tail_min_chunk))
        blocks = 0
        is_hopper = self._hopper is not None and (
            batch.num_tokens >= self.tuning.hopper_tokens
            and batch.max_kv >= self.tuning.hopper_length
        )
        is_long = is_hopper or batch.max_query >= self.tuning.long_queries
        others = None
        if batch.max_query > 1 and self._queries is not None and self._queries.plan(batch):
            others = self._queries
        elif batch.max_query > 1:
            queries = self._block_queries(is_long=is_long)
            blocks = batch.num_tokens // queries + min(rows, batch.num_tokens // 2)
        node_programs = rows + self._node_spread if nodes else 0
        self._plan = Plan(tails, node_programs, blocks, nodes, is_long, is_hopper, others)

    def _make_lists(self, batch: StepBatch) -> None:
        rows, nodes = batch.num_rows, self._plan.nodes
        tuning = self.tuning
        plan_rows[(1,)](
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            batch.tree_N4,
            self._node_table,
            self._row_plan,
            self._row_table,
            self._totals,
            rows,
            self._plan.node_programs,
            ROWS=max(16, next_power_of_2(rows)),
            NODES=max(16, next_power_of_2(nodes)) if nodes else 0,
            NODE_CAPACITY=nodes,
            NODE_PARTIALS=self._node_partials,
            NODE_SPREAD=self._node_spread,
            NODE_ROWS=self._node_rows,
            NODE_MIN_CHUNK=tuning.node_min_chunk,
            MIN_GAIN=tuning.min_gain,
            TAIL_SPREAD=self._tail_spread,
            TAIL_MIN_CHUNK=tuning.tail_min_chunk,
            BLOCK_QUERIES=self._block_queries(is_long=self._plan.is_long),
            WINDOW=self._window,
            TAIL_UNIT=self._tail_unit,
            **self._target.launch(4),
        )
        plan_items[(rows + nodes,)](
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            batch.tree_N4,
            self._node_table,
            self._row_plan,
            self._row_table,
            self._tail_items,
            self._node_items,
            self._blocks,
            rows,
            NODE_ROWS=self._node_rows,
            NODE_CAPACITY=nodes,
            BLOCK_QUERIES=self._block_queries(is_long=self._plan.is_long),
            **self._target.launch(1),
        )

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        """Attend; launches what the plan has work for.

        The first layer that runs after a plan makes the work lists, each time that it runs:
        lengths are known on the device alone, and only once the step has begun there. A graph
        captured after the plan so makes them anew at every replay.
        """
        has_sinks = "sinks" in self.spec.features
        assert has_sinks == (sinks_H is not None), "sinks come if, and only if, the spec has them"
        if self._leader is None:
            self._leader = kv.data_ptr()
        is_first = self._leader == kv.data_ptr()
        if self._plan.step is not None:
            return self._plan.step.attend(q_THD, kv, batch, is_first=is_first)
        if is_first:
            self._make_lists(batch)
        if self._plan.queries is not None:
            out_THD = self._plan.queries.attend(q_THD, kv, batch, is_first=is_first)
        else:
            out_THD = torch.empty_like(q_THD)
        if self._plan.blocks and self._plan.is_hopper:
            self._attend_long_queries(q_THD, kv, batch, out_THD)
        elif self._plan.blocks:
            self._attend_queries(q_THD, kv, batch, sinks_H, out_THD)
        if self._plan.node_programs:
            self._attend_nodes(q_THD, kv, batch)
        self._attend_tails(q_THD, kv, batch, sinks_H, out_THD)
        return out_THD

    def _attend_queries(
        self, q: Tensor, kv: Tensor, batch: StepBatch, sinks: Tensor | None, out: Tensor
    ) -> None:
        tuning = self.tuning
        _, block_n, warps, stages = tuning.long_prefill if self._plan.is_long else tuning.prefill
        registers = tuning.long_registers if self._plan.is_long else None
        block_n, use_tma = self._tile_size(block_n, tuning.prefill_tma)
        attend_queries[(self._plan.blocks, self.spec.num_kv_heads)](
            q,
            kv,
            self._tile_source(kv, block_n, use_tma),
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            self._blocks,
            self._totals,
            q if sinks is None else sinks,
            out,
            self._scale,
            self._to_cap,
            batch.page_table_RP.stride(0),
            BLOCK_M=self._block_rows(is_long=self._plan.is_long),
            BLOCK_N=block_n,
            WINDOW=self._window,
            IS_CAPPED=self._cap > 0,
            IS_CAUSAL=BIDIRECTIONAL not in self.spec.features,
            HAS_SINKS=sinks is not None,
            TMA=use_tma,
            STAGES=self._target.stages(stages),
            **self._shape,
            **self._target.launch(warps, registers),
        )

    def _attend_long_queries(self, q: Tensor, kv: Tensor, batch: StepBatch, out: Tensor) -> None:
        kernel, spec = self._hopper, self.spec
        assert kernel is not None, "planned for the kernel for Hopper, which is not there"
        tiles = self._tiles.get(
            kv, "hopper", lambda pages: kernel.tiles_of(pages, spec.page_size, spec.head_dim)
        )
        kernel.attend_long_queries[(self._plan.blocks, spec.num_kv_heads)](
            q,
            tiles,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            self._blocks,
            self._totals,
            out,
            self._scale,
            batch.page_table_RP.stride(0),
            HEADS=spec.num_heads,
            KV_HEADS=spec.num_kv_heads,
            PAGE=spec.page_size,
            D=spec.head_dim,
            BLOCK_N=kernel.TILE_TOKENS,
            STAGES=kernel.STAGES,
            num_warps=4,
        )

    def _attend_nodes(self, q: Tensor, kv: Tensor, batch: StepBatch) -> None:
        block_m, block_n, warps, stages = self.tuning.node
        block_n, use_tma = self._tile_size(block_n, self.tuning.decode_tma)
        attend_nodes[(self._plan.node_programs, self.spec.num_kv_heads)](
            q,
            kv,
            self._tile_source(kv, block_n, use_tma),
            batch.page_table_RP,
            batch.query_starts_R1,
            self._node_items,
            self._totals,
            self._row_table,
            self._partial_o,
            self._partial_lse,
            self._scale,
            self._to_cap,
            batch.page_table_RP.stride(0),
            BLOCK_M=max(block_m, next_power_of_2(self._group)),
            BLOCK_N=block_n,
            IS_CAPPED=self._cap > 0,
            TMA=use_tma,
            STAGES=self._target.stages(stages),
            **self._shape,
            **self._target.launch(warps),
        )

    def _attend_tails(
        self, q: Tensor, kv: Tensor, batch: StepBatch, sinks: Tensor | None, out: Tensor
    ) -> None:
        has_tree = self._plan.node_programs > 0
        block_n, warps, stages = self.tuning.short_tail if has_tree else self.tuning.tail
        block_n, use_tma = self._tile_size(block_n, self.tuning.decode_tma)
        block_g = next_power_of_2(self._group)
        attend_tails[(self.spec.num_kv_heads, self._plan.tail_programs)](
            q,
            kv,
            self._tile_source(kv, block_n, use_tma),
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            self._tail_items,
            self._totals,
            self._row_table,
            self._partial_o,
            self._partial_lse,
            self._arrivals,
            q if sinks is None else sinks,
            out,
            self._scale,
            self._to_cap,
            batch.page_table_RP.stride(0),
            BLOCK_M=max(16, block_g),
            BLOCK_N=block_n,
            BLOCK_G=block_g,
            BLOCK_S=max(1, 16 // block_g),
            WINDOW=self._window,
            IS_CAPPED=self._cap > 0,
            HAS_SINKS=sinks is not None,
            TMA=use_tma,
            STAGES=self._target.stages(stages),
            **self._shape,
            **self._target.launch(warps),
        )

    @property
    def _tail_unit(self) -> int:
        """Multiples of this may be a tail's first token: a tile's tokens, or a page's."""
        return min(self.tuning.tail[0], self.spec.page_size)

    @property
    def _shape(self) -> dict[str, int]:
        spec = self.spec
        return {
            "HEADS": spec.num_heads,
            "KV_HEADS": spec.num_kv_heads,
            "PAGE": spec.page_size,
            "D": spec.head_dim,
            "BLOCK_D": self._block_d,
            "NARROW": KINDS.get(spec.kv_dtype, 0),
        }

    def _tile_size(self, block_n: int, wants_tma: bool) -> tuple[int, bool]:
        """Return the tile's tokens and whether a descriptor can copy it: it lies in one page."""
        spec = self.spec
        has_lines = self._block_d == spec.head_dim and self._kind is None
        if not (wants_tma and self._target.has_tma and has_lines):
            return block_n, False
        return min(block_n, spec.page_size), True

    def _tile_source(self, kv: Tensor, block_n: int, use_tma: bool) -> Any:
        """Return the descriptor of ``kv`` as lines, made once a layer; or ``kv`` as a stand-in.

        Of pages in 8 bits it is where their scales are.
        """
        if self._kind is not None:
            return kv.view(torch.float32)
        if not use_tma:
            return kv
        return self._tiles.get(kv, block_n, lambda pages: self._lines(pages, block_n))

    def _lines(self, kv: Tensor, block_n: int) -> Any:
        from triton.tools.tensor_descriptor import TensorDescriptor

        head_dim = self.spec.head_dim
        return TensorDescriptor.from_tensor(kv.view(-1, head_dim), [block_n, head_dim])

"""Cases of the ops round the model: slot tables with live, done and null slots; exact results.

They write into what they are given, so a case calls with fresh copies and returns what was
written. Shapes: S slots, the last is the null slot; T tokens; R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstock.ops.base import Spec
from headstock.ops.cases.base import Bench, Case

TABLE = Spec(dtype="int32")
NUM_SLOTS = 9
NULL_SLOT = NUM_SLOTS - 1
NUM_PAGES = 12
PAGE_SIZE = 16
UNTOUCHED = -7
"""What the written tensors hold before: an op that forgets an entry shows."""
Run = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """What the device keeps of the slots."""

    lengths_S: Tensor
    done_S: Tensor
    last_ids_S: Tensor
    page_table_SP: Tensor
    num_outputs_S: Tensor
    max_outputs_S: Tensor
    stop_ids_SE: Tensor


def _table(bench: Bench) -> _Table:
    draw = bench.draw(4)
    done = torch.tensor([0, 0, 1, 0, 0, 1, 0, 0, 1], dtype=torch.int32)
    lengths = torch.tensor([0, 15, 30, 16, 1, 0, 100, 47, 0], dtype=torch.int32)
    return _Table(
        lengths_S=lengths.to(draw.device),
        done_S=done.to(draw.device),
        last_ids_S=draw.integers(NUM_SLOTS, high=100, dtype=torch.int32),
        page_table_SP=draw.integers(NUM_SLOTS, NUM_PAGES, low=1, high=99, dtype=torch.int32),
        num_outputs_S=draw.integers(NUM_SLOTS, high=4),
        max_outputs_S=torch.full((NUM_SLOTS,), 4, dtype=torch.int32, device=draw.device),
        stop_ids_SE=draw.integers(NUM_SLOTS, 3, low=-1, high=6, dtype=torch.int32),
    )


ROWS: tuple[tuple[str, Sequence[int], Sequence[int], int], ...] = (
    ("one decode row", (1,), (1,), 0),
    ("decode rows", (3, 1, 7, 0), (1, 1, 1, 1), 0),
    ("decode rows, one done", (3, 2, 7), (1, 1, 1), 0),
    ("decode rows with padding", (3, 6, NULL_SLOT, NULL_SLOT), (1, 1, 1, 1), 0),
    ("a prefill", (0,), (33,), 0),
    ("chunks and decodes", (1, 3, 6, 4), (5, 1, 17, 2), 0),
    ("chunks with padding rows", (1, 6, NULL_SLOT), (5, 20, 1), 0),
    ("tokens past the last row", (1, 6, NULL_SLOT), (5, 20, 1), 11),
)
"""Label, slots, tokens of each row, tokens past the last row."""


def place_cases(bench: Bench) -> Iterator[Case]:
    """Yield rows of live, done and null slots, with ids from the host and from the slots."""
    if bench.dtype != torch.float32:
        return
    for label, slots, queries, num_past in ROWS:
        yield Case(label=label, spec=TABLE, call=_placing(bench, slots, queries, num_past))


def _placing(
    bench: Bench, slots: Sequence[int], queries: Sequence[int], num_past: int
) -> Callable[[Run], tuple[Tensor, ...]]:
    table, where = _table(bench), bench.device.torch_device
    starts = [sum(queries[:row]) for row in range(len(queries) + 1)]
    num_tokens, num_rows = starts[-1] + num_past, len(slots)
    host_ids = bench.draw(5).integers(num_tokens, low=-1, high=90, dtype=torch.int32)

    def call(run: Run) -> tuple[Tensor, ...]:
        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.full(shape, UNTOUCHED, dtype=dtype, device=where)

        longs = [empty(num_tokens, dtype=torch.int64) for _ in range(3)]
        row_of_token_T, kv_lengths_R = empty(num_tokens), empty(num_rows)
        wide_RP = empty(num_rows, NUM_PAGES + 3)
        run(
            torch.tensor(slots, dtype=torch.int32, device=where),
            torch.tensor(starts, dtype=torch.int32, device=where),
            host_ids.clone(),
            table.lengths_S,
            table.done_S,
            table.last_ids_S,
            table.page_table_SP,
            longs[0],
            longs[1],
            row_of_token_T,
            longs[2],
            kv_lengths_R,
            wide_RP[:, :NUM_PAGES],
            page_size=PAGE_SIZE,
        )
        return *longs, row_of_token_T, kv_lengths_R, wide_RP

    return call


def advance_cases(bench: Bench) -> Iterator[Case]:
    """Yield live, done and null slots."""
    if bench.dtype != torch.float32:
        return
    for label, slots, queries, _ in ROWS:
        table, slots_R = _table(bench), _rows(bench, slots)
        kv_lengths_R = table.lengths_S[slots_R.long()] + _rows(bench, queries)

        def call(
            run: Run, table: _Table = table, slots_R: Tensor = slots_R, kv_R: Tensor = kv_lengths_R
        ) -> Tensor:
            lengths_S = table.lengths_S.clone()
            run(slots_R, kv_R, table.done_S, lengths_S)
            return lengths_S

        yield Case(label=label, spec=TABLE, call=call)


def settle_cases(bench: Bench) -> Iterator[Case]:
    """Yield stop ids, last outputs, faults, done slots and rows that draw nothing."""
    if bench.dtype != torch.float32:
        return
    for label, slots in _DRAWS:
        for first_id in (0, 3):
            drawn = [(first_id + row) % 6 for row in range(len(slots))]
            drawn[-1] = -1 if first_id else drawn[-1]
            call = _settling(bench, slots, drawn)
            yield Case(label=f"{label}, ids {drawn}", spec=TABLE, call=call)


_DRAWS = (
    ("one row", (1,)),
    ("live rows", (0, 1, 3, 4, 6, 7)),
    ("done rows", (2, 0, 5)),
    ("rows that draw nothing", (3, NULL_SLOT, 4, NULL_SLOT, NULL_SLOT)),
)


def _settling(
    bench: Bench, slots: Sequence[int], drawn: Sequence[int]
) -> Callable[[Run], tuple[Tensor, ...]]:
    table, where = _table(bench), bench.device.torch_device
    drawn_R = torch.tensor(drawn, device=where)

    def call(run: Run) -> tuple[Tensor, ...]:
        state = (table.last_ids_S, table.num_outputs_S, table.done_S)
        last_ids_S, num_outputs_S, done_S = (tensor.clone() for tensor in state)
        outbox = torch.full((3, len(slots), 2), UNTOUCHED, dtype=torch.int32, device=where)
        cursor_1 = torch.tensor([7], device=where)
        for _ in range(2):
            run(
                drawn_R,
                _rows(bench, slots),
                table.max_outputs_S,
                table.stop_ids_SE,
                last_ids_S,
                num_outputs_S,
                done_S,
                outbox,
                cursor_1,
            )
        return last_ids_S, num_outputs_S, done_S, outbox, cursor_1

    return call


def count_cases(bench: Bench) -> Iterator[Case]:
    """Yield live and done slots, faults, and several rows on the null slot."""
    if bench.dtype != torch.float32:
        return
    for label, slots in _DRAWS:
        table, slots_R = _table(bench), _rows(bench, slots)
        drawn_R = bench.draw(6).integers(len(slots), low=-1, high=20)
        counts_SV = bench.draw(8).integers(NUM_SLOTS, 20, high=3, dtype=torch.int32)

        def call(
            run: Run,
            done_S: Tensor = table.done_S,
            slots_R: Tensor = slots_R,
            drawn_R: Tensor = drawn_R,
            counts_SV: Tensor = counts_SV,
        ) -> Tensor:
            written_SV = counts_SV.clone()
            run(drawn_R, slots_R, done_S, written_SV)
            return written_SV

        yield Case(label=label, spec=TABLE, call=call)


def take_cases(bench: Bench) -> Iterator[Case]:
    """Yield tables of several dtypes along either dimension, ids named twice among them."""
    if bench.dtype != torch.float32:
        return
    draw = bench.draw()
    tables = {
        "floats by column": (draw.normal(6, 40), 1),
        "integers by row": (draw.integers(40, 5, high=99, dtype=torch.int32), 0),
        "longs": (draw.integers(40, high=2**40), 0),
        "flags by row": (draw.integers(40, 33, high=2) == 1, 0),
        "columns of a wider table": (draw.normal(40, 64)[:, 3:20], 0),
    }
    for label, (table, dim) in tables.items():
        for dtype in (torch.int32, torch.int64):
            index_R = torch.tensor([3, 3, 0, 39, 17], dtype=dtype, device=draw.device)
            yield Case(label=label, spec=TABLE, args=(table, index_R), kwargs={"dim": dim})


def last_cases(bench: Bench) -> Iterator[Case]:
    """Yield rows of one token, of several, and tokens past the last row."""
    draw = bench.draw()
    for starts in ([0, 1], [0, 1, 2, 3], [0, 5, 6, 20, 33]):
        for size in (1, 64, 577):
            x_TD = draw.normal(starts[-1] + 3, size, dtype=bench.dtype)
            args = (x_TD, _rows(bench, starts))
            yield Case(label=f"{len(starts) - 1} rows of {size}", spec=bench.spec({}), args=args)


def keep_cases(bench: Bench) -> Iterator[Case]:
    """Yield logits into the first rows of a larger buffer."""
    if bench.dtype != torch.float32:
        return
    for rows, size in ((1, 1000), (5, 257)):
        x_RV = bench.draw().normal(rows, size)

        def call(run: Run, x_RV: Tensor = x_RV) -> Tensor:
            kept = torch.zeros(x_RV.shape[0] + 2, x_RV.shape[1], device=x_RV.device)
            run(x_RV, kept[: x_RV.shape[0]])
            return kept

        spec = bench.spec({"vocab_size": size})
        yield Case(label=f"{rows} rows of {size}", spec=spec, call=call)


def fault_cases(bench: Bench) -> Iterator[Case]:
    """Yield numbers, and drawn ids whose logits are none."""
    if bench.dtype != torch.float32:
        return
    for rows, size in ((1, 1000), (6, 257)):
        draw = bench.draw()
        logits_RV, drawn_R = draw.normal(rows, size), draw.integers(rows, high=size)
        for row, bad in zip(range(1, rows), (torch.nan, torch.inf, -torch.inf), strict=False):
            logits_RV[row, drawn_R[row]] = bad
        args, spec = (drawn_R, logits_RV), bench.spec({"vocab_size": size})
        yield Case(label=f"{rows} rows of {size}", spec=spec, args=args)


def forbid_cases(bench: Bench) -> Iterator[Case]:
    """Yield rows that may stop and rows that may not, with and without stop ids."""
    if bench.dtype != torch.float32:
        return
    for rows, size in ((1, 1000), (6, 257)):
        draw = bench.draw()
        logits_RV = draw.normal(rows, size)
        stops_RE = draw.integers(rows, 4, low=-3, high=size, dtype=torch.int32)
        stops_RE[:, 0] = -1
        num_outputs_R = draw.integers(rows, high=4)
        min_outputs_R = torch.full((rows,), 2, dtype=torch.int32, device=draw.device)
        yield Case(
            label=f"{rows} rows of {size}",
            spec=bench.spec({"vocab_size": size}),
            args=(logits_RV, stops_RE, num_outputs_R, min_outputs_R),
            writes=frozenset({0}),
        )


def _rows(bench: Bench, values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=bench.device.torch_device)

"""Cases of the ops round the model: slot tables with live, done and null slots; exact results.

They write into what they are given, so a case calls with fresh copies and returns what was
written. Shapes: S slots, the last is the null slot; T tokens; R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.base import Spec
from headstock.ops.cases.base import Bench, Case
from headstock.ops.steps import Slots, StepInputs

TABLE = Spec(dtype="int32")
NUM_SLOTS = 9
NULL_SLOT = NUM_SLOTS - 1
NUM_PAGES = 12
PAGE_SIZE = 16
UNTOUCHED = -7
"""What the written tensors hold before: an op that forgets an entry shows."""
Run = Callable[..., Any]


def _slots(bench: Bench, *, num_drafts: int = 0) -> Slots:
    """Return a table with live and done slots; pages of 16 tokens, of 4, and states."""
    draw = bench.draw(4)

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=draw.device)

    def floats() -> Tensor:
        return torch.ones(NUM_SLOTS, device=draw.device)

    def pages(width: int) -> Tensor:
        return draw.integers(NUM_SLOTS, width, low=1, high=99, dtype=torch.int32)

    return Slots(
        lengths_S=ints(0, 15, 30, 16, 1, 0, 100, 47, 0),
        last_ids_S=draw.integers(NUM_SLOTS, high=100, dtype=torch.int32),
        done_S=ints(0, 0, 1, 0, 0, 1, 0, 0, 1),
        max_outputs_S=ints(*[4] * NUM_SLOTS),
        min_outputs_S=ints(*[0] * NUM_SLOTS),
        top_k_S=ints(*[-1] * NUM_SLOTS),
        adapters_S=draw.integers(NUM_SLOTS, high=5, dtype=torch.int32),
        seeds_S=draw.integers(NUM_SLOTS, high=99),
        num_outputs_S=draw.integers(NUM_SLOTS, high=4),
        temperature_S=floats(),
        top_p_S=floats(),
        min_p_S=floats(),
        repetition_S=floats(),
        frequency_S=floats(),
        presence_S=floats(),
        stop_ids_SE=draw.integers(NUM_SLOTS, 3, low=-1, high=6, dtype=torch.int32),
        drafts_SK=draw.integers(NUM_SLOTS, num_drafts, low=-1, high=6, dtype=torch.int32),
        tables=(pages(NUM_PAGES), pages(4 * NUM_PAGES), pages(2)),
        page_sizes=(PAGE_SIZE, PAGE_SIZE // 4, 0),
        cursor_1=torch.tensor([7], device=draw.device),
    )


def _copy(slots: Slots) -> Slots:
    """Return the table in memory of its own."""
    fields = {field.name: getattr(slots, field.name) for field in dataclass_fields(slots)}
    tensors = {k: v.clone() if isinstance(v, Tensor) else v for k, v in fields.items()}
    return replace(slots, **tensors)


def kept(given: Any, returned: Any) -> Any:
    """Return what an op returned of a struct or tensor that it writes into: the same tensors.

    Raises:
        AssertionError: It made a new one, which no later step would see.
    """
    if isinstance(given, Tensor):
        assert returned is given, "returned another tensor than the one to write into"
        return returned
    for name in (field.name for field in dataclass_fields(given)):
        before, after = getattr(given, name), getattr(returned, name)
        is_kept = after is before or not isinstance(before, Tensor)
        assert is_kept, f"returned another tensor as {name}; it is to be written in place"
    return returned


def _inputs(
    bench: Bench, slots: Sequence[int], queries: Sequence[int], draws: Sequence[int] = ()
) -> StepInputs:
    """Return rows of ``slots`` with ``queries`` tokens, which draw from ``draws`` positions."""
    starts = [sum(queries[:row]) for row in range(len(queries) + 1)]
    return StepInputs(
        slots_R=_rows(bench, slots),
        draw_slots_R=_rows(bench, slots),
        num_draws_R=_rows(bench, draws or [1] * len(slots)),
        query_starts_R1=_rows(bench, starts),
        host_ids_T=_rows(bench, [0] * starts[-1]),
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
    """Yield rows of live, done and null slots, with ids from the host, last ids and drafts."""
    if bench.dtype != torch.float32:
        return
    for num_groups, num_drafts in ((1, 0), (3, 3)):
        for label, slots, queries, num_past in ROWS:
            call = _placing(bench, slots, queries, num_past, num_groups, num_drafts)
            yield Case(label=f"{label}, {num_groups} groups", spec=TABLE, call=call)


def _placing(
    bench: Bench,
    slots: Sequence[int],
    queries: Sequence[int],
    num_past: int,
    num_groups: int,
    num_drafts: int,
) -> Callable[[Run], tuple[Tensor, ...]]:
    table, where = _slots(bench, num_drafts=num_drafts), bench.device.torch_device
    table.tables, table.page_sizes = table.tables[:num_groups], table.page_sizes[:num_groups]
    inputs = _inputs(bench, slots, queries)
    num_tokens, num_rows = sum(queries) + num_past, len(slots)
    low = -1 - num_drafts
    inputs.host_ids_T = bench.draw(5).integers(num_tokens, low=low, high=9, dtype=torch.int32)

    def call(run: Run) -> tuple[Tensor, ...]:
        def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.full(shape, UNTOUCHED, dtype=dtype, device=where)

        wide = [empty(num_rows, pages.shape[1] + 3) for pages in table.tables]
        first = StepBatch(
            num_tokens=num_tokens,
            num_rows=num_rows,
            max_query=max(queries),
            max_kv=200,
            positions_T=empty(num_tokens, dtype=torch.int64),
            query_starts_R1=inputs.query_starts_R1,
            kv_lengths_R=empty(num_rows),
            page_table_RP=wide[0][:, :-3],
            write_slots_T=empty(num_tokens, dtype=torch.int64),
            row_of_token_T=empty(num_tokens),
            counts=empty(3),
            tree_N4=empty(0, 4),
            host_rows=[],
            adapters_R=empty(num_rows) if num_drafts else None,
        )
        others = [
            replace(
                first,
                page_table_RP=pages_RP[:, :-3],
                write_slots_T=empty(num_tokens, dtype=torch.int64),
                groups=(),
            )
            for pages_RP in wide[1:]
        ]
        first.groups = (first, *others)
        ids_T = empty(num_tokens, dtype=torch.int64)
        ids, batch = run(_copy(table), inputs, ids_T, first)
        ids_T, batch = kept(ids_T, ids), kept(first, batch)
        views = zip(batch.groups, table.page_sizes, strict=True)
        written = [view.write_slots_T for view, size in views if size]
        adapters = [] if batch.adapters_R is None else [batch.adapters_R]
        common = (ids_T, batch.positions_T, batch.row_of_token_T, batch.kv_lengths_R)
        return *common, *wide, *written, *adapters

    return call


def advance_cases(bench: Bench) -> Iterator[Case]:
    """Yield live, done and null slots."""
    if bench.dtype != torch.float32:
        return
    for label, slots, queries, _ in ROWS:

        def call(
            run: Run, slots: Sequence[int] = slots, queries: Sequence[int] = queries
        ) -> Tensor:
            table, inputs = _copy(_slots(bench)), _inputs(bench, slots, queries)
            kv_lengths_R = table.lengths_S[inputs.slots_R.long()] + _rows(bench, queries)
            none = _rows(bench, [])
            batch = StepBatch(
                num_tokens=sum(queries),
                num_rows=len(slots),
                max_query=max(queries),
                max_kv=200,
                positions_T=none,
                query_starts_R1=inputs.query_starts_R1,
                kv_lengths_R=kv_lengths_R,
                page_table_RP=none,
                write_slots_T=none,
                row_of_token_T=none,
                counts=none,
                tree_N4=none,
                host_rows=[],
            )
            return kept(table, run(table, inputs, batch)).lengths_S

        yield Case(label=label, spec=TABLE, call=call)


def settle_cases(bench: Bench) -> Iterator[Case]:
    """Yield stop ids, last outputs, faults, done slots, rows that draw nothing, and drafts."""
    if bench.dtype != torch.float32:
        return
    for num_draws in (1, 4):
        for label, slots in _DRAWS:
            for first_id in (0, 3):
                count = len(slots) * num_draws
                drawn = [(first_id + place) % 6 for place in range(count)]
                drawn[-1] = -1 if first_id else drawn[-1]
                call = _settling(bench, slots, drawn, num_draws)
                text = f"{label}, {num_draws} draws, ids from {first_id}"
                yield Case(label=text, spec=TABLE, call=call)


_DRAWS = (
    ("one row", (1,)),
    ("live rows", (0, 1, 3, 4, 6, 7)),
    ("done rows", (2, 0, 5)),
    ("rows that draw nothing", (3, NULL_SLOT, 4, NULL_SLOT, NULL_SLOT)),
)


def _settling(
    bench: Bench, slots: Sequence[int], drawn: Sequence[int], num_draws: int
) -> Callable[[Run], tuple[Tensor, ...]]:
    where, num_rows = bench.device.torch_device, len(slots)
    drawn_RJ = torch.tensor(drawn, device=where).view(num_rows, num_draws)
    draws = [1 if row == 2 else num_draws for row in range(num_rows)]
    accepted_R = _rows(bench, [min(draws[row], 1 + row % num_draws) for row in range(num_rows)])

    def call(run: Run) -> tuple[Tensor, ...]:
        table, inputs = _copy(_slots(bench)), _inputs(bench, slots, draws, draws)
        outbox = torch.full((3, num_rows, 2 + 4), UNTOUCHED, dtype=torch.int32, device=where)
        for _ in range(2):
            written, box = run(drawn_RJ, accepted_R, table, inputs, outbox)
            table, outbox = kept(table, written), kept(outbox, box)
        fields = (table.last_ids_S, table.num_outputs_S, table.done_S, table.lengths_S)
        return *fields, outbox, table.cursor_1

    return call


def accept_cases(bench: Bench) -> Iterator[Case]:
    """Yield drafts that are right, wrong, missing, and rows that draw from one position."""
    if bench.dtype != torch.float32:
        return
    for num_rows, num_drafts in ((1, 1), (7, 3), (33, 7)):
        draw = bench.draw(9)
        drawn_RJ = draw.integers(num_rows, num_drafts + 1, high=2)
        drafts_RK = draw.integers(num_rows, num_drafts, low=-1, high=2, dtype=torch.int32)
        drafts_RK[0] = drawn_RJ[0, :-1].to(torch.int32)
        draws = [1 if row % 4 == 3 else num_drafts + 1 for row in range(num_rows)]
        args = (drawn_RJ, drafts_RK, _rows(bench, draws))
        yield Case(label=f"{num_rows} rows of {num_drafts} drafts", spec=TABLE, args=args)


def draws_cases(bench: Bench) -> Iterator[Case]:
    """Yield rows that draw from one position and from several, with tokens past the last row."""
    draw = bench.draw()
    for queries, draws, num_draws in (
        ((1, 1, 1), (1, 1, 1), 1),
        ((4, 4), (4, 4), 4),
        ((9, 4, 1, 4), (1, 4, 1, 4), 4),
    ):
        x_TD = draw.normal(sum(queries) + 2, 40, dtype=bench.dtype)
        inputs = _inputs(bench, range(len(queries)), queries, draws)
        args = (x_TD, inputs.query_starts_R1, inputs.num_draws_R)
        yield Case(
            label=f"{len(queries)} rows of {queries[0]}",
            spec=bench.spec({}),
            args=args,
            kwargs={"num_draws": num_draws},
        )


def spread_cases(bench: Bench) -> Iterator[Case]:
    """Yield rows with one draw and with several."""
    if bench.dtype != torch.float32:
        return
    for num_draws in (1, 4):
        args = (_rows(bench, [3, 0, NULL_SLOT]), _slots(bench).num_outputs_S)
        yield Case(
            label=f"{num_draws} draws", spec=TABLE, args=args, kwargs={"num_draws": num_draws}
        )


def mask_cases(bench: Bench) -> Iterator[Case]:
    """Yield vocabularies that fill their last word and that do not; the sign bit counts."""
    if bench.dtype != torch.float32:
        return
    for rows, size in ((1, 1024), (6, 257)):
        draw = bench.draw()
        logits_RV, num_words = draw.normal(rows, size), -(-size // 32)
        words_RW = draw.integers(rows, num_words, low=-(2**31), high=2**31).to(torch.int32)
        yield Case(
            label=f"{rows} rows of {size}",
            spec=bench.spec({"vocab_size": size}),
            args=(logits_RV, words_RW),
            writes=frozenset({0}),
        )


def count_cases(bench: Bench) -> Iterator[Case]:
    """Yield live and done slots, faults, and several rows on the null slot."""
    if bench.dtype != torch.float32:
        return
    for label, slots in _DRAWS:
        table, slots_R = _slots(bench), _rows(bench, slots)
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
    """Yield logits and hidden states, also a part of each row, into the first rows of a buffer."""
    for rows, size, more in ((1, 1000, 0), (5, 257, 0), (3, 64, 32)):
        x_RV = bench.draw().normal(rows, size + more, dtype=bench.dtype)[:, :size]

        def call(run: Run, x_RV: Tensor = x_RV) -> Tensor:
            num_rows, size = x_RV.shape
            kept = torch.zeros(num_rows + 2, size, dtype=x_RV.dtype, device=x_RV.device)
            run(x_RV, kept[:num_rows])
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

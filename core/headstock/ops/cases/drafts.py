"""Cases of drafting: histories with garbage past what is known; exact results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from headstock.ops.cases.base import Bench, Case
from headstock.ops.cases.steps import NULL_SLOT, NUM_SLOTS, TABLE, Run, _copy, _inputs, _slots, kept
from headstock.ops.steps import Slots, StepInputs

LENGTH = 128
GARBAGE = (-(2**31), -1, 2**31 - 1)
"""What lies past the known tokens of a history."""


def append_cases(bench: Bench) -> Iterator[Case]:
    """Yield rows that drew one id and several, that are done, faulty, and that draw nothing."""
    if bench.dtype != torch.float32:
        return
    for num_draws in (1, 4):
        for slots, codes, done in (
            ((1,), (1,), (0,)),
            ((1, 6, 3, 7), (1, num_draws, 1, num_draws), (0, 0, 1, 0)),
            ((6, 2, 3, NULL_SLOT, NULL_SLOT), (num_draws, 0, -1, 0, 0), (0, 1, 1, 1, 1)),
        ):
            histories_SL = bench.draw(3).integers(NUM_SLOTS, LENGTH, high=50, dtype=torch.int32)
            table, inputs, outbox = _step(bench, slots, num_draws)
            entry = outbox[(int(table.cursor_1) - 1) % outbox.shape[0]]
            entry[:, 0] = _ints(bench, codes)
            entry[:, 1] = _ints(bench, done)

            def call(
                run: Run,
                histories_SL: Tensor = histories_SL,
                table: Slots = table,
                inputs: StepInputs = inputs,
                outbox: Tensor = outbox,
            ) -> tuple[Tensor, ...]:
                own_SL = histories_SL.clone()
                written_SL, known_R = run(own_SL, table, inputs, outbox)
                return kept(own_SL, written_SL), known_R

            yield Case(label=f"{len(slots)} rows of {num_draws}", spec=TABLE, call=call)


def ngram_cases(bench: Bench) -> Iterator[Case]:
    """Yield histories with no match, one, several, a period, and next to nothing known."""
    if bench.dtype != torch.float32:
        return
    texts: tuple[Sequence[int], ...] = (
        (),
        (5,),
        (5, 5),
        (1, 2, 3, 4),
        (1, 2, 3, 9, 1, 2, 8, 1, 2),
        (1, 2, 3, 9, 4, 2, 3, 8, 7, 1, 2, 3),
        (0, 0, 0, 0),
        (7, 8) * 9,
        tuple(range(50)) + tuple(range(20)),
        tuple(place * place % 11 for place in range(LENGTH)),
    )
    histories_SL = bench.draw(5).integers(len(texts) + 1, LENGTH, high=9, dtype=torch.int32)
    for slot, text in enumerate(texts):
        histories_SL[slot, : len(text)] = _ints(bench, text)
        rest = histories_SL[slot, len(text) :]
        rest.copy_(_ints(bench, GARBAGE * LENGTH)[: len(rest)])
    order = [*range(len(texts)), 3, len(texts), len(texts)]
    known = [len(texts[slot]) if slot < len(texts) else 0 for slot in order]
    args = (histories_SL, _ints(bench, order), _ints(bench, known))
    for max_n, min_n, num_drafts in ((1, 1, 1), (3, 2, 4), (4, 1, 7), (5, 3, 2)):
        yield Case(
            label=f"{num_drafts} drafts after {min_n} to {max_n}",
            spec=TABLE,
            args=args,
            kwargs={"max_n": max_n, "min_n": min_n, "num_drafts": num_drafts},
        )
    wide_SL = bench.draw(6).integers(3, 5000, high=40, dtype=torch.int32)
    args = (wide_SL, _ints(bench, (2, 0)), _ints(bench, (5000, 4097)))
    kwargs = {"max_n": 4, "min_n": 1, "num_drafts": 3}
    yield Case(label="long histories", spec=TABLE, args=args, kwargs=kwargs)


def count_draft_cases(bench: Bench) -> Iterator[Case]:
    """Yield rows with all their drafts, some, none, and one draft several times."""
    if bench.dtype != torch.float32:
        return
    for num_rows, num_drafts in ((1, 1), (4, 3), (9, 7)):
        draw = bench.draw(7)
        counts_SV = draw.integers(num_rows * (num_drafts + 1), 30, high=4, dtype=torch.int32)
        drafts_RK = draw.integers(num_rows, num_drafts, high=5, dtype=torch.int32)
        drafts_RK[-1, num_drafts // 2 :] = -1
        yield Case(
            label=f"{num_rows} rows of {num_drafts} drafts",
            spec=TABLE,
            args=(counts_SV, drafts_RK),
            writes=frozenset({0}),
        )


def kept_cases(bench: Bench) -> Iterator[Case]:
    """Yield rows of which one draw counts, some, and all; faults among them."""
    if bench.dtype != torch.float32:
        return
    for num_rows, num_draws in ((1, 1), (3, 2), (8, 5)):
        drawn_RJ = bench.draw(4).integers(num_rows, num_draws, low=-1, high=9)
        accepted = [1 + row % num_draws for row in range(num_rows)]
        args = (drawn_RJ, _ints(bench, accepted))
        yield Case(label=f"{num_rows} rows of {num_draws}", spec=TABLE, args=args)


def enter_cases(bench: Bench) -> Iterator[Case]:
    """Yield drafts that are ids, that are none, and rows that draw nothing."""
    if bench.dtype != torch.float32:
        return
    for num_drafts, slots in ((1, (3,)), (3, (6, 1, 0, NULL_SLOT)), (7, (6, 1, 0, 2, 4))):
        table, inputs, outbox = _step(bench, slots, num_drafts + 1)
        drafts_RK = bench.draw(9).integers(
            len(slots), num_drafts, low=-1, high=13, dtype=torch.int32
        )
        drafts_RK[0] = 4

        def call(
            run: Run,
            drafts_RK: Tensor = drafts_RK,
            table: Slots = table,
            inputs: StepInputs = inputs,
            outbox: Tensor = outbox,
        ) -> tuple[Tensor, ...]:
            own, own_box = _copy(table), outbox.clone()
            written, box = run(drafts_RK, own, inputs, own_box, vocab_size=12)
            return kept(own, written).drafts_SK, kept(own_box, box)

        yield Case(label=f"{len(slots)} rows of {num_drafts}", spec=TABLE, call=call)


def _step(bench: Bench, slots: Sequence[int], num_draws: int) -> tuple[Slots, StepInputs, Tensor]:
    """Return a table, rows of ``slots`` and an outbox, each row with ``num_draws`` draws."""
    queries = [num_draws] * len(slots)
    outbox = bench.draw(8).integers(3, len(slots) + 2, 3 + num_draws, high=50, dtype=torch.int32)
    table = _slots(bench, num_drafts=max(1, num_draws - 1))
    return table, _inputs(bench, slots, queries, queries), outbox[:, : len(slots)]


def _ints(bench: Bench, values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=bench.device.torch_device)

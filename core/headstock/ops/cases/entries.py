"""Cases of what entries are made of, of choosing them, and of rotating the last features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from headstock.ops.cases.attention import Rows
from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import Step, make_step
from headstock.ops.cases.compressed import entry_pages, entry_slots, rates, sixteen
from headstock.ops.cases.rotary import rotary_table

EPS = 1e-6
MAX_LENGTH = 1024


def compress_cases(bench: Bench) -> Iterator[Case]:
    """Yield rates to either side of a page, with and without overlap, rows and padding."""
    for page_size in bench.page_sizes:
        p = page_size
        mixed: Rows = [(7, 7), (1, p + 1), (5, 3 * p + 4), (1, 1), (1, 8 * p), (9, 8 * p + 3)]
        for rate in rates(p):
            for is_overlapped in (False, True):
                halves = "both halves" if is_overlapped else "one half"
                sizes = (32, rate, is_overlapped)
                label = f"rate {rate}, {halves}, pages of {p}"
                yield _compress_case(bench, label, p, mixed, sizes, num_padding_rows=3)
    page = sixteen(bench.page_sizes)
    decodes: Rows = [(1, n) for n in (1, 3, 4, 5, 8, page, 4 * page)]
    yield _compress_case(bench, "decode", page, decodes, (32, 4, True), num_padding_rows=2)
    yield _compress_case(bench, "no entry ends", page, [(2, 2), (1, 7)], (32, 4, True))
    yield _compress_case(bench, "a prompt", page, [(300, 420)], (32, 4, True))
    for rate, is_overlapped in ((4, True), (128, False)):
        label = f"sizes of DeepSeek V4, rate {rate}"
        yield _compress_case(bench, label, page, [(9, 130), (1, 256)], (512, rate, is_overlapped))


def _compress_case(
    bench: Bench,
    label: str,
    page_size: int,
    rows: Rows,
    sizes: tuple[int, int, bool],
    **options: Any,
) -> Case:
    """Return the case of one step; ``sizes`` are D, m and whether entries overlap."""
    size, rate, is_overlapped = sizes
    where, draw, width = bench.device.torch_device, bench.draw(1), size * (1 + is_overlapped)
    span = rate * (1 + is_overlapped)
    step = make_step(rows, page_size, where, window=span, **options)
    entry_step = make_step(rows, page_size, where, seed=1, **options)
    waiting_rows = [draw.normal(n, 2 * width, dtype=bench.dtype) for _, n in rows]
    bias_mF, norm_D = draw.normal(rate, width), draw.normal(size, dtype=bench.dtype)
    table_LE = rotary_table(max(length for _, length in rows), 16, where)

    def call(run: Callable[..., None]) -> tuple[Tensor, Tensor]:
        waiting = _waiting_pages(step, waiting_rows, page_size)
        known = [torch.zeros(0, size, dtype=bench.dtype, device=where) for _ in rows]
        entries = entry_pages(entry_step, known, rate, page_size)
        newest = [x[-n:] for x, (n, _) in zip(waiting_rows, rows, strict=True)]
        num_padding = step.batch.num_tokens - step.num_real_tokens
        padding = newest[0].new_full((num_padding, 2 * width), torch.nan)
        waiting_TG = torch.cat([*newest, padding])
        views = (waiting, step.batch, entries, entry_step.batch)
        run(waiting_TG, bias_mF, norm_D, table_LE, *views, eps=EPS)
        stored_TG = waiting.view(-1, 2 * width)[step.batch.write_slots_T[: step.num_real_tokens]]
        return entries[1:].nan_to_num(1e4), stored_TG

    def expected() -> tuple[Tensor, Tensor]:
        made = [
            _dense_entries(x_LG, bias_mF, norm_D, table_LE)[(length - num) // rate :]
            for x_LG, (num, length) in zip(waiting_rows, rows, strict=True)
        ]
        shape = (entry_step.num_pages, max(1, page_size // rate), size)
        entries = torch.full(shape, 1e4, dtype=torch.float64, device=where)
        for slots_L, made_ND, (num, length) in zip(entry_step.slots, made, rows, strict=True):
            slots_N = entry_slots(slots_L, rate, page_size)[(length - num) // rate :]
            entries.view(-1, size)[slots_N] = made_ND
        return entries[1:], torch.cat(
            [x[-n:] for x, (n, _) in zip(waiting_rows, rows, strict=True)]
        )

    named = {"head_dim": size, "rate": rate, "rotary_size": 16, "page_size": page_size}
    return Case(label=label, spec=bench.spec(named), call=call, expected=expected)


def _waiting_pages(step: Step, rows: list[Tensor], page_size: int) -> Tensor:
    """Return pages of what earlier steps have stored, else not-a-numbers."""
    shape = (step.num_pages, page_size, rows[0].shape[1])
    pages = torch.full(shape, torch.nan, dtype=rows[0].dtype, device=rows[0].device)
    for slots_L, x_LG, (num, _) in zip(step.slots, rows, step.batch.host_rows, strict=False):
        pages.view(-1, shape[2])[slots_L[:-num]] = x_LG[:-num]
    return pages


def _dense_entries(x_LG: Tensor, bias_mF: Tensor, norm_D: Tensor, table_LE: Tensor) -> Tensor:
    """Return all entries of a row, one by one in float64. [N, D]"""
    (rate, width), size = bias_mF.shape, norm_D.shape[0]
    keys_LF, gates_LF = x_LG.double().split(width, dim=1)
    made = torch.zeros(len(x_LG) // rate, size, dtype=torch.float64, device=x_LG.device)
    for number in range(len(made)):
        own = slice(number * rate, (number + 1) * rate)
        keys, gates = [keys_LF[own, -size:]], [gates_LF[own, -size:] + bias_mF[:, -size:]]
        if width > size and number:
            before = slice(own.start - rate, own.start)
            keys.append(keys_LF[before, :size])
            gates.append(gates_LF[before, :size] + bias_mF[:, :size])
        mean_D = (torch.cat(keys) * torch.cat(gates).softmax(dim=0)).sum(dim=0)
        mean_D = mean_D / (mean_D.square().mean() + EPS).sqrt() * norm_D.double()
        made[number] = _turned(mean_D, table_LE[number * rate])
    return made


def _turned(x_D: Tensor, table_E: Tensor) -> Tensor:
    """Return a vector whose last features are rotated, as complex numbers. float64. [D]"""
    cos_F, sin_F = table_E.double().chunk(2)
    size = len(table_E)
    pairs_F = torch.view_as_complex(x_D[-size:].double().view(-1, 2))
    turned_F2 = torch.view_as_real(pairs_F * torch.complex(cos_F, sin_F))
    return torch.cat((x_D[:-size].double(), turned_F2.flatten()))


def choose_cases(bench: Bench) -> Iterator[Case]:
    """Yield rates, counts of chosen entries, heads, rows and padding."""
    page = sixteen(bench.page_sizes)
    mixed: Rows = [(7, 7), (1, page + 1), (5, 3 * page), (1, 1), (9, 8 * page + 3), (1, 200)]
    for rate in (4, page, 2 * page):
        for count in (1, 6, 512):
            label = f"the best {count}, rate {rate}"
            yield _choose_case(bench, label, mixed, rate, count, num_padding_rows=2)
    decodes: Rows = [(1, n) for n in (1, 4, page, 9 * page)]
    yield _choose_case(bench, "decode", decodes, 4, 6, num_padding_rows=2)
    yield _choose_case(bench, "loose bounds", decodes, 4, 6, bound_slack=9)
    yield _choose_case(bench, "sizes of DeepSeek V4", mixed, 4, 512, heads=(64, 128))


def _choose_case(
    bench: Bench,
    label: str,
    rows: Rows,
    rate: int,
    num_chosen: int,
    heads: tuple[int, int] = (20, 24),
    **options: Any,
) -> Case:
    page_size = sixteen(bench.page_sizes)
    where, draw = bench.device.torch_device, bench.draw(1)
    step = make_step(rows, page_size, where, **options)
    q_THD = draw.normal(step.batch.num_tokens, *heads, dtype=bench.dtype)
    weights_TH = draw.normal(step.batch.num_tokens, heads[0], dtype=bench.dtype)
    q_THD[step.num_real_tokens :] = torch.nan
    entry_rows = [draw.normal(n // rate, heads[1], dtype=bench.dtype) for _, n in rows]
    most = max(1, max(n for _, n in rows) // rate)
    known = {"page_size": page_size, "rate": rate, "num_chosen": num_chosen}

    def call(run: Callable[..., Tensor]) -> Tensor:
        pages = entry_pages(step, entry_rows, rate, page_size)
        chosen_Tk = run(q_THD, weights_TH, pages, step.batch, **known)
        return _marks(chosen_Tk[: step.num_real_tokens], most)

    def expected() -> Tensor:
        marked: list[Tensor] = []
        for (num, length), entries_ND in zip(rows, entry_rows, strict=True):
            for position in range(length - num, length):
                seen_ND = entries_ND[: (position + 1) // rate].double()
                q_HD, weights_H = (x[len(marked)].double() for x in (q_THD, weights_TH))
                scores_N = weights_H @ (q_HD @ seen_ND.T).relu()
                best = scores_N.argsort(descending=True)[:num_chosen]
                row = torch.zeros(most, dtype=torch.int32, device=where)
                marked.append(row.index_fill(0, best, 1))
        return torch.stack(marked)

    names = {"num_heads": heads[0], "head_dim": heads[1]}
    return Case(label=label, spec=bench.spec(names | known), call=call, expected=expected)


def _marks(chosen_Tk: Tensor, most: int) -> Tensor:
    """Return how often each entry of a row was chosen. int32. [T, most]"""
    places_Tk = torch.where(chosen_Tk < 0, most, chosen_Tk).long()
    shape = (len(chosen_Tk), most + 1)
    counts = torch.zeros(shape, dtype=torch.int32, device=chosen_Tk.device)
    counts.scatter_add_(1, places_Tk, torch.ones_like(places_Tk, dtype=torch.int32))
    return counts[:, :-1]


def rotate_cases(bench: Bench) -> Iterator[Case]:
    """Yield sizes, both directions, a head that is rotated as a whole, views and padding."""
    draw = bench.draw()
    for tokens, heads, head_dim, size in ((1, 1, 16, 4), (17, 6, 48, 16), (5, 3, 32, 32)):
        for is_inverse in (False, True):
            what = "back" if is_inverse else "forth"
            label = f"{tokens} tokens, {heads} heads, {size} of {head_dim}, {what}"
            x_THD = draw.normal(tokens, heads, head_dim, dtype=bench.dtype)
            yield _rotate_case(bench, draw, label, x_THD, size, is_inverse=is_inverse)
    wide_THD = draw.normal(9, 4, 80, dtype=bench.dtype)[:, 1:, 16:]
    yield _rotate_case(bench, draw, "of a wider tensor", wide_THD, 16, is_inverse=False)
    padded_THD = draw.normal(6, 64, 512, dtype=bench.dtype)
    padded_THD[4:] = torch.nan
    label = "sizes of DeepSeek V4, padding"
    yield _rotate_case(bench, draw, label, padded_THD, 64, is_inverse=True, num_real=4)


def _rotate_case(
    bench: Bench,
    draw: Draw,
    label: str,
    x_THD: Tensor,
    size: int,
    *,
    is_inverse: bool,
    num_real: int | None = None,
) -> Case:
    table_LE = rotary_table(MAX_LENGTH, size, draw.device)
    positions_T = draw.integers(len(x_THD), high=MAX_LENGTH)
    signs_E = torch.ones(size, device=draw.device)
    signs_E[size // 2 :] = -1 if is_inverse else 1

    def expected() -> Tensor:
        rows = zip(x_THD, table_LE[positions_T] * signs_E, strict=True)
        turned = [torch.stack([_turned(x_D, angles_E) for x_D in x]) for x, angles_E in rows]
        return torch.stack(turned)

    return Case(
        label=label,
        spec=bench.spec({"head_dim": x_THD.shape[2], "rotary_size": size}),
        args=(x_THD, positions_T, table_LE),
        kwargs={"is_inverse": is_inverse},
        expected=expected,
        num_real=num_real,
    )

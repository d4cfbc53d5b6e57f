"""Cases of the sampling ops. Logits are float32 whatever the model computes in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.sampling import filtered_probs, uniform

Filters = tuple[Tensor, Tensor, Tensor, Tensor]
"""Temperature, top-k, top-p and min-p of each row."""

SHAPES = ((1, 1000), (3, 257), (17, 1024), (4, 49_152), (2, 1), (5, 8))
MARGIN = 1e-4
"""By how much another order of summing may move the edges between ids. Probability."""


def penalty_cases(bench: Bench) -> Iterator[Case]:
    """Yield vocabularies and rows with every penalty, one of them and none."""
    if bench.dtype != torch.float32:
        return
    draw = bench.draw()
    for rows, size in SHAPES:
        for label, repetition, frequency, presence in (
            ("all", (0.5, 2.0), (-2.0, 2.0), (-2.0, 2.0)),
            ("off", (1.0, 1.0), (0.0, 0.0), (0.0, 0.0)),
            ("repetition", (0.5, 2.0), (0.0, 0.0), (0.0, 0.0)),
        ):
            logits_SV = draw.normal(rows, size, scale=5)
            logits_SV[0, 0] = -torch.inf
            yield Case(
                label=f"{label}, {rows} rows of {size}",
                spec=bench.spec({"vocab_size": size}),
                args=(
                    logits_SV,
                    draw.integers(rows, size, low=-3, high=4, dtype=torch.int32).clamp(min=0),
                    draw.integers(rows, size, low=0, high=2) == 1,
                    draw.uniform(rows, low=repetition[0], high=repetition[1]),
                    draw.uniform(rows, low=frequency[0], high=frequency[1]),
                    draw.uniform(rows, low=presence[0], high=presence[1]),
                ),
                writes=frozenset({0}),
            )


def bias_cases(bench: Bench) -> Iterator[Case]:
    """Yield biases, forbidden ids, ids named twice and padding entries."""
    if bench.dtype != torch.float32:
        return
    draw = bench.draw()
    for rows, size in SHAPES:
        for width in (1, 7):
            ids_SB = draw.integers(rows, width, high=size)
            biases_SB = draw.normal(rows, width, scale=10)
            biases_SB[0, 0] = -torch.inf
            ids_SB[:, -1], biases_SB[:, -1] = 0, 0.0
            yield _logits_case(bench, f"{width} ids", draw, rows, size, (ids_SB, biases_SB))


def argmax_cases(bench: Bench) -> Iterator[Case]:
    """Yield plain rows, ties, rows of equals, and rows with forbidden ids."""
    if bench.dtype != torch.float32:
        return
    draw = bench.draw()
    for rows, size in SHAPES:
        logits_SV = draw.normal(rows, size)
        ties_SV = logits_SV.round()
        forbidden_SV = logits_SV.masked_fill(draw.uniform(rows, size) < 0.5, -torch.inf)
        forbidden_SV[:, size // 2] = 0.0
        variants = {
            "plain": logits_SV,
            "ties": ties_SV,
            "equals": torch.zeros_like(logits_SV),
            "forbidden": forbidden_SV,
        }
        for label, variant_SV in variants.items():
            yield Case(
                label=f"{label}, {rows} rows of {size}",
                spec=bench.spec({"vocab_size": size}),
                args=(variant_SV,),
            )
        if rows > 1:
            yield _argmax_beside_broken(bench, _broken(logits_SV))


def draw_cases(bench: Bench) -> Iterator[Case]:
    """Yield every filter alone and all together, greedy rows among them, flat and peaked rows."""
    if bench.dtype != torch.float32:
        return
    draw = bench.draw()
    for rows, size in SHAPES:
        for label, temperature, top_k, top_p, min_p in (
            ("greedy", 0.0, -1, 1.0, 0.0),
            ("temperature", 0.7, -1, 1.0, 0.0),
            ("hot", 100.0, -1, 1.0, 0.0),
            ("top-k", 1.0, 5, 1.0, 0.0),
            ("top-k of 1", 1.0, 1, 1.0, 0.0),
            ("top-k over the vocabulary", 1.0, 10**6, 1.0, 0.0),
            ("top-p", 1.0, -1, 0.8, 0.0),
            ("tiny top-p", 1.0, -1, 1e-6, 0.0),
            ("min-p", 1.0, -1, 1.0, 0.1),
            ("all", 1.3, 40, 0.9, 0.02),
        ):
            logits_SV = draw.normal(rows, size, scale=3)
            temperature_S = torch.full((rows,), temperature, device=draw.device)
            temperature_S[rows // 2 :: 4] = 0.0
            settings = (
                temperature_S,
                torch.full((rows,), top_k, dtype=torch.int32, device=draw.device),
                torch.full((rows,), top_p, device=draw.device),
                torch.full((rows,), min_p, device=draw.device),
            )
            seeds_S = draw.integers(rows, low=-(2**62), high=2**62)
            yield _draw_case(bench, f"{label}, {rows} rows of {size}", logits_SV, settings, seeds_S)
            if rows > 1 and label in ("greedy", "temperature", "all"):
                yield _draw_beside_broken(bench, label, _broken(logits_SV), settings, seeds_S)


def logprob_cases(bench: Bench) -> Iterator[Case]:
    """Yield none, one and several of the likeliest, and asked ids."""
    if bench.dtype != torch.float32:
        return
    draw = bench.draw()
    for rows, size in SHAPES:
        for k, width in ((0, 1), (1, 3), (min(5, size), 2)):
            yield Case(
                label=f"{k} likeliest, {rows} rows of {size}",
                spec=bench.spec({"vocab_size": size}),
                args=(
                    draw.normal(rows, size, scale=4),
                    draw.integers(rows, high=size),
                    draw.integers(rows, width, high=size),
                ),
                kwargs={"k": k},
            )


def _logits_case(
    bench: Bench, label: str, draw: Draw, rows: int, size: int, rest: tuple[Tensor, ...]
) -> Case:
    return Case(
        label=f"{label}, {rows} rows of {size}",
        spec=bench.spec({"vocab_size": size}),
        args=(draw.normal(rows, size), *rest),
        writes=frozenset({0}),
    )


def _draw_case(
    bench: Bench, label: str, logits_SV: Tensor, settings: Filters, seeds_S: Tensor
) -> Case:
    indexes_S = bench.draw(7).integers(len(seeds_S), high=10_000)
    args = (logits_SV, *settings, seeds_S, indexes_S)

    def check(outcome: tuple[Tensor, ...]) -> str | None:
        return wrong_draw(outcome[0], logits_SV, settings, uniform(seeds_S, indexes_S))

    spec = bench.spec({"vocab_size": logits_SV.shape[1]})
    return Case(label=label, spec=spec, args=args, check=check)


def _broken(logits_SV: Tensor) -> Tensor:
    """Return logits of which every second row, as padding may be, is not numbers. [S, V]"""
    broken_SV = logits_SV.clone()
    broken_SV[1::2] = torch.nan
    return broken_SV


def _argmax_beside_broken(bench: Bench, logits_SV: Tensor) -> Case:
    """Return the case of rows that others, which are not numbers, must leave alone."""
    rows, size = logits_SV.shape

    def check(outcome: tuple[Tensor, ...]) -> str | None:
        (ids_S,) = outcome
        is_right_S = ids_S[::2] == logits_SV[::2].argmax(dim=1)
        return _outside(ids_S, size) or (None if bool(is_right_S.all()) else f"got {ids_S[::2]}")

    label = f"beside rows that are not numbers, {rows} rows of {size}"
    return Case(label=label, spec=bench.spec({"vocab_size": size}), args=(logits_SV,), check=check)


def _draw_beside_broken(
    bench: Bench, label: str, logits_SV: Tensor, settings: Filters, seeds_S: Tensor
) -> Case:
    """Return the case of rows that others, which are not numbers, must leave alone."""
    rows, size = logits_SV.shape
    indexes_S = bench.draw(7).integers(len(seeds_S), high=10_000)
    temperature_S, top_k_S, top_p_S, min_p_S = (setting_S[::2] for setting_S in settings)
    own = (temperature_S, top_k_S, top_p_S, min_p_S)

    def check(outcome: tuple[Tensor, ...]) -> str | None:
        number_S = uniform(seeds_S, indexes_S)[::2]
        wrong = wrong_draw(outcome[0][::2], logits_SV[::2], own, number_S)
        return _outside(outcome[0], size) or (f"of every second row, {wrong}" if wrong else None)

    return Case(
        label=f"{label}, beside rows that are not numbers, {rows} rows of {size}",
        spec=bench.spec({"vocab_size": size}),
        args=(logits_SV, *settings, seeds_S, indexes_S),
        check=check,
    )


def _outside(ids_S: Tensor, size: int) -> str | None:
    """Say that an id is none of the vocabulary's: what follows reads the logit of each."""
    is_inside_S = (ids_S >= 0) & (ids_S < size)
    return None if bool(is_inside_S.all()) else f"ids {ids_S.tolist()} of {size}"


def wrong_draw(
    ids_S: Tensor, logits_SV: Tensor, settings: Filters, uniform_S: Tensor
) -> str | None:
    """Say which row's id cannot have been drawn with its number in [0, 1), or None.

    In float64, and by ``MARGIN`` generous: filters and edges may fall either way when it is close.
    """
    temperature_S, top_k_S, top_p_S, min_p_S = settings
    if ids_S.shape != uniform_S.shape or ids_S.dtype != torch.int64:
        return f"got {tuple(ids_S.shape)} {ids_S.dtype}, not {tuple(uniform_S.shape)} int64"
    logits_SV = logits_SV.double()
    kept_SV = filtered_probs(logits_SV, *settings)
    loose = (temperature_S, top_k_S, top_p_S + MARGIN, min_p_S * (1 - MARGIN))
    may_be_SV = filtered_probs(logits_SV, *loose) > 0
    after_SV = (kept_SV / kept_SV.sum(dim=1, keepdim=True)).cumsum(dim=1)
    for row, token_id in enumerate(ids_S.tolist()):
        if not 0 <= token_id < logits_SV.shape[1]:
            return f"row {row}: {token_id} is not an id of {logits_SV.shape[1]}"
        if temperature_S[row] == 0:
            if token_id != int(logits_SV[row].argmax()):
                return f"row {row} is greedy: got {token_id}, not {int(logits_SV[row].argmax())}"
            continue
        if not may_be_SV[row, token_id]:
            return f"row {row}: {token_id} is filtered out"
        number = float(uniform_S[row])
        begin = float(after_SV[row, token_id - 1]) if token_id else 0.0
        end = float(after_SV[row, token_id])
        if not begin - MARGIN <= number <= end + MARGIN:
            return f"row {row}: {token_id} covers [{begin:.5f}, {end:.5f}), drawn was {number:.5f}"
    return None

from __future__ import annotations

import pytest
import torch

from headstock.ops import sampling
from headstock_xeon.kernels.sampling import SamplingKernels


def draws(device, logits_V: torch.Tensor, count: int, **filters: float) -> torch.Tensor:
    options = {"temperature": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0} | filters
    logits_SV = logits_V.expand(count, -1).contiguous()
    dtypes = {"top_k": torch.int32}
    columns = [
        torch.full((count,), value, dtype=dtypes.get(name, torch.float32))
        for name, value in options.items()
    ]
    seeds_S, indexes_S = torch.arange(count), torch.arange(count) * 7
    return SamplingKernels(device).draw_tokens(logits_SV, *columns, seeds_S, indexes_S)


def test_draws_follow_the_distribution(device) -> None:
    logits_V = torch.tensor([0.0, 1.0, 2.0, -torch.inf, 0.5])
    counts = torch.bincount(draws(device, logits_V, 20_000), minlength=5) / 20_000
    assert torch.allclose(counts, logits_V.softmax(0), atol=0.015)


@pytest.mark.parametrize(
    ("filters", "allowed"),
    [
        ({"top_k": 2}, {3, 4}),
        ({"top_p": 0.5}, {4}),
        ({"min_p": 0.2}, {3, 4}),
        ({"top_k": 4, "top_p": 0.9}, {2, 3, 4}),
    ],
)
def test_filters_leave_the_likeliest(device, filters: dict[str, float], allowed: set[int]) -> None:
    logits_V = torch.arange(5.0)
    assert set(draws(device, logits_V, 3000, **filters).tolist()) == allowed


def test_ties_of_the_kth_stay(device) -> None:
    logits_V = torch.tensor([1.0, 2.0, 1.0, 1.0, -3.0])
    assert set(draws(device, logits_V, 3000, top_k=2).tolist()) == {0, 1, 2, 3}


def test_draws_are_the_references_nearly_always(device) -> None:
    torch.manual_seed(0)
    count, size = 200, 5000
    logits_SV = torch.randn(count, size) * 3
    args = (
        torch.full((count,), 0.8),
        torch.randint(1, 200, (count,), dtype=torch.int32),
        torch.rand(count) * 0.5 + 0.5,
        torch.rand(count) * 0.02,
        torch.randint(-(2**62), 2**62, (count,)),
        torch.randint(0, 4000, (count,)),
    )
    ours = SamplingKernels(device).draw_tokens(logits_SV, *args)
    theirs = sampling.draw_tokens.reference(logits_SV, *args)
    assert (ours == theirs).float().mean() > 0.98


def test_a_row_draws_the_same_among_any_others(device) -> None:
    logits_SV = torch.randn(9, 1000)
    columns = (torch.ones(9), torch.full((9,), -1, dtype=torch.int32), torch.ones(9))
    args = (*columns, torch.zeros(9), torch.arange(9), torch.arange(9))
    kernels = SamplingKernels(device)
    together = kernels.draw_tokens(logits_SV, *args)
    for i in range(9):
        alone = kernels.draw_tokens(logits_SV[i : i + 1], *(a[i : i + 1] for a in args))
        assert alone[0] == together[i]


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000, 49152])
def test_argmax_takes_the_first_of_equals(device, size: int) -> None:
    logits_SV = torch.randn(3, size).round()
    logits_SV[1] = 0.0
    assert torch.equal(SamplingKernels(device).argmax_tokens(logits_SV), logits_SV.argmax(-1))


@pytest.mark.parametrize("place", [0, 5, 16, 19])
def test_argmax_finds_what_is_no_number(device, place: int) -> None:
    logits_SV = torch.randn(1, 20)
    logits_SV[0, place] = torch.nan
    assert SamplingKernels(device).argmax_tokens(logits_SV).item() == place

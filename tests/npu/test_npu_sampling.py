"""Draws on the ascend backend: the reference's, with ties, faulty rows, in captured steps."""

from __future__ import annotations

import pytest
import torch
from headstock_npu_on_cpu.device import NpuOnCpu
from torch import Tensor

from headstock.ops.sampling import draw_tokens, filtered_probs
from headstock.ops.steps import mark_faults
from headstock.plugins.device import GraphKey
from headstock_ascend import sampling

Settings = tuple[Tensor, ...]


def settings(rows: int, *, k: int = -1, p: float = 1.0, min_p: float = 0.0) -> Settings:
    """Return what a draw takes besides logits, for rows of equal settings."""
    return (
        torch.ones(rows),
        torch.full((rows,), k, dtype=torch.int32),
        torch.full((rows,), p),
        torch.full((rows,), min_p),
        torch.arange(rows) * 7919,
        torch.arange(rows) + 3,
    )


FILTERS = ({}, {"k": 5}, {"p": 0.6}, {"min_p": 0.2}, {"k": 40, "p": 0.7, "min_p": 0.01})


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_of_equals_those_stay_that_the_reference_keeps(filters: dict[str, float]) -> None:
    """Half of the vocabulary has one of three weights, so that the edge lies among equals."""
    draw = torch.Generator().manual_seed(1)
    logits_SV = torch.randint(0, 3, (16, 512), generator=draw).float()
    logits_SV[:, ::2] = torch.randn(16, 256, generator=draw)
    given = settings(16, **filters)  # pyright: ignore[reportArgumentType]
    kept_SV = sampling.keep_likeliest(torch.softmax(logits_SV, -1), *given[1:4])
    assert torch.equal(kept_SV, filtered_probs(logits_SV, *given[:4]))


def test_draws_are_those_of_the_reference() -> None:
    logits_SV = torch.randn(64, 2000, generator=torch.Generator().manual_seed(2)) * 3
    for filters in FILTERS:
        given = settings(64, **filters)  # pyright: ignore[reportArgumentType]
        assert torch.equal(
            sampling.draw_tokens(logits_SV, *given), draw_tokens.reference(logits_SV, *given)
        )


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_one_faulty_logit_is_marked(fault: float, temperature: float) -> None:
    logits_SV = torch.zeros(3, 100)
    logits_SV[1, 40] = fault
    _, *given = settings(3, k=5)
    drawn_S = sampling.draw_tokens(logits_SV, torch.full((3,), temperature), *given)
    marked_S = mark_faults.reference(drawn_S, logits_SV)
    assert marked_S[1] == -1
    assert (marked_S[[0, 2]] >= 0).all()


def test_a_captured_draw_reads_what_its_buffers_hold_at_the_replay() -> None:
    device, draw = NpuOnCpu(), torch.Generator().manual_seed(3)
    logits_SV, words_RW = torch.randn(4, 70, generator=draw), torch.full((4, 3), -1).int()
    given, out_S = settings(4, p=0.9), torch.zeros(4, dtype=torch.int64)

    def step() -> None:
        masked_SV = sampling.apply_masks(logits_SV, words_RW)
        out_S.copy_(sampling.draw_tokens(masked_SV, *given))

    graph = device.capture(GraphKey("uniform", 4, 4, query=1), step)
    logits_SV.copy_(torch.randn(4, 70, generator=draw))
    words_RW.zero_()
    words_RW[:, 2] = 1 << 3  # id 67 alone
    graph.replay()
    assert out_S.tolist() == [67] * 4

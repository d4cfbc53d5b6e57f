"""Lining choices up by expert, and products of experts in blocks of every shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triton_here import DTYPES, HAS_GPU, Here

from headstock.ops.cases.base import Draw
from headstock.ops.cases.moe import draw_experts, load_experts, ragged
from headstock.ops.linear import FP8_GROUP, INT4_GROUP, INT8_GROUP
from headstock.ops.moe import ExpertsSpec, experts
from headstock_triton import moe
from headstock_triton.routing import Routing
from headstock_triton.target import Target

WHERE = Here.torch_device
SPEC = ExpertsSpec(
    hidden_size=40,
    intermediate_size=24,
    num_experts=5,
    experts_per_token=2,
    dtype=torch.float32,
)


def choices(num_tokens: int, num_experts: int, k: int) -> torch.Tensor:
    spec = replace(SPEC, num_experts=num_experts, experts_per_token=k)
    drawn = ragged(spec, num_tokens, Here())
    drawn[::7, 0] = -1
    return drawn


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "k"),
    [(1, 8, 2), (40, 5, 3), (256, 9, 2), (257, 9, 2), (700, 60, 4), (300, 200, 8)],
)
@pytest.mark.parametrize("block_m", [16, 64])
def test_every_choice_has_one_row_in_a_tile_of_its_expert(num_tokens, num_experts, k, block_m):
    experts_Tk = choices(num_tokens, num_experts, k)
    line_up = Routing(Target.of(Here())).line_up(experts_Tk, num_experts, block_m)
    chosen = experts_Tk.flatten().tolist()
    entries = line_up.entries_N.tolist()
    seen = []
    for expert, first, end in line_up.tiles_L3.tolist():
        if expert >= 0:
            rows = entries[first : min(first + block_m, end)]
            assert rows == sorted(rows)
            assert {chosen[entry] for entry in rows} == {expert}
            seen += rows
    assert sorted(seen) == [entry for entry, expert in enumerate(chosen) if expert >= 0]


def computed(tuning, spec, num_tokens, experts_Tk):
    draw = Draw(WHERE, seed=7)
    weights = draw_experts(spec, draw)
    x_TD = draw.normal(num_tokens, spec.hidden_size, dtype=spec.dtype)
    weights_Tk = draw.uniform(*experts_Tk.shape)
    ours, right = moe.FusedExperts(spec, Here(), tuning), experts.reference(spec, Here())
    for provider in (ours, right):
        load_experts(provider, weights)
    return ours(x_TD, weights_Tk, experts_Tk), right(x_TD, weights_Tk, experts_Tk)


@pytest.mark.parametrize("tuning", [moe.FEW, moe.SOME, moe.MANY, moe.MOST, moe.LARGEST])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_every_shape_have_the_reference_s_results(tuning, dtype):
    spec = replace(SPEC, dtype=dtype)
    if HAS_GPU and dtype == torch.float32 and tuning not in (moe.FEW, moe.SOME):
        pytest.skip("never chosen, and long to compile")
    got, wanted = computed(tuning, spec, 50, choices(50, 5, 2))
    rtol, atol = experts.tolerance.of(str(dtype)[6:])
    torch.testing.assert_close(got.double(), wanted.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("layout", "group_size"),
    [(INT8_GROUP, 96), (INT4_GROUP, 32), (INT4_GROUP, 96), (FP8_GROUP, 32)],
)
@pytest.mark.parametrize("tuning", [moe.FEW, moe.SOME])
def test_quantised_weights_are_multiplied_as_what_they_stand_for(tuning, layout, group_size):
    if HAS_GPU and layout == FP8_GROUP and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this card has no 8-bit floating point")
    spec = replace(SPEC, hidden_size=96, intermediate_size=192, layout=layout)
    spec = replace(spec, group_size=group_size)
    got, wanted = computed(moe.halved(tuning), spec, 13, choices(13, 5, 2))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_more_choices_than_a_chunk_have_the_reference_s_results():
    got, wanted = computed(None, SPEC, 300, choices(300, 5, 2))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_token_s_result_does_not_depend_on_its_neighbours():
    spec, draw = SPEC, Draw(WHERE, seed=7)
    ours = moe.FusedExperts(spec, Here(), moe.FEW)
    load_experts(ours, draw_experts(spec, draw))
    x_TD, experts_Tk = draw.normal(33, spec.hidden_size), choices(33, 5, 2)
    weights_Tk = draw.uniform(33, 2)
    together = ours(x_TD, weights_Tk, experts_Tk)
    exact = {"rtol": 0, "atol": 0} if HAS_GPU else {}  # numpy's bits depend on a row's place
    for token in (0, 1, 20, 32):
        one = slice(token, token + 1)
        alone = ours(x_TD[one], weights_Tk[one], experts_Tk[one])
        torch.testing.assert_close(alone, together[one], **exact)

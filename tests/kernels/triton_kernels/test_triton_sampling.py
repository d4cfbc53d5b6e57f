"""Draws without a sort: what stays, ties, borders, rows that are faulty, and neighbours."""

from __future__ import annotations

import pytest
import torch
from triton_here import Here, triton

from headstock.ops import sampling as ops
from headstock.ops.cases.sampling import wrong_draw
from headstock_triton.sampling import draw as draw_module
from headstock_triton.sampling import filters
from headstock_triton.sampling.draw import Draws
from headstock_triton.sampling.logprobs import MAX_LIKELIEST, Logprobs
from headstock_triton.sampling.shaping import BIAS_BLOCK, Shaping
from headstock_triton.sampling.weights import PART
from headstock_triton.target import Target

WHERE = Here.torch_device
TARGET = Target.of(Here())
DRAWS, SHAPING, LOGPROBS = Draws(TARGET), Shaping(TARGET), Logprobs(TARGET)
SIZE = 2 * PART + 809
OFF = (1.0, -1, 1.0, 0.0)
INF = torch.inf


def settings(rows):
    """Return temperature, top-k, top-p and min-p of ``rows``, as the op takes them."""
    temperature, top_k, top_p, min_p = zip(*rows, strict=True)
    return (
        torch.tensor(temperature, device=WHERE),
        torch.tensor(top_k, dtype=torch.int32, device=WHERE),
        torch.tensor(top_p, device=WHERE),
        torch.tensor(min_p, device=WHERE),
    )


def draw(logits, rows, seed=0):
    """Draw with ``rows`` of settings; return the ids and the numbers that they were drawn with."""
    logits = torch.as_tensor(logits, dtype=torch.float32).to(WHERE).expand(len(rows), -1)
    seeds = torch.arange(len(rows), device=WHERE) * 7919 + seed
    indexes = torch.arange(len(rows), device=WHERE) % 5
    chosen = DRAWS.draw_tokens(logits.contiguous(), *settings(rows), seeds, indexes)
    return chosen, ops.uniform(seeds, indexes)


def normal(*shape, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * scale


@triton.jit
def uniform_kernel(seeds, indexes, out):
    row = triton.language.program_id(0)
    triton.language.store(out + row, draw_module.uniform(seeds, indexes, row))


def test_numbers_are_the_references_bit_for_bit():
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789012345, 77], device=WHERE)
    indexes = torch.tensor([0, 1, 2**32, 2**40 + 3, 9, 2**31, 4], device=WHERE)
    out = torch.empty(len(seeds), device=WHERE)
    uniform_kernel[(len(seeds),)](seeds, indexes, out)
    assert torch.equal(out, ops.uniform(seeds, indexes))


MIXED = [
    OFF,
    (0.7, 50, 1.0, 0.0),
    (1.0, -1, 0.9, 0.0),
    (1.3, -1, 1.0, 0.05),
    (0.8, 200, 0.95, 0.001),
    (0.0, 50, 0.9, 0.0),
]


@pytest.mark.parametrize("scale", [0.1, 4.0])
def test_rows_of_every_kind_draw_from_what_stays(scale):
    logits = normal(len(MIXED), SIZE, scale=scale)
    ids, numbers = draw(logits, MIXED)
    assert wrong_draw(ids, logits.to(WHERE), settings(MIXED), numbers) is None


def test_draws_with_filters_are_the_references():
    rows = [(1.0, 30, 0.9, 0.01)] * 3
    logits = normal(3, SIZE)
    seeds, indexes = torch.arange(3, device=WHERE) * 7919, torch.arange(3, device=WHERE) % 5
    wanted = ops.draw_tokens(logits.to(WHERE), *settings(rows), seeds, indexes)
    assert torch.equal(draw(logits, rows)[0], wanted)


def test_a_top_k_of_one_is_the_highest_at_any_temperature():
    logits = normal(3, SIZE)
    ids, _ = draw(logits, [(0.1, 1, 1.0, 0.0), (1.0, 1, 0.5, 0.0), (1e6, 1, 1.0, 0.9)])
    assert ids.tolist() == logits.argmax(dim=1).tolist()


def test_ties_of_the_kth_stay():
    ids, _ = draw([1.0, 1.0, 1.5, -5.0], [(1.0, 2, 1.0, 0.0)] * 3, seed=2)
    assert set(ids.tolist()) == {0, 1, 2}


def test_zeros_of_both_signs_tie():
    ids, _ = draw([0.0, -1.0, -0.0], [(1.0, 1, 1.0, 0.0)] * 2, seed=1)
    assert set(ids.tolist()) == {0, 2}


def test_of_equals_at_the_border_of_top_p_the_first_stay():
    """Equal weights are exact, so that p of the mass is exactly a number of ids."""
    size, top_p = 5000, 0.25
    ids, numbers = draw(torch.zeros(size), [(1.0, -1, top_p, 0.0)] * 4)
    assert ids.tolist() == (numbers * (size * top_p)).floor().long().tolist()


def test_what_lies_closely_over_the_border_counts_before_its_equals():
    ids, _ = draw([0.001, 0.0, 0.0, 0.0, -10.0], [(1.0, -1, 0.45, 0.0)] * 2, seed=1)
    assert ids.tolist() == [1, 0]


def test_equals_at_the_border_are_counted_over_all_parts():
    """One likelier id, then ties in every part: top-p takes them in id order."""
    logits = torch.zeros(SIZE)
    logits[SIZE - 1] = 2.0
    rows = [(1.0, -1, 0.7, 0.0)] * 2
    ids, numbers = draw(logits, rows)
    many = logits.expand(len(rows), -1).to(WHERE)
    assert wrong_draw(ids, many, settings(rows), numbers) is None


def test_the_likeliest_stays_however_small_top_p_is():
    ids, _ = draw([0.0, 3.0, 1.0], [(1.0, -1, 1e-9, 0.0)] * 2)
    assert set(ids.tolist()) == {1}


def test_min_p_of_one_leaves_the_likeliest_and_its_equals():
    ids, _ = draw([2.0, 1.999, 2.0, -INF], [(1.0, -1, 1.0, 1.0)] * 2, seed=1)
    assert set(ids.tolist()) == {0, 2}


def test_the_only_id_allowed_is_drawn():
    logits = torch.full((SIZE,), -INF)
    logits[PART + 17] = -3.0
    ids, _ = draw(logits, [OFF, (1.0, 5, 0.9, 0.1), (50.0, 5, 1.0, 0.0), (0.0, -1, 1.0, 0.0)])
    assert set(ids.tolist()) == {PART + 17}


def test_logits_far_apart_do_not_hide_the_kth():
    logits = torch.full((3000,), -1e30)
    logits[[5, 2000, 2999]] = torch.tensor([1.0, 1.5, 1.25])
    ids, _ = draw(logits, [(1.0, 2, 1.0, 0.0)] * 2, seed=1)
    assert set(ids.tolist()) == {2000, 2999}


def test_a_top_k_over_the_ids_allowed_leaves_them_all():
    logits = torch.full((300,), -INF)
    logits[[5, 200]] = 0.0
    ids, _ = draw(logits, [(1.0, 9, 1.0, 0.0)] * 2, seed=1)
    assert set(ids.tolist()) == {5, 200}


def test_faulty_rows_draw_what_shows_the_fault():
    logits = normal(4, SIZE)
    logits[0, 4500], logits[1, 30], logits[2] = torch.nan, INF, -INF
    for setting in (OFF, (1.0, 20, 0.9, 0.01)):
        rows = [setting] * 4
        ids, numbers = draw(logits, rows)
        assert ids[:3].tolist() == [4500, 30, 0]
        last = tuple(s[3:] for s in settings(rows))
        assert wrong_draw(ids[3:], logits[3:].to(WHERE), last, numbers[3:]) is None


def test_a_row_draws_the_same_alone_and_among_others():
    rows = [OFF, (0.8, 200, 0.95, 0.001), (0.0, 50, 0.9, 0.0)]
    logits = normal(len(rows), SIZE).to(WHERE)
    seeds = torch.arange(len(rows), device=WHERE)
    columns = (*settings(rows), seeds, seeds)
    together = DRAWS.draw_tokens(logits, *columns)
    for i in range(len(rows)):
        alone = DRAWS.draw_tokens(logits[i : i + 1], *(c[i : i + 1] for c in columns))
        assert alone.tolist() == together[i : i + 1].tolist()


def test_more_open_ids_than_have_room_change_nothing(monkeypatch):
    logits, rows = normal(2, SIZE, scale=0.5), [(1.0, 3000, 0.8, 0.0)] * 2
    with_room, _ = draw(logits, rows)
    monkeypatch.setattr(filters, "OPEN_IDS", 8)
    without, _ = draw(logits, rows)
    assert with_room.tolist() == without.tolist()


def test_no_rows_draw_nothing():
    none = torch.empty((0, 50), device=WHERE)
    empty = torch.empty(0, device=WHERE)
    longs = empty.long()
    ids = DRAWS.draw_tokens(none, empty, empty.int(), empty, empty, longs, longs)
    assert ids.shape == (0,)


def test_rows_without_penalties_keep_their_bits():
    logits = normal(2, SIZE).to(WHERE)
    counts = torch.ones((2, SIZE), dtype=torch.int32, device=WHERE)
    off, on = torch.tensor([1.0, 2.0]).to(WHERE), torch.tensor([0.0, 0.5]).to(WHERE)
    wanted = ops.apply_penalties(logits, counts, counts == 0, off, on, on)
    before = logits.clone()
    got = SHAPING.apply_penalties(logits, counts, counts == 0, off, on, on)
    assert got is logits
    assert torch.equal(got[0], before[0])
    torch.testing.assert_close(got, wanted)


def test_biases_of_an_id_named_in_several_blocks_add_up_once():
    width = 2 * BIAS_BLOCK + 5
    ids = torch.arange(width).expand(2, -1).clone()
    biases = torch.ones(2, width)
    ids[0, [3, 70, width - 1]] = 9
    biases[0, 20] = -INF
    ids[1], biases[1] = 0, 0.0
    got = SHAPING.add_bias(torch.zeros(2, 300).to(WHERE), ids.to(WHERE), biases.to(WHERE))
    wanted = ops.add_bias(torch.zeros(2, 300), ids, biases)
    assert torch.equal(got.cpu(), wanted)
    assert wanted[0, 9] == 4


@pytest.mark.parametrize("k", [0, 20])
def test_logprobs_over_several_parts(k):
    logits = normal(2, SIZE).to(WHERE)
    ids = torch.tensor([0, SIZE - 1], device=WHERE)
    asked = torch.tensor([[PART, 1, 2], [3, 3, SIZE - 2]], device=WHERE)
    got = LOGPROBS.token_logprobs(logits, ids, asked, k=k)
    wanted = ops.token_logprobs(logits, ids, asked, k=k)
    for ours, right in zip(got, wanted, strict=True):
        assert ours.dtype == right.dtype
        torch.testing.assert_close(ours, right)


def test_of_equally_likely_ids_the_lowest_come_first():
    logits = torch.zeros(1, SIZE, device=WHERE)
    logits[0, 1] = -0.0
    zero = torch.zeros(1, dtype=torch.int64, device=WHERE)
    _, _, top_ids, _ = LOGPROBS.token_logprobs(logits, zero, zero[:, None], k=4)
    assert top_ids.tolist() == [[0, 1, 2, 3]]


def test_likeliest_ids_may_be_forbidden_ones():
    logits = torch.full((1, 6), -INF, device=WHERE)
    logits[0, 4] = 0.0
    zero = torch.zeros(1, dtype=torch.int64, device=WHERE)
    _, top, top_ids, _ = LOGPROBS.token_logprobs(logits, zero, zero[:, None], k=3)
    assert top_ids.tolist() == [[4, 0, 1]]
    assert top.tolist() == [[0.0, -INF, -INF]]


def test_more_likeliest_ids_than_kernels_find():
    logits = normal(1, 500).to(WHERE)
    zero = torch.zeros(1, dtype=torch.int64, device=WHERE)
    k = MAX_LIKELIEST + 1
    _, top, _, _ = LOGPROBS.token_logprobs(logits, zero, zero[:, None], k=k)
    assert top.shape == (1, k)

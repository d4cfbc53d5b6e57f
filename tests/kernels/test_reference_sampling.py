"""The sampling references: draws follow the distribution, and repeat."""

from __future__ import annotations

import torch

from headstock.ops.sampling import add_bias, apply_penalties, argmax_tokens, draw_tokens, uniform


def draw(logits, temperature=1.0, top_k=-1, top_p=1.0, min_p=0.0, seeds=None, indexes=None):
    rows = logits.shape[0]
    return draw_tokens(
        logits,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p),
        torch.full((rows,), min_p),
        torch.arange(rows) if seeds is None else seeds,
        torch.zeros(rows, dtype=torch.int64) if indexes is None else indexes,
    )


def test_draws_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.25, 0.125, 0.125])
    ids = draw(probs.log().expand(20_000, 4))
    shares = torch.bincount(ids, minlength=4) / 20_000
    torch.testing.assert_close(shares, probs, rtol=0, atol=0.015)


def test_the_same_seed_and_index_draw_the_same() -> None:
    logits = torch.randn(1, 500).expand(2, 500)
    seeds, indexes = torch.tensor([7, 7]), torch.tensor([3, 3])
    first, second = draw(logits, seeds=seeds, indexes=indexes).tolist()
    assert first == second


def test_a_row_alone_draws_what_it_draws_among_others() -> None:
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(0))
    seeds, indexes = torch.arange(8) * 17 - 5, torch.arange(8)
    together = draw(logits, top_p=0.9, seeds=seeds, indexes=indexes)
    alone = [
        draw(logits[i : i + 1], top_p=0.9, seeds=seeds[i : i + 1], indexes=indexes[i : i + 1])
        for i in range(8)
    ]
    assert together.tolist() == torch.cat(alone).tolist()


def test_ties_of_the_kth_stay() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, -5.0]]).expand(2000, 4)
    assert set(draw(logits, top_k=2).tolist()) == {0, 1, 2}


def test_the_likeliest_stays_however_small_top_p_is() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]]).expand(100, 3)
    assert set(draw(logits, top_p=1e-9).tolist()) == {1}


def test_forbidden_ids_are_never_drawn() -> None:
    logits = torch.zeros(5000, 4)
    logits[:, (0, 3)] = -torch.inf
    assert set(draw(logits, temperature=100.0).tolist()) == {1, 2}


def test_of_equal_logits_the_lowest_id_wins() -> None:
    assert argmax_tokens(torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])).tolist() == [1, 0]


def test_uniform_equals_philox_by_hand() -> None:
    """Known answer: key 0, counter 0 gives 0x6627e8d5 as the first word (Random123)."""
    drawn = uniform(torch.tensor([0]), torch.tensor([0]))
    assert drawn.item() == (0x6627E8D5 >> 8) * 2.0**-24


def test_uniform_numbers_are_in_the_half_open_unit_interval() -> None:
    drawn = uniform(torch.arange(-5000, 5000), torch.arange(10_000))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean().item() - 0.5) < 0.02


def test_repetition_lowers_positive_and_negative_logits() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    counts = torch.tensor([[1, 0, 0]], dtype=torch.int32)
    in_prompt = torch.tensor([[False, True, False]])
    one = torch.ones(1)
    got = apply_penalties(logits, counts, in_prompt, 2 * one, 0 * one, 0 * one)
    assert got.tolist() == [[1.0, -4.0, 1.0]]


def test_frequency_counts_occurrences_and_presence_does_not() -> None:
    counts = torch.tensor([[3, 1, 0]], dtype=torch.int32)
    off, one = torch.zeros(1), torch.ones(1)
    none = torch.zeros(1, 3, dtype=torch.bool)
    frequency = apply_penalties(torch.zeros(1, 3), counts, none, one, one, off)
    presence = apply_penalties(torch.zeros(1, 3), counts, none, one, off, one)
    assert frequency.tolist() == [[-3.0, -1.0, 0.0]]
    assert presence.tolist() == [[-1.0, -1.0, 0.0]]


def test_biases_of_an_id_named_twice_add_up() -> None:
    got = add_bias(torch.zeros(1, 3), torch.tensor([[1, 1]]), torch.tensor([[0.5, 2.0]]))
    assert got.tolist() == [[0.0, 2.5, 0.0]]

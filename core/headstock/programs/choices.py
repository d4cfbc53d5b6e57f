"""Which of several texts a model finds likeliest, from the log probabilities of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from headstock.programs.graph import SelectMethod

Row = Sequence[float]


def score(
    method: SelectMethod,
    logprobs: Sequence[Row],
    token_ids: Sequence[Sequence[int]],
    unconditional: Sequence[Row] = (),
) -> list[float]:
    """Return a score for each choice; the largest wins.

    Args:
        method: ``token_length_normalized``: the mean. ``greedy_token_selection``: token by token,
            the likeliest next one decides who stays. ``unconditional_likelihood_normalized``: the
            sum, less what the choice has by itself.
        logprobs: Of each choice's tokens.
        token_ids: The tokens.
        unconditional: Of each choice's tokens by themselves, for the last method.
    """
    match method:
        case "token_length_normalized":
            return [_mean(row) for row in logprobs]
        case "greedy_token_selection":
            winner = _greedy(logprobs, token_ids)
            return [1.0 if index == winner else 0.0 for index in range(len(logprobs))]
        case "unconditional_likelihood_normalized":
            return [sum(r) - sum(base) for r, base in zip(logprobs, unconditional, strict=True)]
    assert_never(method)


def _mean(row: Row) -> float:
    return sum(row) / len(row) if row else float("-inf")


def _greedy(logprobs: Sequence[Row], token_ids: Sequence[Sequence[int]]) -> int:
    """Return who stays when each token's likeliest continuation is kept.

    A choice that ends before others that begin with it competes by its mean.
    """
    left = list(range(len(logprobs)))
    position = 0
    while len(left) > 1:
        open_ones = [i for i in left if position < len(logprobs[i])]
        if not open_ones:
            break
        best = max(left, key=lambda i: _at(logprobs[i], position))
        if position >= len(logprobs[best]):
            return best
        token = token_ids[best][position]
        left = [i for i in open_ones if token_ids[i][position] == token]
        position += 1
    return left[0]


def _at(row: Row, position: int) -> float:
    return row[position] if position < len(row) else _mean(row)

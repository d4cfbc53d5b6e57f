"""Requests with lists of ids that may be drawn, and of words that may not, on the null runner."""

from __future__ import annotations

import random

import pytest
from client import Client
from null_model import expected_outputs
from null_runner import NullRunner

from headstock.engine.token_rules import TokenRules
from headstock.requests import Grammar
from headstock.wire.requests import ThoughtLimit


def ids_of(mask: bytearray) -> set[int]:
    return {i for i in range(8 * len(mask)) if mask[i >> 3] >> (i & 7) & 1}


def naive(allowed: list[int], banned: list[list[int]], vocab_size: int, outputs: list[int]):
    found = set(allowed) or set(range(vocab_size))
    return {i for i in found if not any([*outputs, i][-len(word) :] == word for word in banned)}


def test_masks_are_what_the_lists_say() -> None:
    source = random.Random(7)
    for _ in range(200):
        vocab_size = source.choice([31, 32, 33, 100])
        allowed = source.sample(range(vocab_size), source.choice([0, 1, 8]))
        banned = [
            [source.randrange(8) for _ in range(source.randrange(1, 4))]
            for _ in range(source.randrange(4))
        ]
        outputs = [source.randrange(8) for _ in range(source.randrange(6))]
        rules = TokenRules(allowed, banned, vocab_size)
        wanted = naive(allowed, banned, vocab_size, outputs)
        assert ids_of(rules.mask(outputs)) == wanted
        mask = bytearray(source.randbytes(-(-vocab_size // 32) * 4))
        before = ids_of(mask)
        rules.restrict(mask, outputs)
        assert ids_of(mask) == before & wanted


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_only_allowed_ids_are_drawn_and_neighbours_do_not_change(depth: int) -> None:
    client = Client(NullRunner(depth=depth))
    vocab_size = client.runner.limits.vocab_size
    few = client.submit("few", [1, 2, 3], 12, allowed_ids=[5, 9, 11], stop_ids=[0])
    free = [client.submit(str(n), [n, 2, 3], 12) for n in range(3)]
    client.finish()
    assert few.token_ids == expected_outputs(
        [1, 2, 3], max_outputs=12, vocab_size=vocab_size, drawable=lambda _: {5, 9, 11}
    )
    for n, record in enumerate(free):
        assert record.token_ids == expected_outputs(
            [n, 2, 3], max_outputs=12, vocab_size=vocab_size
        )
    client.check_idle()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_bad_word_s_last_id_does_not_follow_the_others(depth: int) -> None:
    client = Client(NullRunner(depth=depth))
    plain = client.submit("a", [1, 2, 6], 8)
    client.finish()
    first, second, third = plain.token_ids[:3]
    assert len({first, second, third}) == 3
    for banned in ([[third]], [[second, third]], [[first, second, third]]):
        again = Client(NullRunner(depth=depth))
        record = again.submit("a", [1, 2, 6], 8, banned=banned)
        again.finish()
        assert record.token_ids[:2] == [first, second]
        assert record.token_ids[2] == (third + 1) % client.runner.limits.vocab_size
        again.check_idle()
    # What is not complete changes nothing.
    other = Client(NullRunner(depth=depth))
    record = other.submit("a", [1, 2, 6], 8, banned=[[second, second, third]])
    other.finish()
    assert record.token_ids == plain.token_ids


def test_lists_and_a_grammar_are_both_obeyed() -> None:
    client = Client()
    grammar = Grammar("regex", "2,4,4", "regex")
    record = client.submit("a", [1, 2, 3], 8, grammar=grammar, allowed_ids=[3, 4, 7, 8])
    client.finish()
    assert [token % 2 for token in record.token_ids] == [0, 1, 0, 1]
    assert set(record.token_ids) <= {3, 4, 7, 8}


def test_lists_that_leave_nothing_end_the_request_with_their_names() -> None:
    client = Client()
    record = client.submit("a", [1, 2, 3], 8, allowed_ids=[4], banned=[[4, 4]])
    both = client.submit(
        "b", [1, 2, 3], 8, grammar=Grammar("regex", "2,4,4", "regex"), allowed_ids=[4]
    )
    client.finish()
    for each in (record, both):
        assert each.token_ids == [4]
        assert each.ended is not None
        assert (each.ended.reason.kind, each.ended.reason.code) == ("error", "invalid_value")
        assert "leave no token" in each.ended.reason.message
    client.check_idle()


def test_a_request_that_is_sent_again_goes_on_under_its_lists() -> None:
    whole = Client()
    record = whole.submit("a", [1, 2, 3], 10, allowed_ids=[5, 9, 11], banned=[[9, 9], [5, 5, 5]])
    whole.finish()
    client = Client()
    rest = client.submit(
        "a",
        [1, 2, 3],
        10,
        attempt=1,
        output_ids=record.token_ids[:4],
        allowed_ids=[5, 9, 11],
        banned=[[9, 9], [5, 5, 5]],
    )
    client.finish()
    assert rest.token_ids == record.token_ids


def thinking(limit: ThoughtLimit, outputs: int = 10, **more: object) -> list[int]:
    client = Client()
    record = client.submit("a", [1, 2, 6], outputs, thoughts=limit, **more)
    client.finish()
    client.check_idle()
    return record.token_ids


def test_thoughts_end_when_their_budget_is_spent_and_the_rest_is_free() -> None:
    vocab_size = NullRunner().limits.vocab_size
    plain = expected_outputs([1, 2, 6], max_outputs=10, vocab_size=vocab_size)
    end = next(i for i in range(vocab_size) if i not in plain)
    for budget in (0, 1, 4):
        drawn = thinking(ThoughtLimit(budget, end, [], True))
        assert drawn[: budget + 1] == [*plain[:budget], end]
        assert drawn.count(end) == 1
    assert thinking(ThoughtLimit(20, end, [], True)) == plain
    # What ends by itself, or never begins, is left alone.
    assert thinking(ThoughtLimit(4, plain[2], [], True)) == plain
    assert thinking(ThoughtLimit(1, end, [end], False)) == plain


def test_thoughts_that_begin_in_the_output_are_counted_from_there() -> None:
    vocab_size = NullRunner().limits.vocab_size
    plain = expected_outputs([1, 2, 6], max_outputs=10, vocab_size=vocab_size)
    end = next(i for i in range(vocab_size) if i not in plain)
    drawn = thinking(ThoughtLimit(2, end, plain[1:3], False))
    assert drawn[:6] == [*plain[:5], end]


def test_a_request_that_is_sent_again_has_thought_what_it_has_thought() -> None:
    limit = ThoughtLimit(4, 48, [], True)
    whole = thinking(limit)
    for count in (2, 4, 5, 7):
        assert thinking(limit, output_ids=whole[:count]) == whole

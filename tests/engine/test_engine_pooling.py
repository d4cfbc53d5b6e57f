"""Requests that end with a vector instead of tokens."""

from __future__ import annotations

import pytest
from client import Client
from null_model import expected_vector
from null_runner import NullRunner

from headstock.wire.messages import Ended, Vector


def test_a_pooled_request_yields_a_vector_and_ends() -> None:
    client = Client()
    record = client.submit("a", list(range(9)), pool="pool")
    client.finish()
    assert record.vector == expected_vector(range(9), 9)
    assert record.ended is not None
    assert (record.ended.reason.kind, record.ended.num_outputs) == ("stop", 0)
    client.check_idle()


def test_the_vector_comes_before_the_end() -> None:
    client = Client()
    client.submit("a", list(range(9)), pool="pool")
    replies = []
    while client.engine.has_work:
        replies += client.engine.step()
    assert [type(reply) for reply in replies] == [Vector, Ended]


def test_a_long_prompt_is_pooled_by_its_last_chunk() -> None:
    client = Client(NullRunner(max_step_tokens=8))
    record = client.submit("a", list(range(20)), pool="pool")
    client.finish()
    assert record.vector == expected_vector(range(20), 4)


def test_a_pooled_request_shares_prefixes_but_computes_its_last_token() -> None:
    client = Client()
    client.submit("a", list(range(8)), pool="pool")
    client.finish()
    record = client.submit("b", list(range(8)), pool="pool")
    client.finish()
    assert record.ended is not None
    assert record.ended.cached_tokens == 4
    assert record.vector == expected_vector(range(8), 4)


def test_pooled_rows_stand_beside_rows_that_draw() -> None:
    client = Client(NullRunner(max_drafts=2))
    records = [client.submit(str(n), [n, 1, 2], 9, pool="pool" if n % 2 else "") for n in range(4)]
    client.finish()
    for record in records:
        client.check_record(record)
    assert [record.vector is None for record in records] == [True, False, True, False]


def test_a_prompt_as_long_as_the_context_can_be_pooled() -> None:
    client = Client(NullRunner(max_length=16))
    record = client.submit("a", list(range(16)), pool="pool")
    client.finish()
    assert record.vector is not None
    longer = client.submit("b", list(range(17)), pool="pool")
    assert longer.ended is not None
    assert longer.ended.reason.code == "context_length_exceeded"


@pytest.mark.parametrize("groups", [None, []])
def test_without_causality_a_prompt_is_computed_whole_and_nothing_is_kept(groups) -> None:
    runner = NullRunner(yields=("pool",), is_causal=False, max_step_tokens=20, groups=groups)
    client = Client(runner)
    records = [client.submit(str(n), [n % 2, *range(12)], pool="pool") for n in range(5)]
    client.finish()
    for record in records:
        assert record.vector == expected_vector(record.submit.prompt_ids, 13)
        assert record.ended is not None
        assert record.ended.cached_tokens == 0
    client.check_idle()
    assert client.engine.state().cached_pages == 0


def test_without_causality_a_prompt_longer_than_a_step_is_refused() -> None:
    client = Client(NullRunner(yields=("pool",), is_causal=False, max_step_tokens=10))
    record = client.submit("a", list(range(11)), pool="pool")
    assert record.ended is not None
    assert "in one step, which has 10" in record.ended.reason.message


@pytest.mark.parametrize(
    ("yields", "pool"),
    [
        (("draw",), "pool"),
        (("pool",), ""),
        (("pool",), "token_embed"),
        (("draw", "pool"), "draw"),
    ],
)
def test_what_the_model_does_not_yield_is_refused(yields: tuple[str, ...], pool: str) -> None:
    client = Client(NullRunner(yields=yields))
    record = client.submit("a", [1, 2, 3], pool=pool)
    assert record.ended is not None
    assert record.ended.reason.kind == "error"

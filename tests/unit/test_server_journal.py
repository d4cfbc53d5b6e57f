"""Journals of calls: what is told again is what was told, and a hole is never told over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from headstock.errors import RequestError
from headstock.requests import FinishReason, SamplingParams, TokenIds
from headstock.server.completion import Completion
from headstock.server.errors import error_of
from headstock.server.journal import KIND, Head, Journal, Keeping, Retelling, encode_head
from headstock.server.journals import Journals
from headstock.server.store import MemoryStore
from headstock.wire.messages import Ended, Submit
from headstock.wire.requests import TokenLogprobs


def head(name: str = "n", count: int = 1, logprobs: int = -1) -> Head:
    params = SamplingParams(max_new_tokens=8, temperature=0, sampling_seed=1)
    return Head(
        keeping=Keeping(
            route="r", name=name, owner="o", body=b"{}", call_id="c", created=1, is_stored=False
        ),
        model="m",
        payer="p",
        tenant="t",
        names=[None] * count,
        adapters=[""] * count,
        submits=[
            Submit(
                id=f"{name}{index}", prompt_ids=TokenIds([1, 2]), params=params, logprobs=logprobs
            )
            for index in range(count)
        ],
    )


def begun(store: MemoryStore, made: Head) -> tuple[Journal, list[Completion]]:
    completions = [Completion(submit, index, None) for index, submit in enumerate(made.submits)]
    store.put(KIND, "o", made.keeping.name, encode_head(made))
    return Journal(store, made, len(completions)), completions


def scores(*values: float) -> TokenLogprobs:
    return TokenLogprobs(id="n0", is_prompt=False, chosen=list(values))


def test_a_call_is_told_again_as_it_was() -> None:
    store = MemoryStore()
    made = head(count=2, logprobs=0)
    journal, (first, second) = begun(store, made)
    told: list[Any] = []
    for completion, offset, ids in ((first, 0, [5, 6]), (second, 0, [7]), (first, 2, [8])):
        logprobs = scores(*(-float(each) for each in ids))
        completion.cached_tokens = 3
        told += completion.take(offset, ids, logprobs)
        journal.drew(completion, offset, ids, logprobs)
    ended = Ended(id="n0", attempt=0, reason=FinishReason(kind="length"), num_outputs=3)
    told.append(first.finish(ended))
    journal.ended(first, ended)
    gone = error_of(FinishReason(kind="error", message="Aborted.", code="aborted"))
    told.append(second.fail(gone))
    journal.failed(second, gone)
    retelling = Retelling(made, None)
    assert retelling.feed(journal.parts()) == told
    assert retelling.feed(journal.parts()) == []
    for again, before in zip(retelling.completions, (first, second), strict=True):
        assert again.output_ids == before.output_ids
        assert again.logprobs == before.logprobs
        assert again.cached_tokens == before.cached_tokens
        assert again.end == before.end
    assert journal.num_open == 0


def test_prompt_logprobs_of_a_second_attempt_take_the_place_of_the_first() -> None:
    store = MemoryStore()
    made = head()
    journal, (completion,) = begun(store, made)
    journal.scored(completion, scores(-1.0, -2.0))
    completion.submit = msgspec.structs.replace(completion.submit, attempt=1)
    journal.scored(completion, scores(-1.0))
    journal.scored(completion, scores(-2.0))
    retelling = Retelling(made, None)
    retelling.feed(journal.parts())
    assert retelling.completions[0].prompt_logprobs.chosen == [-1.0, -2.0]


def test_processes_without_a_token_are_counted() -> None:
    store = MemoryStore()
    made = head()
    journal, (completion,) = begun(store, made)
    journal.revived()
    journal.revived()
    retelling = Retelling(made, None)
    retelling.feed(journal.parts())
    assert retelling.num_revivals == 2
    journal.drew(completion, 0, [4], None)
    journal.revived()
    retelling.feed(journal.parts())
    assert retelling.num_revivals == 1


def hole(store: MemoryStore) -> None:
    journal, (completion,) = begun(store, head())
    journal.drew(completion, 0, [4], None)
    journal.drew(completion, 3, [5], None)


def nonsense(store: MemoryStore) -> None:
    begun(store, head())
    store.add(KIND, "o", "n", b"\xc1")


def no_head(store: MemoryStore) -> None:
    store.put(KIND, "o", "n", msgspec.msgpack.encode({"keeping": 3}))


@pytest.mark.parametrize("damage", [hole, nonsense, no_head])
def test_a_damaged_journal_is_dropped_with_one_line(
    damage: Callable[[MemoryStore], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    damage(store)
    revived: list[str] = []

    async def run() -> int:
        journals = Journals(store, None, lambda *_: None, resume_s=9, is_durable=True)
        with pytest.raises(RequestError, match="starting"):
            journals.find("o", "n", "r")
        count = await journals.revive(lambda journal, _: revived.append(journal.key[1]))
        with pytest.raises(RequestError, match="no stream"):
            journals.find("o", "n", "r")
        return count

    assert asyncio.run(run()) == 0
    assert revived == []
    assert store.entries(KIND) == []
    assert len(caplog.records) == 1
    assert "n cannot continue" in caplog.text


def test_a_call_of_another_owner_or_route_is_not_found() -> None:
    async def run() -> None:
        store = MemoryStore()
        journals = Journals(store, None, lambda *_: None, resume_s=9, is_durable=False)
        completions = [Completion(head().submits[0], 0, None)]
        journals.begin(
            head().keeping,
            completions,
            model="m",
            weight_version="default",
            payer="",
            tenant="",
            names=[None],
            adapters=[""],
        )
        assert journals.find("o", "n", "r").key == ("o", "n")
        for owner, route in (("x", "r"), ("o", "x"), ("", "r")):
            with pytest.raises(RequestError, match="no stream"):
                journals.find(owner, "n", route)

    asyncio.run(run())

"""Records of calls: bounded, by owner, without texts."""

from __future__ import annotations

import itertools

from headstock.requests import FinishReason, SamplingParams, TokenIds
from headstock.server.completion import Completion
from headstock.server.records import MAX_POINTS, Call, CallRecord, RecordBook, points_of
from headstock.wire.messages import Ended, Submit
from headstock.wire.requests import Story

STORY = Story({"slots": 0.25}, 3, 16, [4, 6], [8, 10], [0.3, 0.4], 9)


def completion(name: str = "a") -> Completion:
    params = SamplingParams(max_new_tokens=4, temperature=0.5, sampling_seed=0)
    return Completion(Submit(id=name, prompt_ids=TokenIds([1] * 10), params=params), 0, None)


def call(name: str, owner: str = "") -> Call:
    return Call(id=name, name=name, owner=owner, route="/generate")


def test_a_completion_is_told_from_its_first_to_its_last_token() -> None:
    ended: list[CallRecord] = []
    book = RecordBook(4, ended.append)
    record = book.begin(call("x"), "model")
    assert record is not None
    made = completion()
    one = book.add(record, made, received_s=100.0, now_s=100.5)
    assert record.tell()["state"] == "waiting"
    one.times_s.append(101.0)
    assert record.tell()["state"] == "running"
    one.times_s += [101.5] * 2
    made.output_ids += [5, 6, 7]
    made.cached_tokens = 4
    made.finish(
        Ended(id="a", attempt=0, reason=FinishReason("stop"), num_outputs=3, cached_tokens=4)
    )
    one.story = STORY
    assert not ended
    book.end(one, 102.0)
    assert ended == [record]
    told = record.tell_all()
    assert (told["state"], told["total_s"], told["route"]) == ("ended", 2.0, "/generate")
    (told_one,) = told["completions"]
    assert told_one["tokens"] == [(1.0, 1), (1.5, 2)]
    assert told_one["chunks"] == [
        {"step": 4, "begin": 4, "end": 8, "at_s": 0.8},
        {"step": 6, "begin": 8, "end": 10, "at_s": 0.9},
    ]
    assert told_one["waits"] == {"slots": 0.25}
    assert (told_one["evicted_pages"], told_one["shared_tokens"]) == (3, 16)
    assert (told_one["prompt_tokens"], told_one["output_tokens"]) == (10, 3)
    assert one.completion is None  # its tokens and text are gone


def test_chunks_after_a_retraction_have_no_known_begin() -> None:
    book = RecordBook(4)
    record = book.begin(call("x"), "model")
    assert record is not None
    one = book.add(record, completion(), 0.0, 0.0)
    one.story = Story({}, 0, 0, [1, 2, 5], [8, 10, 10], [0.1, 0.2, 0.5], 6)
    assert [chunk["begin"] for chunk in one.tell_all()["chunks"]] == [0, 8, None]


def test_owners_have_rings_of_their_own() -> None:
    book = RecordBook(2)
    for number in range(3):
        book.begin(call(f"a{number}", "ann"), "model")
    book.begin(call("b0", "bob"), "model")
    assert [record.call.id for record in book.last("ann", 9)] == ["a2", "a1"]
    assert [record.call.id for record in book.last("ann", 1)] == ["a2"]
    assert book.find("bob", "a2") is None
    assert book.find("ann", "a0") is None
    assert book.find("ann", "a1") is not None
    assert book.last("eve", 9) == []


def test_a_name_that_its_sender_gave_finds_the_latest() -> None:
    book = RecordBook(4)
    for number in range(2):
        book.begin(Call(id=f"id{number}", name="mine"), "model")
    found = book.find("", "mine")
    assert found is not None
    assert found.call.id == "id1"


def test_requests_of_one_call_are_in_one_record() -> None:
    book = RecordBook(4)
    assert book.begin(call("x"), "model") is book.begin(call("x"), "model")


def test_nothing_is_recorded_where_nobody_wants_it() -> None:
    assert RecordBook(0).begin(call("x"), "model") is None
    assert RecordBook(4).begin(Call(), "model") is None
    heard: list[CallRecord] = []
    book = RecordBook(0, heard.append)
    record = book.begin(call("x"), "model")
    assert record is not None
    assert book.last("", 9) == []


def test_points_of_a_long_answer_are_joined() -> None:
    times = [10.0 + step for step in range(2000) for _ in range(1 + step % 2)]
    points = points_of(times, 10.0)
    assert len(points) <= MAX_POINTS
    assert sum(count for _, count in points) == len(times)
    assert points[-1][0] == 1999.0
    steps = {after - before for (before, _), (after, _) in itertools.pairwise(points)}
    assert steps == {4.0}  # each point stands for as many draws
    assert points_of(times[:4], 10.0) == [(0.0, 1), (1.0, 2), (2.0, 1)]

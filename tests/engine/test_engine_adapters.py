"""Adapters between messages and plans: read once, placed when needed, gone when unloaded."""

from __future__ import annotations

from client import Client
from null_runner import NullRunner

from headstock.requests import Grammar
from headstock.wire.messages import AdapterReply


def client(**settings: object) -> Client:
    return Client(NullRunner(num_adapters=2), **settings)


def test_each_row_has_its_adapter_and_prefixes_of_its_own() -> None:
    desk = client()
    for adapter in ("a", "b", "c"):
        desk.load(adapter)
    prompt = list(range(12))
    records = [
        desk.submit(f"{adapter}{turn}", prompt, adapter=adapter)
        for turn in range(2)
        for adapter in ("", "a", "b", "c")
    ]
    desk.finish()
    for record in records:
        desk.check_record(record)
    outputs = [tuple(record.token_ids) for record in records]
    assert outputs[:4] == outputs[4:]
    assert len(set(outputs)) == 4
    for record in records[4:]:
        assert record.ended is not None
        assert record.ended.cached_tokens > 0, "the same adapter's prefix is not found"
    for record in records[:4]:
        assert record.ended is not None
        assert record.ended.cached_tokens == 0, "another adapter's prefix is taken"


def test_requests_wait_until_their_adapter_is_read() -> None:
    desk = client(reads_at_once=False)
    desk.load("a")
    record = desk.submit("r", [1, 2, 3], adapter="a")
    other = desk.submit("s", [1, 2, 3])
    desk.step(8)
    assert record.ended is None
    assert other.ended is not None
    assert desk.engine.state().waiting == 1
    desk.shelf.is_quick = True
    desk.finish()
    assert desk.others == [AdapterReply(call=2)]
    desk.check_record(record)


def test_requests_for_an_adapter_that_cannot_be_read_end_with_the_reason() -> None:
    desk = client(reads_at_once=False)
    desk.load("a")
    desk.shelf.broken.add("a")
    record = desk.submit("r", [1, 2, 3], adapter="a")
    desk.shelf.is_quick = True
    desk.finish()
    assert record.ended is not None
    assert "It is damaged." in record.ended.reason.message
    assert desk.others == [AdapterReply(call=2, problem="It is damaged.", remedy="Repair it.")]
    late = desk.submit("s", [1, 2, 3], adapter="a")
    assert late.ended is not None
    assert late.ended.reason.code == "adapter_not_found"


def test_unloading_ends_what_runs_waits_and_compiles_with_the_adapter() -> None:
    desk = client(is_quick=False)
    desk.load("a")
    desk.step()
    running = desk.submit("run", [1, 2, 3], 40, adapter="a")
    other = desk.submit("other", [1, 2, 3], 10)
    desk.step(3)
    compiling = desk.submit("g", [5], adapter="a", grammar=Grammar("regex", "2,0,4", "regex"))
    desk.unload("a")
    desk.finish()
    assert running.ended is not None
    assert running.ended.reason.code == "adapter_not_found"
    assert compiling.ended is not None
    desk.check_record(other)
    assert desk.shelf.kept == set()


def test_a_name_that_is_loaded_again_finds_no_old_prefix() -> None:
    desk = client()
    desk.load("a1")
    desk.submit("r", list(range(12)), adapter="a1")
    desk.finish()
    desk.unload("a1")
    desk.load("a2")
    record = desk.submit("s", list(range(12)), adapter="a2")
    desk.finish()
    assert record.ended is not None
    assert record.ended.cached_tokens == 0
    desk.check_record(record)


def test_an_engine_without_room_refuses_adapters() -> None:
    desk = Client(NullRunner())
    desk.load("a")
    (reply,) = desk.others
    assert isinstance(reply, AdapterReply)
    assert "without room" in reply.problem
    record = desk.submit("r", [1], adapter="a")
    assert record.ended is not None

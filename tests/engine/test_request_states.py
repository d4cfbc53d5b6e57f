"""Every pair of a request's state and what may happen in it, brought about: R26."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from client import Client, Record
from house import GRAMMAR, House
from null_runner import NullRunner
from request_states import EVENTS, OUTCOMES, STATES, TABLE

from headstock.scheduler.story import PREFIX
from headstock.server import journals
from headstock.server.errors import BusyError
from headstock.wire.messages import Cut, Submit

PROMPT = [1, 2, 3, 4, 5, 6]
LONG = list(range(1, 22))


def state_of(house: House) -> str:
    """Return in which state the main request is: seen from what all sides hold of it."""
    caller = house.callers["main"]
    completion = caller.completion
    if completion is None:
        assert not caller.task.done()
        return "reading"
    if completion.end is not None:
        return "over"
    request_id = completion.submit.id
    if not house.door._delivery.live[request_id].is_sent:
        return "suspected" if house.has_engine else "orphaned"
    on_its_way = [type(m) for m in house.wire.to_engine if getattr(m, "id", "") == request_id]
    if Submit in on_its_way:
        return "sent"
    engine = house.client.engine
    if request_id in engine._adapters.waiting:
        return "adapter"
    if request_id in engine._grammars.waiting:
        return "grammar"
    request = engine.scheduler._register.get(request_id)
    if request is None:
        return "untold"
    if Cut in on_its_way:
        return "cut"
    if engine._pause is not None:
        return "paused"
    if request.slot < 0:
        if request.num_retractions:
            return "retracted"
        return "sharing" if request.notes.held_by == PREFIX else "queued"
    undrawn = engine._undrawn
    if undrawn is not None and request.slot in undrawn.masked:
        return "undrawn"
    return "decoding" if request.outputs else "prefill"


# How a request comes to be in each state; the other one is there before it, or beside it.


async def reach(house: House, state: str) -> None:
    await ARRIVALS[state](house)
    assert state_of(house) == state


async def reading(house: House) -> None:
    await house.open()
    await house.ask_other()
    await house.turn(3)
    house.prompter.may_read.clear()
    await house.ask("main", PROMPT)


async def sent(house: House) -> None:
    await house.open()
    await house.ask_other()
    await house.turn(3)
    await house.ask("main", PROMPT)


async def adapter(house: House) -> None:
    await house.open(reads_at_once=False)
    await house.ask_other()
    await house.ask("main", PROMPT, adapter="a")
    await house.turn(3)


async def grammar(house: House) -> None:
    await house.open()
    await house.ask_other()
    await house.turn(3)
    await house.ask("main", PROMPT, grammar=GRAMMAR)
    await house.turn(steps=False)


async def queued(house: House) -> None:
    house.runner_options["num_slots"] = 1
    await house.open()
    await house.ask_other()
    await house.turn(2)
    await house.ask("main", PROMPT)
    await house.turn(2)


async def sharing(house: House) -> None:
    house.runner_options["depth"] = 1
    await house.open()
    await house.ask("other", [*LONG, 3], params={"max_new_tokens": 24})
    await house.ask("main", LONG)
    await house.turn()


async def prefill(house: House) -> None:
    house.runner_options["max_step_tokens"] = 8
    await house.open()
    await house.ask_other()
    await house.turn(3)
    await house.ask("main", LONG)
    await house.turn()


async def undrawn(house: House) -> None:
    house.runner_options["depth"] = 3  # two steps in flight before it: it cannot draw yet
    await house.open()
    await house.ask_other()
    await house.turn(3)
    await house.ask("main", PROMPT, grammar=GRAMMAR)
    for _ in range(6):
        await house.turn()
        if state_of(house) == "undrawn":
            return


async def decoding(house: House) -> None:
    await house.open()
    await house.ask_other()
    await house.ask("main", PROMPT)
    await house.turn(4)


async def retracted(house: House) -> None:
    await decoding(house)
    await house.retract()


async def paused(house: House) -> None:
    await decoding(house)
    await house.pause("in_place")
    await house.turn(3)


async def cut(house: House) -> None:
    await house.open()
    await house.ask_other()
    caller = await house.ask("main", PROMPT, params={"stop": [stop_of(PROMPT)]})
    while caller.completion.matched is None:
        await house.turn()


def stop_of(prompt: list[int]) -> str:
    """Return the text of a request's third token."""
    plain = Client(NullRunner(vocab_size=128))
    token_id = plain.expected(Record(plain.submit("a", prompt, 8).submit, []))[2]
    return chr(token_id - 3)


async def untold(house: House) -> None:
    await decoding(house)
    house.holds_replies = True
    for _ in range(9):
        await house.turn()
        if state_of(house) == "untold":
            return


async def orphaned(house: House) -> None:
    await decoding(house)
    await house.kill_engine()


async def suspected(house: House) -> None:
    await decoding(house)
    for _ in range(2):
        await house.kill_engine()
        await house.start_engine()


async def over(house: House) -> None:
    await decoding(house)
    while house.callers["main"].completion.end is None:
        await house.turn()


ARRIVALS = {
    arrival.__name__: arrival
    for arrival in (
        reading, sent, adapter, grammar, queued, sharing, prefill, undrawn, decoding, retracted,
        paused, cut, untold, orphaned, suspected, over,
    )
}  # fmt: skip


async def bring_about(house: House, event: str) -> None:
    """Have the event happen; what it needs to be over comes when the house finishes."""
    main, door = house.callers["main"], house.door
    match event:
        case "leaves":
            main.leave()
        case "stays away":
            main.leave()
            await asyncio.sleep(0.01)
        case "abort":
            is_known = main.completion is not None and main.completion.end is None
            assert door.abort("main") == is_known
        case "abort all":
            door.abort_all()
        case "kill":
            if house.has_engine:
                await house.kill_engine()
            await house.start_engine()
        case "drain":
            house.draining = asyncio.create_task(door.drain(20))
        case "deadline":
            assert not await door.drain(0)
        case _:
            raise AssertionError(f"{event} is not an event")
    await house.quiet()


async def exercise(state: str, event: str) -> None:
    """Bring about a pair of the table, and check what becomes of both requests."""
    house = House(is_kept=event == "stays away")
    await reach(house, state)
    await bring_about(house, event)
    await house.finish()
    if event == "drain":
        assert await house.draining, "not all ended by themselves"
    house.check_caller(house.callers["main"], TABLE[state][event])
    house.check_caller(house.callers["other"], other_outcome(state, event))
    house.check_empty()
    await house.close()


def other_outcome(state: str, event: str) -> str:
    """Return what becomes of the request beside it: it goes on, unless all are meant."""
    if (state, event) == ("suspected", "kill"):
        return "killer"  # the third engine died with it alone
    return {"abort all": "ended", "deadline": "drained"}.get(event, "whole")


exercised: set[tuple[str, str]] = set()


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LOOK_EVERY_S", 0.001)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_what_the_table_says_becomes_of_a_request(state: str, event: str) -> None:
    asyncio.run(exercise(state, event))
    exercised.add((state, event))


def test_the_table_has_every_pair_and_each_was_exercised() -> None:
    pairs = set(itertools.product(STATES, EVENTS))
    assert {(state, event) for state, row in TABLE.items() for event in row} == pairs
    assert {outcome for row in TABLE.values() for outcome in row.values()} == set(OUTCOMES)
    assert set(ARRIVALS) == set(STATES)
    assert exercised == pairs, f"not exercised: {sorted(pairs - exercised)}"


@pytest.mark.parametrize("state", ["sent", "queued", "decoding", "retracted", "suspected"])
@pytest.mark.parametrize("event", ["leaves", "abort", "abort all", "pause"])
def test_an_end_is_not_forgotten_where_the_engine_dies_before_it_hears_of_it(
    state: str, event: str
) -> None:
    async def run() -> None:
        house = House()
        await reach(house, state)
        main = house.callers["main"]
        if event == "pause":
            pausing = asyncio.create_task(house.door.pause("abort", 0.001))
            with pytest.raises(BusyError):
                await pausing
        else:
            await bring_about(house, event)
        await bring_about(house, "kill")
        await house.finish()
        house.check_caller(main, "ended")
        house.check_empty()
        await house.close()

    asyncio.run(run())
